"""What things are called everywhere: a version, a version's place, the reason for something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """A model's version."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


def authority(host: str, port: int) -> str:
    """``host:port``, as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Place(NamedTuple):
    """A version on a replica."""

    key: Key
    replica: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something was decided or is as it is: a stable code and a sentence for people."""

    code: str
    text: str


def mib(size_bytes: int) -> str:
    """A number of bytes, as it is said to people."""
    return f"{size_bytes / (1 << 20):.0f} MiB"
