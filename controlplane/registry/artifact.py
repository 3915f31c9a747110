"""From a local file or folder to the files of a version: which ones, and what their digests are."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from controlplane.core.errors import InvalidInput
from controlplane.core.models import ArtifactFile
from controlplane.registry.reading import opened
from controlplane.registry.store import Sent, changed_under_way

MAX_FILES = 20_000
MAX_PATH_BYTES, MAX_PART_BYTES = 1000, 255
PARALLEL_HASHES = 4
LEFT_OUT = frozenset({"__pycache__", ".git", ".DS_Store", ".ipynb_checkpoints"})
"""Never part of an artifact, wherever it lies."""


def collect(path: Path) -> dict[str, Path]:
    """The files of an artifact: path inside the version → local file.

    `path` is one file, or a folder that is taken whole. Links to files inside the folder are followed. Raises
    InvalidInput for links that lead out of it, for anything that is not a plain file, and for names that can't be kept.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} can't be read: {error}", remedy="name a model file or a folder") from error
    if stat.S_ISREG(status.st_mode):
        return {check_path(path.name): path}
    if not stat.S_ISDIR(status.st_mode):
        raise _special(path)
    root = path.resolve()
    files: dict[str, Path] = {}
    for inside, found in _walk(root, ""):
        files[check_path(inside)] = _inside(found, root)
        if len(files) > MAX_FILES:
            raise InvalidInput(
                f"{path} holds more than {MAX_FILES} files", remedy="pack them, or name a smaller folder"
            )
    if not files:
        raise InvalidInput(f"{path} holds no file", remedy="name the folder that holds the model")
    return dict(sorted(files.items()))


def check_path(inside: str) -> str:
    """A path inside a version, when it can be one: relative, forward slashes, nothing that leads elsewhere."""
    parts = inside.split("/")
    try:
        too_long = len(inside.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts)
    except UnicodeEncodeError:
        too_long = True
    if too_long or not inside.isprintable() or "\\" in inside or any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(
            f"{inside!r} can't be a path inside a version",
            field="files",
            remedy="a relative path of printable characters with '/' between its parts",
        )
    return inside


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidInput(f"{folder} can't be read: {error.strerror}", remedy="make it readable") from error
    for entry in entries:
        if entry.name in LEFT_OUT:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", folder / entry.name


def _inside(found: Path, root: Path) -> Path:
    """The plain file that `found` is, or leads to, inside `root`."""
    remedy = "copy what it leads to into the folder (`cp -rL`)"
    try:
        real = found.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"{found} is a link that leads nowhere", field="files", remedy=remedy) from error
    if not real.is_relative_to(root):
        raise InvalidInput(f"{found} leads out of {root}, to {real}", field="files", remedy=remedy)
    if real.is_dir():
        raise InvalidInput(f"{found} is a link to a folder", field="files", remedy=remedy)
    if not real.is_file():
        raise _special(found)
    return real


def _special(path: Path) -> InvalidInput:
    return InvalidInput(f"{path} is no plain file", field="files", remedy="leave out sockets, pipes and devices")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What tells whether a file is still the one that was hashed."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashed:
    """An artifact whose digests are known: the files as a manifest lists them, and where each lies."""

    files: tuple[ArtifactFile, ...]
    paths: Mapping[str, Path]
    _seen: Mapping[str, _Seen]

    def check_unchanged(self) -> None:
        """Raise InvalidInput when a file is no longer the one that was hashed."""
        for inside, path in self.paths.items():
            if _look(path) != self._seen[inside]:
                raise changed_under_way(path)


def hash_files(files: Mapping[str, Path], begin: Callable[[int], Sent] = lambda _: lambda _: None) -> Hashed:
    """Read every file for its SHA-256, several at a time.

    `begin` is told how many bytes there are in all, and returns what is told how many more have been read.
    """
    ordered = sorted(files)
    seen = {inside: _look(files[check_path(inside)]) for inside in ordered}
    hashed = begin(sum(each.size_bytes for each in seen.values()))

    def one(inside: str) -> ArtifactFile:
        digest, size_bytes = hashlib.sha256(), 0
        with opened(files[inside]) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size_bytes += len(chunk)
                hashed(len(chunk))
        return ArtifactFile(path=inside, sha256=digest.hexdigest(), size_bytes=size_bytes)

    with ThreadPoolExecutor(PARALLEL_HASHES, thread_name_prefix="hash") as pool:
        made = Hashed(files=tuple(pool.map(one, ordered)), paths={each: files[each] for each in ordered}, _seen=seen)
    made.check_unchanged()
    return made


def _look(path: Path) -> _Seen:
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", field="files") from error
    if not stat.S_ISREG(status.st_mode):
        raise _special(path)
    return _Seen(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
