"""A registry in a plain directory of a local file system, safe among processes.

Objects are files at their keys, replaced by rename and never changed in place, so that a reader sees all of one or all
of another. Conditional writes hold a lock: one of 256 files below ``.locks``, by the key's hash. What is being written
lies below ``.incoming`` until it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from controlplane.core.errors import Conflict, ControlPlaneError, InvalidInput, NotFound, Unauthenticated, Unavailable
from controlplane.registry.reading import VerifiedReader, opened, rewinding
from controlplane.registry.store import Sent, Stored, check_key, check_prefix, is_key

CHUNK_BYTES = 1 << 20
LOCK_WAIT_S = 10.0
INCOMING, LOCKS = ".incoming", ".locks"


class DirectoryStore:
    """The ObjectStore over a directory, which is made with the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        if self._root.exists() and not self._root.is_dir():
            raise InvalidInput(f"{self._root} is not a directory", field="registry", remedy="name a directory")

    @property
    def url(self) -> str:
        """The directory's absolute path."""
        return str(self._root)

    def get(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""
        with _own_errors(key), self._path(key).open("rb") as file:
            return file.read(), _etag(os.fstat(file.fileno()))

    def head(self, key: str) -> Stored:
        """See ObjectStore."""
        with _own_errors(key):
            return _stored(key, self._path(key).stat())

    def put(self, key: str, content: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See ObjectStore."""
        path = self._path(key)
        with _own_errors(key), self._incoming() as (beside, file):
            file.write(content)
            _flush(file)
            with self._locked(key):
                present = _present(path)
                if if_absent and present is not None:
                    raise Conflict(f"{key} is there already")
                if if_match is not None and (present is None or _etag(present) != if_match):
                    raise Conflict(f"{key} was changed by somebody else")
                return _place(beside, path, present)

    def put_file(self, key: str, path: Path, *, sha256: str, size_bytes: int, sent: Sent = lambda _: None) -> None:
        """See ObjectStore."""
        target = self._path(key)
        with _own_errors(key), self._incoming() as (beside, file):
            with rewinding(sent) as counted, opened(path) as source:
                reader = VerifiedReader(source, path, sha256=sha256, size_bytes=size_bytes, sent=counted)
                while chunk := reader.read(CHUNK_BYTES):
                    file.write(chunk)
            _flush(file)
            with self._locked(key):
                _place(beside, target, _present(target))

    def chunks(self, key: str) -> Iterator[bytes]:
        """See ObjectStore."""
        with _own_errors(key), self._path(key).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def list(self, prefix: str) -> Iterator[Stored]:
        """See ObjectStore."""
        with _own_errors(prefix):
            start = self._root / check_prefix(prefix)
            yield from sorted((each for each in _walk(start, prefix) if is_key(each.key)), key=lambda each: each.key)

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with _own_errors(key), self._locked(key):
            self._path(key).unlink(missing_ok=True)

    def source(self, key: str, expires_s: int) -> str:
        """The object's absolute path, which is good for as long as the object is there."""
        return str(self._path(key))

    def sweep(self, before: datetime) -> int:
        """See ObjectStore."""
        swept = 0
        with _own_errors(INCOMING):
            for path in (self._root / INCOMING).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < before.timestamp():
                        path.unlink()
                        swept += 1
        return swept

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _made(self, name: str) -> Path:
        folder = self._root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, NotADirectoryError) as error:  # below a file, or in a file system that takes nothing
            what = f"the directory {self._root} can't be made: {error.strerror}"
            raise InvalidInput(what, field="registry", remedy="name a directory that can be") from error
        return folder

    @contextlib.contextmanager
    def _incoming(self) -> Iterator[tuple[Path, BinaryIO]]:
        folder = self._made(INCOMING)
        beside = folder / f"{os.getpid()}-{threading.get_ident()}-{secrets.token_hex(6)}"
        try:
            with beside.open("xb") as file:
                yield beside, file
        finally:
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the key's lock. It is the open file's, so threads exclude one another too, and death releases it."""
        folder = self._made(LOCKS)
        with (folder / hashlib.sha256(key.encode()).hexdigest()[:2]).open("ab") as file:
            deadline = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise Unavailable(
                            f"the lock {file.name} was not free for {LOCK_WAIT_S:.0f} s",
                            remedy="see which process holds it (`fuser`)",
                        ) from error
                    time.sleep(0.001 + 0.004 * secrets.randbelow(100) / 100)
            yield


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _present(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _place(beside: Path, path: Path, present: os.stat_result | None) -> str:
    """Put a whole file in its place, for good. Its time is made later than its predecessor's: no ETag comes back."""
    modified_ns = max(time.time_ns(), present.st_mtime_ns + 1 if present is not None else 0)
    os.utime(beside, ns=(modified_ns, modified_ns))
    _make_folder(path.parent)
    beside.replace(path)
    _flush_folder(path.parent)
    return _etag(path.stat())


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


def _stored(key: str, status: os.stat_result) -> Stored:
    if not stat.S_ISREG(status.st_mode):
        raise NotFound(f"{key} is not in the registry")
    modified = datetime.fromtimestamp(status.st_mtime, UTC)
    return Stored(key=key, etag=_etag(status), size_bytes=status.st_size, modified=modified)


def _walk(folder: Path, prefix: str) -> Iterator[Stored]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            with contextlib.suppress(FileNotFoundError, NotFound):
                yield _stored(f"{prefix}{entry.name}", entry.stat())


_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def _own_errors(key: str) -> Iterator[None]:
    try:
        yield
    except ControlPlaneError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"{key} is not in the registry") from error
    except PermissionError as error:
        raise Unauthenticated(
            f"{error.filename} may not be used: {error.strerror}", remedy="ask the directory's owner for access"
        ) from error
    except OSError as error:
        remedy = "make room on that disk" if error.errno in _FULL else "look at that disk"
        raise Unavailable(f"{key}: {error.strerror}", remedy=remedy) from error
