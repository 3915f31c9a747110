"""What the controller has heard, and the snapshot it makes of it. After a restart all of it can be heard again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import structlog

from controlplane.core.load import Load
from controlplane.core.messages import Copy, GatewayReport, ReplicaReport
from controlplane.core.models import FleetRecord, FleetShape, Manifest, Model
from controlplane.core.names import Key
from controlplane.core.plan import Plan
from controlplane.core.routes import Endpoint, RouteTable
from controlplane.core.snapshot import GatewayView, ReplicaView, Settings, Snapshot
from controlplane.fleet.protocol import FleetReplica
from controlplane.server.orders import Orders

log = structlog.get_logger(__name__)

CRASHES_KEPT = 10
LONGEST_START_S = 300.0
"""A replica that is not up after that holds nobody else's start up."""
UNREAD = "unread"
"""In place of a digest that can't be known because the model's document can't be read."""


@dataclass(slots=True)
class HeardGateway:
    """A gateway's last report. `confirmed` is the table it serves; None until that is known."""

    report: GatewayReport
    heard_at: float
    confirmed: RouteTable | None = None


@dataclass(slots=True)
class Start:
    """A replica's start. Times are in seconds since 1970; `idle_s`: how long its server was ready and had nothing to
    load, `idle_since` the last time (None: it has); `took_s`: how long the start took without that, once its first
    model is ready."""

    began: float
    idle_s: float = 0.0
    idle_since: float | None = None
    took_s: float | None = None

    def end(self, now: float) -> None:
        """Its first model is ready."""
        if self.took_s is None:
            self.took_s = max(now - self.began - self._idle_s(now), 0.0)

    def note(self, now: float, *, idle: bool) -> None:
        """Whether it waits for something to load now."""
        if not idle:
            self.idle_s, self.idle_since = self._idle_s(now), None
        elif self.idle_since is None:
            self.idle_since = now

    def _idle_s(self, now: float) -> float:
        return self.idle_s + (now - self.idle_since if self.idle_since is not None else 0.0)


