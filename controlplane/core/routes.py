"""The route table: model name and version → replicas. What the controller decides and a gateway makes true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.core.entry import Priority
from controlplane.core.names import authority


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a replica answers. `draining`: it gets no new request and no new sequence, what is in flight ends there."""

    replica: str
    host: str
    grpc_port: int
    http_port: int
    draining: bool = False

    @property
    def grpc(self) -> str:
        """The address of its gRPC port."""
        return authority(self.host, self.grpc_port)

    @property
    def http(self) -> str:
        """The address of its HTTP port."""
        return authority(self.host, self.http_port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A share of a model's unversioned requests. `pool` None: the version is known, but loaded nowhere yet."""

    version: int
    pool: str | None
    weight_percent: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How requests for one model are led.

    `targets` is for unversioned requests (weights add up to 100; empty: nothing is stable yet), `pinned` for requests
    that name a version: every version that may be asked for is in it, None where it is loaded nowhere yet. A version
    that is in neither is NOT_FOUND. `sequence_idle_s` is set for models with sequence batching, whose unary requests
    take the Python side. `reasons` says by version why it is not served at present; those in `refused` no wait will
    bring, so that requests for them are refused at once. Under overload, requests for models of `high` priority are
    refused last.
    """

    model: str
    targets: tuple[Target, ...] = ()
    pinned: Mapping[int, str | None] = field(default_factory=dict)
    sequence_idle_s: float | None = None
    priority: Priority = "normal"
    reasons: Mapping[int, str] = field(default_factory=dict)
    refused: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one replica does of a version while there is always enough to do: so many requests a second, `at_once` of
    them at the same time."""

    per_s: float
    at_once: int

    def within(self, wait_s: float) -> int:
        """How many requests a replica may have so that none takes longer than `wait_s`; but never so few that its
        batches are not full, and the next ones ready."""
        return max(math.ceil(self.per_s * wait_s), 2 * self.at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """All routes at one instant.

    `pools` maps a pool's id to its replicas' names, sorted; routes share pools. `crowded`: pools for one version each,
    of which more is asked than its replicas can do; so what would wait there for too long is to be refused. `asleep`:
    there is no replica, or only ones that start for the first time, so that what is asked waits for them.
    """

    epoch: int = 0
    generation: int = 0
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    pools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    crowded: Mapping[str, Pace] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    asleep: bool = False
