"""What agents and gateways tell the controller, and what it answers. One call each: a report up, an order down.

Every order carries the controller's `epoch`; whoever has seen a higher one refuses it. `generation` numbers the orders
of one controller: the receiver reports the generation that it has made true (or is making true), and the controller's
answer waits (long poll) while there is nothing newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from controlplane.core.models import Capabilities, Manifest
from controlplane.core.routes import Endpoint, RouteTable

ServerState = Literal["starting", "ready", "down", "stopping", "stopped"]
CopyState = Literal["pending", "downloading", "loading", "ready", "failed", "unloading"]
IN_MEMORY: frozenset[CopyState] = frozenset(("loading", "ready", "unloading"))
"""The states in which a copy takes memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One model version on one replica.

    `ready` means proved: Triton says so, its metadata equals the entry, the example was answered. With `failed`,
    `reason` is a sentence for the model's owner, `blames` says whose fault it is: the `model` (trying again here is
    no use), the `environment` (download, disk: the agent goes on trying), or a `crash` of the server in this load.
    `memory_bytes` is what the load took, measured, `load_s` how long it took, in seconds, until it was proved (None for
    one that an earlier agent loaded); `last_used_at` (seconds since 1970) is the last inference.
    """

    model: str
    version: int
    digest: str
    state: CopyState
    reason: str = ""
    blames: Literal["", "model", "environment", "crash"] = ""
    memory_bytes: int | None = None
    load_s: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """An agent's report. `epoch` and `generation` are those of the assignment it holds; 0 and 0: none yet.

    `incarnation` changes with each start of the agent. `crashes` counts unexpected ends of the server since the agent
    took it over, `failed_starts` how often in a row it did not come up (0 once it has; agents that don't know the field
    say 0), `leaked_bytes` what unloading models did not give back since the server's start; `reason` says why the
    server is not ready. `told_to_stop`: by a controller; it ends, whatever else it is told.
    """

    replica: str
    fleet: str
    incarnation: str
    epoch: int = 0
    generation: int = 0
    server: ServerState
    reason: str = ""
    endpoint: Endpoint | None = None
    metrics_port: int | None = None
    capabilities: Capabilities | None = None
    copies: tuple[Copy, ...] = ()
    crashes: int = 0
    failed_starts: int = 0
    told_to_stop: bool = False
    leaked_bytes: int = 0
    disk_free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A version that a replica shall hold. `sources` maps each file's SHA-256 to an https URL or an absolute path."""

    model: str
    version: int
    digest: str
    manifest: Manifest
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """All that a replica shall hold; what it holds beyond that it gives up. `stop`: end the server, then yourself."""

    epoch: int
    generation: int
    wanted: tuple[Wanted, ...] = ()
    stop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests that wait at a gateway for a version that is loaded nowhere."""

    model: str
    version: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """Requests for a version that failed of late, by no fault of the clients.

    `replicas`: how many a second on each replica on which any did; what reached none is in `errors_per_s` alone. None:
    the gateway does not tell, since it is of an older release. `refused_per_s`: how many of them the gateway refused
    since there was too much.
    """

    model: str
    version: int
    errors_per_s: float
    replicas: Mapping[str, float] | None = None
    refused_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReport:
    """A gateway's report. `epoch` and `generation` are those of the table that Envoy has confirmed it serves.

    `table` is that table, sent when the controller asked for it. `refused`: epoch and generation of the newest table
    that it could not put into force; it takes up none that is older. `active` counts, for each draining replica, the
    requests still in flight there. `failing`: the versions whose requests failed in the last half minute. `ready`:
    clients may be sent there. `reason` says what keeps a newer table from being served, or it from being ready. `gone`:
    its last word; it has ended, and leads nobody anywhere any more.
    """

    gateway: str
    incarnation: str
    epoch: int = 0
    generation: int = 0
    ready: bool = True
    gone: bool = False
    reason: str = ""
    table: RouteTable | None = None
    refused: tuple[int, int] = (0, 0)
    demand: tuple[Demand, ...] = ()
    failing: tuple[Failing, ...] = ()
    active: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOrder:
    """The answer to a gateway. `table` None: nothing newer than what it has. `send_table`: report yours, whole."""

    epoch: int
    generation: int
    table: RouteTable | None = None
    send_table: bool = False