@dataclass(slots=True)
class Memory:
    """The controller's view of the world, kept by the event loop's thread alone."""

    started_at: float
    settings: Settings
    shapes: Mapping[str, FleetShape]
    models: dict[str, Model] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    fleets: dict[str, FleetRecord] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    reports: dict[str, tuple[ReplicaReport, float]] = field(default_factory=dict)
    gateways: dict[str, HeardGateway] = field(default_factory=dict)
    present_gateways: frozenset[str] = frozenset()
    """Those that the backend has and that have not said that they have ended, heard of or not."""
    ended_gateways: set[str] = field(default_factory=set)
    backend_replicas: dict[str, FleetReplica] = field(default_factory=dict)
    ghosts: dict[str, tuple[Endpoint, set[Key]]] = field(default_factory=dict)
    """Replicas of tables that an earlier controller ordered: unknown is not gone."""
    demand: dict[Key, float] = field(default_factory=dict)
    waiting: dict[Key, float] = field(default_factory=dict)
    """Since when somebody waits for a cold version."""
    used: dict[Key, float] = field(default_factory=dict)
    """When versions were last asked for. Their replicas may be gone since."""
    loads: dict[str, Load] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)
    """Of each replica, until it is measured how long its start took."""
    crashed_at: dict[str, tuple[float, ...]] = field(default_factory=dict)
    rollouts: dict[str, float] = field(default_factory=dict)
    """Since when those that run are known, by id."""
    last_plan: Plan = field(default_factory=Plan)
    settled: bool = False
    may_order: bool = False
    """Whether a plan for the last snapshot may be ordered: one that knew of nothing that serves would end it. What is
    heard while it is planned for is in the next one."""

    # Hearing.

    def clock_stepped(self, step_s: float, now: float) -> None:
        """The clock was set by `step_s`, or the machine slept for that long: nobody has been silent meanwhile."""

        def shifted(at: float) -> float:
            return min(at + step_s, now) if step_s > 0 or at > now else at

        self.reports = {name: (report, shifted(at)) for name, (report, at) in self.reports.items()}
        self.gateways = {name: replace(each, heard_at=shifted(each.heard_at)) for name, each in self.gateways.items()}
        self.started_at = shifted(self.started_at)
        self.demand = {key: shifted(at) for key, at in self.demand.items()}
        self.waiting = {key: shifted(at) for key, at in self.waiting.items()}
        self.used = {key: shifted(at) for key, at in self.used.items()}
        self.rollouts = {name: shifted(at) for name, at in self.rollouts.items()}
        self.crashed_at = {name: tuple(map(shifted, times)) for name, times in self.crashed_at.items()}
        for start in self.starts.values():
            start.began, start.idle_since = shifted(start.began), _each(shifted, start.idle_since)
        leaving = {place: _each(shifted, at) for place, at in self.last_plan.leaving.items()}
        scalers = {name: each.shifted(shifted) for name, each in self.last_plan.scalers.items()}
        self.last_plan = replace(self.last_plan, leaving=leaving, scalers=scalers)

    def hear_replica(self, report: ReplicaReport, now: float) -> None:
        """Take an agent's report."""
        before = self.reports.get(report.replica)
        if before is not None and before[0].incarnation == report.incarnation and report.crashes > before[0].crashes:
            times = (now,) * (report.crashes - before[0].crashes)
            self.crashed_at[report.replica] = (*self.crashed_at.get(report.replica, ()), *times)[-CRASHES_KEPT:]
        self.reports[report.replica] = (report, now)
        if report.replica in self.starts and any(copy.state == "ready" for copy in report.copies):
            self.starts[report.replica].end(now)
        for copy in report.copies:
            if copy.last_used_at is not None:
                key = Key(copy.model, copy.version)
                self.used[key] = max(copy.last_used_at, self.used.get(key, 0.0))

    def hear_gateway(self, report: GatewayReport, orders: Orders, now: float) -> HeardGateway:
        """Take a gateway's report. What it serves is known by its generation, or from the table it sent along."""
        self.ended_gateways.discard(report.gateway)
        before = self.gateways.get(report.gateway)
        confirmed = report.table
        if confirmed is None and report.epoch == orders.epoch:
            confirmed = orders.table_of(report.generation)
        if confirmed is None and report.generation == 0:
            confirmed = RouteTable()  # a new one, which serves nothing
        if confirmed is None and before is not None and before.confirmed is not None:
            same = (before.confirmed.epoch, before.confirmed.generation) == (report.epoch, report.generation)
            confirmed = before.confirmed if same else None
        heard = HeardGateway(report, now, confirmed)
        self.gateways[report.gateway] = heard
        if confirmed is not None and confirmed.epoch != orders.epoch and not self.settled:
            for name, keys in served_by(confirmed).items():
                _, known = self.ghosts.get(name, (None, set()))
                self.ghosts[name] = (confirmed.endpoints[name], keys | known)
        for each in report.demand:
            self._hear_demand(Key(each.model, each.version), now)
        return heard

    def gateway_ended(self, name: str) -> None:
        """It has said so, and leads nobody anywhere, whether the backend has it still or not."""
        self.gateways.pop(name, None)
        self.ended_gateways.add(name)

    def forget_replica(self, name: str) -> None:
        """The replica is gone."""
        self.reports.pop(name, None)
        self.backend_replicas.pop(name, None)
        self.starts.pop(name, None)
        self.crashed_at.pop(name, None)

    def note_starts(self, made: Plan, now: float) -> None:
        """See which replicas that are starting have nothing to load: nothing is ordered, or nothing that can be."""
        for name, start in self.starts.items():
            report, _ = self.reports.get(name, (None, 0.0))
            if report is not None:
                failed = {Key(each.model, each.version) for each in report.copies if each.state == "failed"}
                start.note(now, idle=report.server == "ready" and not made.holds.get(name, frozenset()) - failed)

    def take_gateways(self, present: Collection[str] | None, now: float) -> None:
        """Take those that the backend has (None: it can't tell). Of the others, those that are silent are gone: it may
        not have seen yet one that has just begun to speak."""
        self.ended_gateways &= set(present or ())
        self.present_gateways = frozenset(present or ()) - self.ended_gateways
        for name in self.gateways.keys() - set(self.gateways if present is None else present):
            if now - self.gateways[name].heard_at > self.settings.gateway_live_s:
                log.info("a gateway is gone", gateway=name)
                del self.gateways[name]

    # The snapshot.

    def snapshot(self, orders: Orders, clash: Callable[[Manifest, Manifest], str | None], now: float) -> Snapshot:
        """Everything known now. `clash` says why two versions can't be on one server, if they can't."""
        self._refresh_demand(now)
        running = [each.running_rollout for each in self.models.values()]
        self.rollouts = {each.id: self.rollouts.get(each.id, now) for each in running if each is not None}
        replicas = self._replicas(orders)
        self.settled = self.settled or self._has_settled(replicas, now)
        # A fleet's shape is the deployment's word; its record in the registry only adds what was learned.
        fleets = {
            name: replace(self.fleets[name], shape=shape) if name in self.fleets else FleetRecord(shape=shape)
            for name, shape in self.shapes.items()
        }
        self.may_order = self.settled or self._knows_what_is_led()
        return Snapshot(
            epoch=orders.epoch,
            models=dict(self.models),
            manifests=self.manifests,
            fleets=fleets,
            replicas=replicas,
            gateways=self._unheard()
            | {name: self._gateway(name, each, orders) for name, each in self.gateways.items()},
            demand=dict(self.demand),
            waiting=dict(self.waiting),
            used=dict(self.used),
            leaving=self.last_plan.leaving,
            stopping=self.last_plan.stopping,
            stopped=frozenset(name for name in self.last_plan.stop if orders.is_told_to_stop(name)),
            loads=dict(self.loads),
            scalers=self.last_plan.scalers,
            unread=frozenset(name for name in map(_model_of, self.problems) if name and name not in self.models),
            settled=self.settled,
            clashes=dict(self._clashes(clash)),
            starting=frozenset(name for name, each in self.starts.items() if now - each.began < LONGEST_START_S),
            rollouts=dict(self.rollouts),
            settings=self.settings,
        )

    def live_gateways(self, now: float) -> Sequence[GatewayReport]:
        """What those gateways say that were heard of late."""
        live_s = self.settings.gateway_live_s
        return [heard.report for heard in self.gateways.values() if now - heard.heard_at <= live_s]

    def held(self, now: float) -> Mapping[Key, int]:
        """How many requests wait at all gateways, by version."""
        found: dict[Key, int] = defaultdict(int)
        for report in self.live_gateways(now):
            for each in report.demand:
                found[Key(each.model, each.version)] += each.waiting
        return found

    def failing(self, now: float) -> Mapping[Key, float]:
        """How many requests a second failed of late at all gateways, by version."""
        found: dict[Key, float] = defaultdict(float)
        for report in self.live_gateways(now):
            for each in report.failing:
                found[Key(each.model, each.version)] += each.errors_per_s
        return found

    def refused(self, now: float) -> Mapping[Key, float]:
        """How many requests a second all gateways have refused of late since there was too much, by version."""
        found: dict[Key, float] = defaultdict(float)
        for report in self.live_gateways(now):
            for each in report.failing:
                found[Key(each.model, each.version)] += each.refused_per_s
        return found

    def failing_on(self, key: Key, now: float) -> Mapping[str, float] | None:
        """How many requests a second for a version failed of late on each replica, as all gateways count them.

        None where it is not known: no gateway is heard, or one knows of failures and does not tell where they were.
        """
        reports = self.live_gateways(now)
        told = [each for report in reports for each in report.failing if Key(each.model, each.version) == key]
        if not reports or any(each.replicas is None for each in told):
            return None
        found: dict[str, float] = defaultdict(float)
        for each in told:
            for replica, errors_per_s in (each.replicas or {}).items():
                found[replica] += errors_per_s
        return found

    def _refresh_demand(self, now: float) -> None:
        """What somebody still waits for is asked for now; the rest is forgotten after a while."""
        held = {key for key, waiting in self.held(now).items() if waiting}
        for key in held:
            self._hear_demand(key, now)
        # Who asks again a moment later has not lost its place.
        again = {key for key in self.waiting if now - self.demand[key] <= self.settings.demand_s}
        held |= {key for key in again if not self._leads(key)}
        self.waiting = {key: self.waiting.get(key, now) for key in held}
        for key in [key for key, at in self.demand.items() if now - at > 10 * self.settings.demand_s]:
            del self.demand[key]

    def _leads(self, key: Key) -> bool:
        """Whether requests for a version go somewhere."""
        route = self.last_plan.table.routes.get(key.model)
        return route is not None and route.pinned.get(key.version) is not None

    def _hear_demand(self, key: Key, now: float) -> None:
        self.demand[key] = self.used[key] = now

    def _replicas(self, orders: Orders) -> dict[str, ReplicaView]:
        views = {
            name: ReplicaView(name=name, fleet=each.fleet, leaving=_leaving(each), extra=each.extra)
            for name, each in self.backend_replicas.items()
            if each.fleet in self.shapes
        }
        if not self.settled:
            ghosts = {name: self._ghost(name) for name in self.ghosts}
            views.update({name: each for name, each in ghosts.items() if each.fleet in self.shapes})
        for name, (report, heard_at) in self.reports.items():
            views[name] = ReplicaView(
                name=name,
                fleet=report.fleet,
                heard_at=heard_at,
                report=report,
                endpoint=report.endpoint,
                copies=dict(_copies(report, orders)),
                ordered=orders.ordered(name),
                crashed_at=self.crashed_at.get(name, ()),
                leaving=_leaving(self.backend_replicas.get(name)),
                extra=name in self.backend_replicas and self.backend_replicas[name].extra,
            )
        return views

    def _ghost(self, name: str) -> ReplicaView:
        endpoint, keys = self.ghosts[name]
        known = self.backend_replicas.get(name)
        digests = {key: self._digest(key) if key.model in self.models else UNREAD for key in sorted(keys)}
        return ReplicaView(
            name=name,
            fleet=known.fleet if known is not None else name.rpartition("-")[0],
            endpoint=endpoint,
            copies={
                key: Copy(model=key.model, version=key.version, digest=digest, state="ready")
                for key, digest in digests.items()
                if digest is not None
            },
        )

    def _digest(self, key: Key) -> str | None:
        model = self.models.get(key.model)
        version = model.version(key.version) if model else None
        return version.digest if version else None

    def _has_settled(self, replicas: Mapping[str, ReplicaView], now: float) -> bool:
        if now - self.started_at > self.settings.settle_s:
            return True
        everyone = all(each.report is not None and each.report.server != "starting" for each in replicas.values())
        return self._knows_what_is_led() and bool(replicas) and everyone

    def _knows_what_is_led(self) -> bool:
        """Whether every gateway has said what it serves. A new one, which serves nothing, speaks for no other."""
        silent = [name for name, each in self.gateways.items() if each.confirmed is None]
        return bool(self.gateways) and not silent and self.present_gateways <= self.gateways.keys()

    def _unheard(self) -> dict[str, GatewayView]:
        """Those that are there and have said nothing yet: they may lead anywhere, for as long as one that has become
        silent may."""
        return {name: GatewayView(name=name, heard_at=self.started_at) for name in self.present_gateways}

    def _gateway(self, name: str, heard: HeardGateway, orders: Orders) -> GatewayView:
        return GatewayView(
            name=name,
            heard_at=heard.heard_at,
            table=heard.confirmed,
            pending=orders.pending(heard.report),
            active=heard.report.active,
        )

    def _clashes(self, clash: Callable[[Manifest, Manifest], str | None]) -> Iterable[tuple[tuple[Key, Key], str]]:
        for model in self.models.values():
            numbers = sorted(referred_versions(model))
            for lower, higher in combinations(numbers, 2):
                one, other = Key(model.name, lower), Key(model.name, higher)
                a, b = (self.manifests.get(self._digest(key) or "") for key in (one, other))
                why = clash(a, b) if a is not None and b is not None else None
                if why is not None:
                    yield (one, other), why


