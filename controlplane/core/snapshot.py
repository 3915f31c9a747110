"""Everything known at one instant: what the registry says, what agents and gateways report, what was ordered before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from controlplane.core.load import Load, Scaler
from controlplane.core.messages import Copy, ReplicaReport
from controlplane.core.models import FleetRecord, Manifest, Model
from controlplane.core.names import Key, Place, Reason
from controlplane.core.routes import Endpoint, RouteTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times of the control plane, in seconds.

    `drain_s`: between the last gateway's confirmation that nothing leads to a version and its unloading: the longest
    unary request. `replica_lost_s`, `gateway_live_s`: how old a report may be before its sender no longer counts;
    `gateway_lost_s`: how long a silent gateway's routes are still honoured. `warm_s`: how long what was stable before
    stays loaded. `demand_s`: how long a request for a cold model counts. `settle_s`: how long a new controller waits
    for those that it knows only from gateways' tables. `starts_at_once`: how many replicas of a fleet start at the same
    time (None: whatever is missing). `max_replicas`, `max_gpus`: the budget of all fleets together (None: none).
    """

    drain_s: float = 30.0
    replica_lost_s: float = 45.0
    gateway_live_s: float = 45.0
    gateway_lost_s: float = 600.0
    starts_at_once: int | None = None
    warm_s: float = 600.0
    demand_s: float = 5.0
    settle_s: float = 15.0
    max_replicas: int | None = None
    max_gpus: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica as the controller knows it.

    `report` None: known only from a gateway's table or from the fleet backend. `copies` are by version; `ordered` is
    what the latest assignment says (None: this controller has not ordered anything of it yet). `crashed_at`: when its
    server ended unexpectedly, as far back as this controller has seen. `leaving`: who or what ends it, though nothing
    here asked for that (empty: nobody). `extra`: somebody has made it beside as many as there are to be, and ends one.
    """

    name: str
    fleet: str
    heard_at: float | None = None
    report: ReplicaReport | None = None
    endpoint: Endpoint | None = None
    copies: Mapping[Key, Copy] = field(default_factory=dict)
    ordered: frozenset[Key] | None = None
    crashed_at: tuple[float, ...] = ()
    leaving: str = ""
    extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """A gateway as the controller knows it.

    `table` is what it has confirmed, None while unknown; `pending` are the tables ordered since, which it may be
    putting into force right now. `active` counts requests in flight at draining replicas.
    """

    name: str
    heard_at: float
    table: RouteTable | None = None
    pending: tuple[RouteTable, ...] = ()
    active: Mapping[str, int] = field(default_factory=dict)

    def tables(self) -> Iterator[RouteTable]:
        """Each table that may be in force there."""
        if self.table is not None:
            yield self.table
        yield from self.pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What `plan` decides on. Everything in it was read before; nothing is looked up later.

    `manifests` holds those of all versions that are referred to, by digest. `demand`: when somebody last waited for a
    cold version; `waiting`: since when somebody does; `used`: when a version was last asked for, as far as this
    controller has heard. `leaving`: places that the plan before wanted to give up, with the time since when no gateway
    can be leading there any more (None: one still can). `stopping`: replicas on their way out, and why; `stopped`:
    those of them that were told to end. `loads` and `scalers` (what the plan before knew of them) are by fleet.
    `unread`: models whose document can't be read and never was by this controller: what they have, they keep.
    `settled` False: a new controller that has not heard from all yet; it adds, but takes nothing away. `clashes`: pairs
    of versions of one model, lower first, that one server can't hold at once, with the reason. `starting`: replicas
    whose start was seen not long ago, and has not ended. `rollouts`: since when this controller knows of each that
    runs, by id.
    """

    epoch: int = 0
    models: Mapping[str, Model] = field(default_factory=dict)
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    fleets: Mapping[str, FleetRecord] = field(default_factory=dict)
    replicas: Mapping[str, ReplicaView] = field(default_factory=dict)
    gateways: Mapping[str, GatewayView] = field(default_factory=dict)
    demand: Mapping[Key, float] = field(default_factory=dict)
    waiting: Mapping[Key, float] = field(default_factory=dict)
    used: Mapping[Key, float] = field(default_factory=dict)
    leaving: Mapping[Place, float | None] = field(default_factory=dict)
    stopping: Mapping[str, Reason] = field(default_factory=dict)
    stopped: frozenset[str] = frozenset()
    loads: Mapping[str, Load] = field(default_factory=dict)
    scalers: Mapping[str, Scaler] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    settled: bool = True
    clashes: Mapping[tuple[Key, Key], str] = field(default_factory=dict)
    starting: frozenset[str] = frozenset()
    rollouts: Mapping[str, float] = field(default_factory=dict)
    settings: Settings = Settings()

    def manifest(self, key: Key) -> Manifest | None:
        """The manifest of a version that is there and not deleted, if it has been read."""
        model = self.models.get(key.model)
        version = model.version(key.version) if model else None
        if version is None or version.deleted_at is not None:
            return None
        return self.manifests.get(version.digest)

    def is_registered(self, key: Key) -> bool:
        """Whether the version is there and not deleted."""
        model = self.models.get(key.model)
        version = model.version(key.version) if model else None
        return version is not None and version.deleted_at is None

    def digest(self, key: Key) -> str | None:
        """The digest of a version, deleted or not."""
        model = self.models.get(key.model)
        version = model.version(key.version) if model else None
        return version.digest if version else None
