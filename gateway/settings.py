"""What can be set about a gateway, read from `settings.json` in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le
from pydantic import TypeAdapter, ValidationError

from controlplane.core.errors import InvalidInput
from controlplane.core.routes import Pace

FILE = "settings.json"
MOST_IN_FLIGHT = 1_000_000_000
"""Envoy counts in 32 bits."""
GONE_S = 10
"""A machine that is gone says so by no packet: what its kernel has not acknowledged for so long is asked of another
replica, or fails. A server that is only busy has a kernel that answers."""
RETRY_AFTER_S = 1
"""When to ask again where too many requests are in flight. A constant: a place is free as soon as any of them ends,
which is mostly sooner than whole seconds can say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A gateway's settings. Ports of 0 are given by the system once and then kept.

    `max_request_bytes`: the largest request body (a unary gRPC message included); what is larger is refused.
    `max_heap_bytes`: above 95 % of it Envoy takes no new requests. `threads`: Envoy's worker threads, 0: one a CPU.
    `idle_timeout_s`: a request or stream on which nothing moves for so long is ended.
    `cold_wait_s`: how long a request waits at most for a model that is not loaded; `held_per_model`, `held_total`,
    `held_bytes` bound how many of them wait. `sequences`: how many sequences are remembered at once.
    `max_in_flight_per_replica`: how many requests for models of normal priority a pool of replicas may have in flight,
    for each of them; of high priority twice as many, counted apart. What is more is refused at once. `max_wait_s`: so
    is what would take longer than this, of a model of which more is asked than its replicas can do.
    `access_log_bytes`: the access log is put aside (one old file is kept) when it has grown to this.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    name: str = "gateway"
    address: str = "127.0.0.1"
    grpc_port: Annotated[int, Ge(0), Le(65535)] = 8001
    http_port: Annotated[int, Ge(0), Le(65535)] = 8000
    max_request_bytes: Annotated[int, Gt(0), Le(2**31 - 2**20)] = 80 << 20
    max_heap_bytes: Annotated[int, Gt(0)] = 4 << 30
    threads: Annotated[int, Ge(0)] = 0
    idle_timeout_s: Annotated[float, Gt(0)] = 3600.0
    cold_wait_s: Annotated[float, Gt(0)] = 60.0
    held_per_model: Annotated[int, Gt(0)] = 1024
    held_total: Annotated[int, Gt(0)] = 4096
    held_bytes: Annotated[int, Gt(0)] = 1 << 30
    sequences: Annotated[int, Gt(0)] = 100_000
    max_in_flight_per_replica: Annotated[int, Gt(0), Le(100_000)] = 1024
    max_wait_s: Annotated[float, Ge(2), Le(86_400)] = 10.0
    access_log_bytes: Annotated[int, Gt(0)] = 256 << 20

    def per_replica(self, pace: Pace | None) -> int:
        """How many requests of normal priority a pool may have in flight for each of its replicas. `pace`: what each
        does, where more is asked."""
        most = self.max_in_flight_per_replica
        return most if pace is None else min(most, pace.within(self.max_wait_s))


def in_all(per_replica: int, replicas: int, *, high: bool = False) -> int:
    """How many requests of normal or high priority a pool of so many replicas may have in flight."""
    return min(replicas * per_replica * (2 if high else 1), MOST_IN_FLIGHT)


def read_settings(folder: Path) -> Settings:
    """The settings in `folder`; the defaults where there is no file. Raises InvalidInput."""
    path = folder / FILE
    return read_settings_file(path) if path.exists() else Settings()


def read_settings_file(path: Path) -> Settings:
    """The settings in a file. Raises InvalidInput."""
    try:
        settings = TypeAdapter(Settings).validate_json(path.read_bytes())
        check(settings)
        return settings
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", remedy="see docs/gateway.md") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        raise InvalidInput(f"{path}: {first['msg']}", field=where, remedy="see docs/gateway.md") from error


def check(settings: Settings) -> None:
    """Raises InvalidInput for settings that can't go together."""
    if settings.grpc_port and settings.grpc_port == settings.http_port:
        raise InvalidInput(
            f"grpc_port and http_port are both {settings.grpc_port}",
            field="gateway.http_port",
            remedy="give each its own; 0 leaves the choice to the system",
        )


def write_settings(folder: Path, settings: Settings) -> None:
    """Keep `settings` in `folder`, for `read_settings`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(TypeAdapter(Settings).dump_json(settings, indent=1))