def _each(shifted: Callable[[float], float], at: float | None) -> float | None:
    return None if at is None else shifted(at)


def _leaving(replica: FleetReplica | None) -> str:
    """Why it leaves, if the backend says that somebody ends it."""
    return (replica.reason or "somebody ends it") if replica is not None and replica.state == "leaving" else ""


def _model_of(key: str) -> str | None:
    """The model whose document has this key."""
    return key.removeprefix("models/").removesuffix(".json") if key.startswith("models/") else None


def _copies(report: ReplicaReport, orders: Orders) -> Iterable[tuple[Key, Copy]]:
    for copy in report.copies:
        key = Key(copy.model, copy.version)
        outdated = orders.outdated(report.replica, key, report.epoch, report.generation)
        yield key, replace(copy, state="pending", reason="ordered again") if outdated else copy


def served_by(table: RouteTable) -> dict[str, set[Key]]:
    """By replica, the versions that a table leads there."""
    served: dict[str, set[Key]] = {name: set() for name in table.endpoints}
    for route in table.routes.values():
        pools = [(target.version, target.pool) for target in route.targets] + list(route.pinned.items())
        for version, pool in pools:
            for name in table.pools.get(pool or "", ()):
                served.setdefault(name, set()).add(Key(route.model, version))
    return {name: keys for name, keys in served.items() if name in table.endpoints}


def referred_versions(model: Model) -> set[int]:
    """The versions that something points at."""
    numbers = set(model.aliases.values())
    if model.rollout is not None:
        numbers |= {model.rollout.target} | ({model.rollout.source} if model.rollout.source else set())
    return numbers
