"""An object store as the registry needs it: whole objects, compare-and-set on an ETag, blobs whole or absent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from controlplane.core.errors import InvalidInput

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"
_KEY = re.compile(f"{_PART}(?:/{_PART})*")

Sent = Callable[[int], None]
"""Told how many more bytes of a file have been read for sending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An object as a listing shows it. `etag` changes whenever the object does; `modified` is in UTC."""

    key: str
    etag: str
    size_bytes: int
    modified: datetime


class ObjectStore(Protocol):
    """One bucket's prefix, or one directory. Keys are relative to it: segments of letters, digits and ``_.-``.

    Safe to use from several threads. Each call has a deadline and retries passing faults itself, a few times. All of
    them raise Unavailable when the store does not answer, Unauthenticated when it refuses the credentials, and
    InvalidInput when the bucket isn't there or a key is none.
    """

    @property
    def url(self) -> str:
        """The address that `open_store` was given, made whole."""
        ...

    def get(self, key: str) -> tuple[bytes, str]:
        """The object's content and ETag. Raises NotFound."""
        ...

    def head(self, key: str) -> Stored:
        """What a listing would show of one object. Raises NotFound."""
        ...

    def put(self, key: str, content: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Write a small object whole and return its ETag; with a condition only while it holds, else Conflict."""
        ...

    def put_file(self, key: str, path: Path, *, sha256: str, size_bytes: int, sent: Sent = lambda _: None) -> None:
        """Store a file's content, which must have this digest.

        Raises InvalidInput, and stores nothing, when the file can't be read or what was read was something else. Until
        all of it is there, nobody sees any of it.
        """
        ...

    def chunks(self, key: str) -> Iterator[bytes]:
        """The object's content piece by piece. Raises NotFound at the first piece."""
        ...

    def list(self, prefix: str) -> Iterator[Stored]:
        """Every object below `prefix` (which ends with a slash, or is empty), in the keys' order.

        What somebody else has put there under a name that is no key is left out.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error when it is gone already."""
        ...

    def source(self, key: str, expires_s: int) -> str:
        """Where somebody without credentials reads the object: an absolute path, or a URL good for `expires_s`."""
        ...

    def sweep(self, before: datetime) -> int:
        """Remove what uploads that were cut off before this time left behind; returns how many there were."""
        ...


def is_key(key: str) -> bool:
    """Whether an object may be called so: nothing that could lead out of the store's root."""
    return _KEY.fullmatch(key) is not None and ".." not in key


def check_key(key: str) -> str:
    """`key`, when it can be one; else InvalidInput."""
    if not is_key(key):
        raise InvalidInput(
            f"{key!r} can't be a key in the registry",
            remedy="use letters, digits, '_', '-' and '.', each part beginning with a letter or digit",
        )
    return key


def check_prefix(prefix: str) -> str:
    """`prefix`, when it can be one: empty, or a key and a slash."""
    if prefix:
        check_key(prefix.removesuffix("/"))
        if not prefix.endswith("/"):
            raise InvalidInput(f"{prefix!r} can't be a prefix in the registry", remedy="end it with a slash")
    return prefix


def changed_under_way(path: Path) -> InvalidInput:
    """The error for a file that is no longer what it was when its digest was taken."""
    return InvalidInput(
        f"{path} changed while it was being registered", remedy="register again when nothing writes to it any more"
    )
