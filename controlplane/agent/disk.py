"""The blobs on the disk: downloaded beside, checked while they are written, kept by digest, within a budget."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

import httpx2
import stamina

from controlplane.core.errors import InvalidInput, Unavailable
from controlplane.core.models import ArtifactFile
from controlplane.core.names import mib

CHUNK_BYTES = 1 << 20
PARTIAL = ".partial-"
RESERVE_BYTES = 64 << 20
"""What a download leaves free on the file system, whatever the budget says."""
ATTEMPTS = 4
READ_TIMEOUT_S = 10.0
_REFUSED = frozenset({400, 401, 403})
"""How object stores answer an address whose time is over (AWS: 403; some others: 400 or 401)."""


class FetchFailed(Unavailable):
    """A file could not be downloaded."""


class SourceExpired(FetchFailed):
    """The download address is not accepted (any more): a new assignment brings a new one."""


class DiskFull(FetchFailed):
    """There is no room for the files, and nothing that may go."""


class _Broken(Exception):
    """A connection failed or ended too early: what is missing may come with the next. Names no address."""


class BlobStore:
    """Files by SHA-256 in one folder. A version in use holds hard links to them, so a blob without other links is free
    to go; the least recently used goes first (its time of modification is when it was last given up)."""

    def __init__(self, folder: Path, *, budget_bytes: int, parallel: int) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._budget = budget_bytes
        self._threads = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="download")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._room = threading.Lock()
        self._reserved: dict[str, int] = {}
        self.kept: frozenset[str] = frozenset()
        """Digests that must stay although nothing links to them yet."""
        self._closing = threading.Event()

    def close(self) -> None:
        """End downloads soon; what they have got so far is kept for the next agent."""
        self._closing.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would."""
        return self._folder / sha256

    def has(self, file: ArtifactFile) -> bool:
        """Whether the blob is there, whole. Blobs are checked before they get their names, so the size is enough."""
        try:
            return self.path(file.sha256).stat().st_size == file.size_bytes
        except FileNotFoundError:
            return False

    def used_bytes(self) -> int:
        """What the blobs take."""
        return sum(size for _, size, _ in self._blobs())

    def free_bytes(self) -> int:
        """What can still be downloaded without anything leaving."""
        free = shutil.disk_usage(self._folder).free - RESERVE_BYTES
        return max(0, min(self._budget - self.used_bytes(), free))

    async def fetch(self, files: Sequence[ArtifactFile], sources: Mapping[str, str]) -> None:
        """Have all `files` here. Raises FetchFailed or one of its kinds; what is complete stays."""
        tasks = [asyncio.create_task(self._fetch(file, sources)) for file in files if not self.has(file)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, file: ArtifactFile, sources: Mapping[str, str]) -> None:
        source = sources.get(file.sha256)
        async with self._locks.setdefault(file.sha256, asyncio.Lock()):
            if self.has(file):
                return
            if source is None:
                raise SourceExpired(f"there is no source for {file.path}")
            cancelled = threading.Event()
            future = asyncio.get_running_loop().run_in_executor(self._threads, self._get, file, source, cancelled)
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError:
                cancelled.set()
                if not self._closing.is_set():  # two must not write one file; at the end nobody else will
                    with contextlib.suppress(Exception):
                        await future
                raise

    # In a download thread.

    def _get(self, file: ArtifactFile, source: str, cancelled: threading.Event) -> None:
        partial = self._folder / f"{PARTIAL}{file.sha256}"
        try:
            self._make_room(file)
            for attempt in stamina.retry_context(on=_Broken, attempts=ATTEMPTS, timeout=60.0):
                with attempt:
                    digest, size = self._transfer(file, source, partial, cancelled)
            if size != file.size_bytes or digest != file.sha256:
                partial.unlink(missing_ok=True)
                raise FetchFailed(
                    f"{file.path} arrived with {size} bytes and SHA-256 {digest[:12]}…, but the registry says "
                    f"{file.size_bytes} bytes and {file.sha256[:12]}…",
                    remedy="the stored file is damaged: register the same bytes again",
                )
            partial.replace(self.path(file.sha256))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                partial.unlink(missing_ok=True)
                raise DiskFull(f"the disk is full: {file.path} needs {file.size_bytes} bytes") from error
            raise FetchFailed(f"{file.path} can't be read or written: {error}") from error
        except _Broken as error:
            raise FetchFailed(f"{file.path} can't be downloaded: {error}") from error
        finally:
            with self._room:
                self._reserved.pop(file.sha256, None)

    def _transfer(self, file: ArtifactFile, source: str, partial: Path, cancelled: threading.Event) -> tuple[str, int]:
        """Write what is still missing of the file; returns the SHA-256 and the size of all of it."""
        with partial.open("a+b") as out:
            out.seek(0)
            digest, size = _digest_of(out)
            if size == file.size_bytes:
                return digest.hexdigest(), size
            with _open(source, size if size < file.size_bytes else 0) as (begins_at, chunks):
                if begins_at != size:
                    out.truncate(0)
                    digest, size = hashlib.sha256(), 0
                for chunk in chunks:
                    if cancelled.is_set() or self._closing.is_set():
                        raise FetchFailed(f"the download of {file.path} was called off")
                    digest.update(chunk)
                    out.write(chunk)
                    size += len(chunk)
                    if size > file.size_bytes:
                        break
        return digest.hexdigest(), size

    def _make_room(self, file: ArtifactFile) -> None:
        """Reserve the file's size, letting go what downloads left that nobody goes on with, then unused blobs, least
        recently used first. Raises DiskFull."""
        with self._room:
            blobs, left = sorted(self._blobs()), list(self._left_partials(file))
            used = sum(size for _, size, _ in blobs) + sum(size for size, _ in left) + sum(self._reserved.values())
            disk_free = shutil.disk_usage(self._folder).free - RESERVE_BYTES - sum(self._reserved.values())
            missing = max(used + file.size_bytes - self._budget, file.size_bytes - disk_free)
            unused = left + [
                (size, path) for _, size, path in blobs if path.name not in self.kept and path.stat().st_nlink == 1
            ]
            if missing > sum(size for size, _ in unused):
                if used + file.size_bytes > self._budget:
                    where, remedy = f"{used} of the fleet's {self._budget} are in use", "give the fleet more disk_bytes"
                else:
                    kept = f"the {mib(RESERVE_BYTES)} that stay free"
                    where = f"{max(0, disk_free)} are free on the file system beyond {kept}"
                    remedy = "make room on that disk"
                raise DiskFull(
                    f"there is no room for the {file.size_bytes} bytes of {file.path}: {where}",
                    remedy=f"{remedy}, or take models off it",
                )
            for size, path in unused:
                if missing <= 0:
                    break
                path.unlink()
                missing -= size
            self._reserved[file.sha256] = file.size_bytes

    def _blobs(self) -> Iterator[tuple[float, int, Path]]:
        """Complete blobs: last used (seconds since 1970), size in bytes, path."""
        for entry in os.scandir(self._folder):
            if not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):  # room is made in other threads
                    status = entry.stat()
                    yield status.st_mtime, status.st_size, Path(entry.path)

    def _left_partials(self, file: ArtifactFile) -> Iterator[tuple[int, Path]]:
        """Parts of other files that nobody downloads at present: size in bytes, path."""
        wanted = {f"{PARTIAL}{digest}" for digest in (file.sha256, *self._reserved)}
        for path in self._folder.glob(f"{PARTIAL}*"):
            if path.name not in wanted:
                with contextlib.suppress(FileNotFoundError):
                    yield path.stat().st_size, path

    def touch(self, files: Sequence[ArtifactFile]) -> None:
        """Note that the files were in use until now. One that is linked into a version is left alone: Triton would take
        it for changed."""
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                if self.path(file.sha256).stat().st_nlink == 1:
                    os.utime(self.path(file.sha256))


