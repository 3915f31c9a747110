"""Reads a file for sending and holds it to the digest that it had before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from controlplane.core.errors import InvalidInput
from controlplane.registry.store import Sent, changed_under_way


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A local file, open for reading. Raises InvalidInput when it can't be read."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidInput(
            f"{path} can't be read: {error.strerror}", remedy="name a file that is there and readable"
        ) from error
    with file:
        yield file


@contextmanager
def rewinding(sent: Sent) -> Iterator[Sent]:
    """Pass progress on to `sent`, and take it back when the attempt fails."""
    total_bytes = 0

    def counted(size_bytes: int) -> None:
        nonlocal total_bytes
        total_bytes += size_bytes
        sent(size_bytes)

    try:
        yield counted
    except BaseException:
        sent(-total_bytes)
        raise


class VerifiedReader:
    """A file's content, once from the start to the end.

    The read that reaches the end raises InvalidInput unless all that was read has the digest and size announced, so
    that whoever sends it on never gets to complete a wrong upload.
    """

    def __init__(self, file: BinaryIO, path: Path, *, sha256: str, size_bytes: int, sent: Sent) -> None:
        self._file = file
        self._path = path
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._sent = sent
        self._hash = hashlib.sha256()
        self._read_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes (fewer only at the end; all that is left when negative)."""
        content = self._file.read(size if size >= 0 else -1)
        self._hash.update(content)
        self._read_bytes += len(content)
        at_end = self._read_bytes >= self._size_bytes or size < 0 or len(content) < size
        if at_end and not self._is_whole():
            raise changed_under_way(self._path)
        if content:
            self._sent(len(content))
        return content

    def _is_whole(self) -> bool:
        return self._read_bytes == self._size_bytes and self._hash.hexdigest() == self._sha256
