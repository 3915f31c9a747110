"""What a gateway must find again when its Python part starts anew: its ports, the table in force, the highest epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from pydantic import TypeAdapter

from controlplane.core.routes import RouteTable
from controlplane.local.home import replace_file

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports in use: the two that clients see, and the Python side's own two (0: not chosen yet). `from_system`: the
    settings that left the choice to the system, which is kept."""

    grpc: int = 0
    http: int = 0
    side_grpc: int = 0
    side_http: int = 0
    from_system: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The table that Envoy has confirmed.

    `lingering`: clusters of earlier tables that no route leads to any more, with their replicas; they stay until
    nothing is in flight there, so that what is can be counted.
    """

    table: RouteTable = field(default_factory=RouteTable)
    lingering: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The highest epoch whose orders were taken."""

    epoch: int = 0


T = TypeVar("T")


class Kept(Generic[T]):
    """One value in one file, replaced as a whole."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._path = path
        self._adapter = TypeAdapter(kind)
        self.value: T = self._read(kind)
        self._unwritten = self._failing = False

    def _read(self, kind: type[T]) -> T:
        try:
            return self._adapter.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return kind()
        except ValueError as error:
            log.warning("a state file can't be read; starting without it", path=str(self._path), error=str(error))
            return kind()

    def keep(self, value: T) -> None:
        """Replace the value, on the disk as soon as that can be written."""
        self.value = value
        self._unwritten = True
        self.write()

    def write(self) -> None:
        """Write the value if it could not be written when it came."""
        if not self._unwritten:
            return
        try:
            replace_file(self._path, self._adapter.dump_json(self.value).decode())
        except OSError as error:
            if not self._failing:
                log.error("a state file can't be written; that is tried again", path=str(self._path), error=str(error))
            self._failing = True
        else:
            self._unwritten = self._failing = False