def _digest_of(file: IO[bytes]) -> tuple[hashlib._Hash, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return digest, size


@contextlib.contextmanager
def _open(source: str, offset: int) -> Iterator[tuple[int, Iterator[bytes | memoryview]]]:
    """A source from `offset` bytes on, or from where it can begin: the actual offset, and chunks, each of which is
    good until the next is asked for."""
    if source.startswith("/"):
        with Path(source).open("rb") as file:
            file.seek(offset)
            yield offset, iter(lambda: file.read(CHUNK_BYTES), b"")
        return
    if not source.startswith(("https://", "http://")):
        raise InvalidInput("a source is neither a path nor an http address")
    with _ask(source, offset) as answer:
        if answer.status in _REFUSED:
            raise SourceExpired(f"the download address is refused with {answer.status}")
        if answer.status not in (200, 206):
            raise FetchFailed(f"the download is answered with {answer.status}")
        yield offset if answer.status == 206 else 0, _body(answer)


# The standard library's client reads a body straight into one buffer. httpx2 copies it several times in pieces of
# 64 KiB, which holds the interpreter's lock: downloads beside each other got a third of the speed.


def _ask(source: str, offset: int) -> http.client.HTTPResponse:
    """The answer, whatever its status: redirects are not followed. A proxy that the environment names is asked, over
    plain HTTP. Raises _Broken."""
    proxies = urllib.request.getproxies()
    ways = {scheme: proxies.get(scheme) or proxies.get("all") for scheme in ("http", "https")}
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler({scheme: proxy for scheme, proxy in ways.items() if proxy}))
    opener.add_handler(urllib.request.HTTPHandler())
    if source.startswith("https://"):
        opener.add_handler(urllib.request.HTTPSHandler(context=httpx2.create_ssl_context()))
    opener.add_handler(urllib.request.UnknownHandler())
    headers = {"accept-encoding": "identity", "user-agent": "triton-controlplane"}
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme has been looked at
            source, headers=headers | ({"range": f"bytes={offset}-"} if offset else {})
        )
        answer: http.client.HTTPResponse = opener.open(request, timeout=READ_TIMEOUT_S)
    except (ValueError, http.client.InvalidURL):
        # Their texts quote the address, which is a secret while it is valid.
        raise InvalidInput("a source, or the proxy on the way to it, is not a valid http address") from None
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error) from error
    return answer


def _body(answer: http.client.HTTPResponse) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while True:
        try:
            count = answer.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error) from error
        if not count:
            break
        yield buffer[:count]
    if answer.length:  # what was announced and never came; the client itself takes that for an end
        raise _Broken(f"the connection ended {answer.length} bytes too early")


def _broken(error: Exception) -> _Broken:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    return _Broken(f"{type(error).__name__}: {error}")
