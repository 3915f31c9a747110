"""A pretended world around the pure core: agents and gateways that do as told, in an order the test chooses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from controlplane.core.actions import FinishRollout, QuarantineVersion, RecordFleet, RemoveReplica, StartReplica
from controlplane.core.entry import EnsembleStep, Entry, Resources, Serving
from controlplane.core.load import Load
from controlplane.core.messages import Assignment, Copy, GatewayReport, ReplicaReport, Wanted
from controlplane.core.models import (
    ArtifactFile,
    Capabilities,
    FleetRecord,
    FleetShape,
    Manifest,
    Model,
    Quarantine,
    Rollout,
    Version,
)
from controlplane.core.names import Key
from controlplane.core.plan import Plan, plan
from controlplane.core.routes import Endpoint, RouteTable
from controlplane.core.snapshot import Settings
from controlplane.fleet.protocol import FleetReplica
from controlplane.server.memory import Memory, Start
from controlplane.server.orders import Orders

MIB = 1 << 20
SETTINGS = Settings(drain_s=3, warm_s=30, replica_lost_s=20, gateway_live_s=20, gateway_lost_s=60, settle_s=10)


def manifest(name: str, *, size_mib: int = 100, **entry: Any) -> Manifest:
    serving = entry.pop("serving", Serving())
    return Manifest(
        entry=Entry(
            name=name,
            backend=entry.pop("backend", "onnxruntime"),
            resources=Resources(memory_bytes=size_mib * MIB),
            serving=serving,
            **entry,
        ),
        files=(ArtifactFile(path="model.onnx", sha256="0" * 64, size_bytes=1),),
    )


def ensemble(name: str, *steps: Key) -> Manifest:
    return manifest(
        name,
        size_mib=1,
        backend="ensemble",
        ensemble=tuple(
            EnsembleStep(model_name=step.model, model_version=step.version, input_map={}, output_map={})
            for step in steps
        ),
    )


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@dataclass
class Registry:
    models: dict[str, Model] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    fleets: dict[str, FleetRecord] = field(default_factory=dict)
    ids: Any = field(default_factory=itertools.count)

    def register(self, made: Manifest, now: float) -> Key:
        name = made.entry.name
        model = self.models.get(name, Model(name=name))
        number = len(model.versions) + 1
        digest = f"{name}-{number}"
        self.manifests[digest] = made
        version = Version(number=number, digest=digest, created_at=at(now), actor="test")
        self.models[name] = replace(model, versions=(*model.versions, version))
        return Key(name, number)

    def promote(self, key: Key, now: float, **options: Any) -> None:
        model = self.models[key.model]
        if model.running_rollout is not None or model.stable == key.version:
            return
        rollout = Rollout(
            id=f"r{next(self.ids)}",
            source=model.stable,
            target=key.version,
            actor="test",
            started_at=at(now),
            **options,
        )
        self.models[key.model] = replace(model, rollout=rollout)

    def finish(self, action: FinishRollout, now: float) -> None:
        model = self.models[action.model]
        rollout = model.running_rollout
        if rollout is None or rollout.id != action.rollout:
            return
        ended = replace(rollout, state=action.state, reason=action.reason, ended_at=at(now))
        if action.state == "failed":
            self.models[action.model] = replace(model, rollout=ended)
        else:
            self.models[action.model] = replace(
                model,
                rollout=ended,
                aliases={**model.aliases, "stable": rollout.target},
                previous_stable=model.stable,
            )

    def retire(self, name: str) -> None:
        model = self.models[name]
        self.models[name] = replace(model, aliases={}, previous_stable=model.stable)

    def delete(self, key: Key, now: float) -> None:
        model = self.models[key.model]
        self.models[key.model] = replace(
            model,
            versions=tuple(
                replace(each, deleted_at=at(now)) if each.number == key.version else each for each in model.versions
            ),
        )


@dataclass
class Replica:
    name: str
    fleet: str
    number: int
    copies: dict[Key, Copy] = field(default_factory=dict)
    assignment: Assignment | None = None
    server: Any = "starting"
    silent: bool = False
    crashes: int = 0
    failed_starts: int = 0
    leaked_bytes: int = 0
    told_to_stop: bool = False
    crashed: bool = False
    """It may have been led to what it lost when its server ended."""

    def take(self, assignment: Assignment | None) -> None:
        if assignment is None:
            return
        if self.assignment is not None and assignment.epoch < self.assignment.epoch:
            return
        self.assignment = assignment
        wanted = {Key(each.model, each.version): each for each in assignment.wanted}
        for key in set(self.copies) - set(wanted):
            del self.copies[key]
        for key, each in wanted.items():
            if key not in self.copies or self.copies[key].digest != each.digest:
                self.copies[key] = Copy(model=key.model, version=key.version, digest=each.digest, state="pending")
        if assignment.stop:
            self.server, self.copies, self.told_to_stop = "stopped", {}, True

    def work(self, bad: dict[Key, Any], load_s: dict[Key, float]) -> None:
        """Each copy goes one state further. `load_s`: how long loads took, as the agent tells it."""
        if self.server in ("starting", "down"):
            self.server, self.failed_starts = "ready", 0
            return
        if self.server != "ready":
            return
        steps: dict[str, Any] = {"pending": "downloading", "downloading": "loading", "loading": "ready"}
        for key, copy in self.copies.items():
            state = steps.get(copy.state, copy.state)
            if state == "ready" and key in bad and copy.state != "ready":
                blames = bad[key]
                self.copies[key] = replace(copy, state="failed", blames=blames, reason="it is bad")
            else:
                took_s = load_s.get(key) if state == "ready" and copy.state != "ready" else copy.load_s
                self.copies[key] = replace(copy, state=state, load_s=took_s)

    def crash(self) -> None:
        self.server = "starting"
        self.crashes += 1
        self.leaked_bytes = 0
        self.copies = {key: replace(copy, state="pending") for key, copy in self.copies.items()}

    def report(self) -> ReplicaReport:
        return ReplicaReport(
            replica=self.name,
            fleet=self.fleet,
            incarnation="one",
            epoch=self.assignment.epoch if self.assignment else 0,
            generation=self.assignment.generation if self.assignment else 0,
            server=self.server,
            endpoint=Endpoint(replica=self.name, host="127.0.0.1", grpc_port=1000 + self.number, http_port=1),
            capabilities=Capabilities(server_version="2.51.0", backends=("python",)),
            copies=tuple(self.copies.values()),
            crashes=self.crashes,
            failed_starts=self.failed_starts,
            leaked_bytes=self.leaked_bytes,
            told_to_stop=self.told_to_stop,
        )


@dataclass
class Gateway:
    name: str
    table: RouteTable = field(default_factory=RouteTable)
    ordered: RouteTable | None = None
    demand: Any = ()
    in_flight: dict[str, int] = field(default_factory=dict)
    asked: bool = False

    def apply(self) -> None:
        if self.ordered is not None:
            self.table, self.ordered = self.ordered, None

    def report(self) -> GatewayReport:
        return GatewayReport(
            gateway=self.name,
            incarnation="one",
            epoch=self.table.epoch,
            generation=self.table.generation,
            table=self.table if self.asked else None,
            demand=self.demand,
            active={n: self.in_flight.get(n, 0) for n, each in self.table.endpoints.items() if each.draining},
        )


class World:
    """A registry, replicas, gateways and one controller, stepped by hand."""

    def __init__(
        self, replicas: int = 2, *, most: int | None = None, memory_mib: int = 1000, gateways: int = 1, **shape: Any
    ) -> None:
        self.now = 1_000_000.0
        self.registry = Registry()
        self.shape = FleetShape(
            name="cpu",
            min_replicas=replicas,
            max_replicas=replicas if most is None else most,
            memory_bytes=memory_mib * MIB,
            **shape,
        )
        self.registry.fleets["cpu"] = FleetRecord(shape=self.shape)
        self.replicas: dict[str, Replica] = {}
        self.gateways = {f"gw-{n}": Gateway(f"gw-{n}") for n in range(gateways)}
        self.bad: dict[Key, Any] = {}
        self.load_s: dict[Key, float] = {}
        self.evicted: set[str] = set()
        self.down: set[str] = set()
        """Replicas whose servers don't come up."""
        self.extra: set[str] = set()
        self.epoch = 0
        self.plan = Plan()
        self.load: Load | None = None
        """What is measured of the fleet in each cycle (None: nothing)."""
        self.started = 0
        """How many replicas were started."""
        self.problems: dict[str, str] = {}
        self.clash: Any = lambda one, other: None
        self.restart_controller()

    def restart_controller(self) -> None:
        self.epoch += 1
        self.memory = Memory(started_at=self.now, settings=SETTINGS, shapes={"cpu": self.shape})
        self.orders = Orders(self.epoch, self._wanted)

    def _wanted(self, key: Key) -> Wanted | None:
        model = self.registry.models.get(key.model)
        version = model.version(key.version) if model else None
        made = self.registry.manifests.get(version.digest) if version else None
        if version is None or made is None:
            return None
        return Wanted(model=key.model, version=key.version, digest=version.digest, manifest=made)

    def join(self, gateway: str) -> None:
        """A new gateway, which serves nothing yet, is the first that speaks."""
        self.gateways[gateway] = Gateway(gateway)
        self.sync_gateways(gateway)

    def resize(self, replicas: int, more: int = 0) -> None:
        self.shape = replace(self.shape, min_replicas=replicas, max_replicas=replicas + more)
        self.registry.fleets["cpu"] = replace(self.registry.fleets["cpu"], shape=self.shape)
        self.memory.shapes = {"cpu": self.shape}

    # One step each.

    def sync_replicas(self) -> None:
        for each in list(self.replicas.values()):
            if not each.silent:
                self.memory.hear_replica(each.report(), self.now)
                each.take(self.orders.assignment(each.name))

    def sync_gateways(self, *names: str) -> None:
        """All of them, or those that are named."""
        for each in [self.gateways[name] for name in names or self.gateways]:
            heard = self.memory.hear_gateway(each.report(), self.orders, self.now)
            each.asked = heard.confirmed is None
            table = self.orders.table
            if table is not None and (table.epoch, table.generation) != (each.table.epoch, each.table.generation):
                each.ordered = table

    def apply_tables(self) -> None:
        for each in self.gateways.values():
            each.apply()

    def work(self) -> None:
        for each in self.replicas.values():
            if each.name in self.down and each.server != "stopped":
                each.server, each.failed_starts = "down", each.failed_starts + 1
            else:
                each.work(self.bad, self.load_s)

    def cycle(self, actions: int | None = None) -> Plan:
        """One cycle of the controller; it is interrupted after `actions` of its actions (None: not at all)."""
        memory = self.memory
        memory.models = dict(self.registry.models)
        memory.manifests = dict(self.registry.manifests)
        memory.fleets = dict(self.registry.fleets)
        for name in [each.name for each in self.replicas.values() if each.name in self.evicted]:
            if self.replicas[name].server == "stopped":  # whoever ends it is done
                self._remove(name)
        memory.backend_replicas = {
            each.name: FleetReplica(
                name=each.name,
                fleet=each.fleet,
                state="leaving" if each.name in self.evicted else "running",
                extra=each.name in self.extra,
            )
            for each in self.replicas.values()
        }
        if self.load is not None:
            memory.loads["cpu"] = replace(self.load, at=self.now)
        memory.take_gateways(self.gateways.keys(), self.now)
        snapshot = memory.snapshot(self.orders, self.clash, self.now)
        self.plan = plan(snapshot, self.now)
        assert plan(snapshot, self.now) == self.plan, "the same snapshot must give the same plan"
        memory.last_plan = self.plan
        if memory.may_order:
            self.orders.issue(self.plan)
        for action in self.plan.actions[:actions]:
            self.act(action)
        if actions is not None and actions < len(self.plan.actions):
            self.restart_controller()
        return self.plan

    def act(self, action: object) -> None:
        fleets = self.registry.fleets
        if isinstance(action, FinishRollout):
            self.registry.finish(action, self.now)
        elif isinstance(action, StartReplica):
            self.started += 1
            self.memory.starts.setdefault(action.replica, Start(self.now))
            self.replicas[action.replica] = Replica(action.replica, action.fleet, len(self.replicas))
        elif isinstance(action, RemoveReplica):
            self._remove(action.replica)
        elif isinstance(action, QuarantineVersion):
            news = Quarantine(
                model=action.key.model,
                version=action.key.version,
                digest=action.digest,
                reason=action.reason,
                at=at(self.now),
            )
            fleets["cpu"] = replace(fleets["cpu"], quarantines=(*fleets["cpu"].quarantines, news))
        elif isinstance(action, RecordFleet):
            known = fleets["cpu"]
            load_s = {**known.load_s, **action.load_s}
            fleets["cpu"] = replace(known, capabilities=action.capabilities, load_s=load_s)

    def _remove(self, name: str) -> None:
        self.replicas.pop(name, None)
        self.memory.forget_replica(name)
        self.orders.forget(name)

    def turn(self, seconds: float = 0.5) -> None:
        """Everybody does one thing, and time goes on."""
        self.sync_replicas()
        self.sync_gateways()
        self.cycle()
        self.sync_replicas()
        self.sync_gateways()
        self.apply_tables()
        self.work()
        self.now += seconds

    def turn_hearing(self, *gateways: str, seconds: float = 0.5) -> None:
        """The same, but that the controller can speak to no other gateway than these."""
        self.sync_replicas()
        if gateways:
            self.sync_gateways(*gateways)
        self.cycle()
        for name in gateways:
            self.gateways[name].apply()
        self.work()
        self.now += seconds

    def run(self, turns: int = 40, seconds: float = 0.5) -> None:
        for _ in range(turns):
            self.turn(seconds)
            self.check()

    # What must always hold.

    def check(self) -> None:
        for gateway in self.gateways.values():
            self.check_table(gateway.table)
        for replica in self.replicas.values():
            used = sum(
                self.registry.manifests[copy.digest].entry.resources.memory_bytes or 0
                for copy in replica.copies.values()
            )
            assert used <= self.shape.memory_bytes, f"{replica.name} holds more than it has"

    def check_table(self, table: RouteTable) -> None:
        """A route leads only to a replica that has proved that very version (or whose server is just starting anew)."""
        for route in table.routes.values():
            led = [(target.version, target.pool) for target in route.targets] + list(route.pinned.items())
            for number, pool in led:
                model = self.registry.models.get(route.model)
                version = model.version(number) if model else None
                for name in table.pools.get(pool or "", ()):
                    replica = self.replicas.get(name)
                    assert replica is not None, f"{route.model}@{number} is led to {name}, which is gone"
                    if replica.server == "starting" or replica.silent:
                        continue
                    copy = replica.copies.get(Key(route.model, number))
                    assert copy is not None, f"{route.model}@{number} is led to {name}, which gave it up"
                    assert version is None or copy.digest == version.digest
                    if not replica.crashed:
                        assert copy.state == "ready", (
                            f"{route.model}@{number} is led to {name}, where it is {copy.state}"
                        )

    def served(self, key: Key) -> set[str]:
        """The replicas to which the first gateway leads requests for a version."""
        table = next(iter(self.gateways.values())).table
        route = table.routes.get(key.model)
        pool = route.pinned.get(key.version) if route else None
        return set(table.pools.get(pool or "", ()))

    def stable(self, model: str) -> int | None:
        return self.registry.models[model].stable


def promoted(world: World, name: str = "m", **options: object) -> Key:
    """A new version of a model, promoted and served."""
    key = world.registry.register(manifest(name, **options), world.now)  # type: ignore[arg-type]
    world.registry.promote(key, world.now)
    world.run()
    return key


def not_replaced(world: World) -> None:
    """Another one was replaced a moment ago: for ten minutes nobody else is."""
    scaler = replace(world.plan.scalers["cpu"], replaced_at=world.now + 1000)
    world.memory.last_plan = replace(world.plan, scalers={"cpu": scaler})
