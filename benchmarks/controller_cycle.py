"""The controller's cycle at scale: 10,000 models on 1,000 replicas, 30,000 placements, simulated agents.

Run ``python -m benchmarks.controller_cycle``. Limits: a cycle under 1 s, the process under 500 MB.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

from controlplane.core.entry import Entry, Resources, Serving
from controlplane.core.load import Load
from controlplane.core.messages import Copy, GatewayReport, ReplicaReport, Wanted
from controlplane.core.models import FleetRecord, FleetShape, Manifest, Model, Version
from controlplane.core.names import Key
from controlplane.core.plan import Plan, plan
from controlplane.core.routes import Endpoint
from controlplane.core.snapshot import Settings
from controlplane.fleet.protocol import FleetReplica
from controlplane.server.controller import collect_garbage_seldom
from controlplane.server.memory import Memory
from controlplane.server.orders import Orders
from examples.interrupts import interruptible

MODELS, REPLICAS, COPIES = 10_000, 1_000, 3
CYCLE_LIMIT_S, MEMORY_LIMIT_MB = 1.0, 500


class Simulation:
    """A controller's memory, fed by agents and a gateway that have done whatever they were told."""

    def __init__(self, more: int = 0) -> None:
        shape = FleetShape(name="cpu", min_replicas=REPLICAS, max_replicas=REPLICAS + more, memory_bytes=100 << 20)
        self.memory = Memory(started_at=0.0, settings=Settings(settle_s=-1), shapes={"cpu": shape})
        self.memory.fleets["cpu"] = FleetRecord(shape=shape)
        for number in range(MODELS):
            name = f"model-{number}"
            entry = Entry(
                name=name,
                backend="onnxruntime",
                serving=Serving(min_copies=COPIES, max_copies=COPIES),
                resources=Resources(memory_bytes=(1 + number % 4) << 20),
            )
            self.memory.manifests[name] = Manifest(entry=entry, files=())
            version = Version(number=1, digest=name, created_at=datetime.now(UTC), actor="benchmark")
            self.memory.models[name] = Model(name=name, versions=(version,), aliases={"stable": 1})
        self.orders = Orders(1, self._wanted)
        names = [f"cpu-{number}" for number in range(REPLICAS)]
        self.memory.backend_replicas = {name: FleetReplica(name=name, fleet="cpu") for name in names}

    def _wanted(self, key: Key) -> Wanted:
        return Wanted(model=key.model, version=key.version, digest=key.model, manifest=self.memory.manifests[key.model])

    def report(self) -> None:
        """Each agent and the gateway say that they have done what was ordered."""
        now = time.time()
        for number in range(REPLICAS):
            name = f"cpu-{number}"
            assignment = self.orders.assignment(name)
            copies = tuple(
                Copy(model=each.model, version=1, digest=each.model, state="ready", last_used_at=now)
                for each in (assignment.wanted if assignment else ())
            )
            endpoint = Endpoint(replica=name, host="127.0.0.1", grpc_port=2 * number + 1, http_port=2 * number + 2)
            self.memory.hear_replica(
                ReplicaReport(
                    replica=name,
                    fleet="cpu",
                    incarnation="1",
                    epoch=assignment.epoch if assignment else 0,
                    generation=assignment.generation if assignment else 0,
                    server="ready",
                    endpoint=endpoint,
                    copies=copies,
                ),
                now,
            )
        table = self.orders.table
        generation = table.generation if table else 0
        report = GatewayReport(gateway="gw", incarnation="1", epoch=1 if table else 0, generation=generation)
        self.memory.hear_gateway(report, self.orders, now)
        self.orders.keep_tables([report])

    def cycle(self) -> tuple[Plan, float]:
        """One cycle; its plan and its time in seconds."""
        started = time.perf_counter()
        now = time.time()
        snapshot = self.memory.snapshot(self.orders, lambda one, other: None, now)
        made = plan(snapshot, now)
        self.memory.last_plan = made
        self.orders.issue(made)
        return made, time.perf_counter() - started


def shrink_s(simulation: Simulation) -> float:
    """A cycle in seconds in which the load needs fewer replicas, so that it is tried whether they hold it all."""
    simulation.memory.shapes = {"cpu": replace(simulation.memory.shapes["cpu"], min_replicas=1, down_after_s=0.0)}
    longest_s = 0.0
    for _ in range(3):
        simulation.memory.loads["cpu"] = Load(at=time.time(), step_s=2.0)
        simulation.report()
        made, took_s = simulation.cycle()
        longest_s = max(longest_s, took_s)
    assert made.decisions["cpu"].desired < REPLICAS, made.decisions
    return longest_s


def search_s(simulation: Simulation) -> float:
    """A cycle in seconds in which one version lacks a place, so that it is found out how many replicas it takes."""
    made = simulation.memory.last_plan
    cramped = replace(made.scalers["cpu"].room, cramped=frozenset({Key("model-0", 1)}))
    simulation.memory.last_plan = replace(made, scalers={"cpu": replace(made.scalers["cpu"], room=cramped)})
    simulation.report()
    _, took_s = simulation.cycle()
    return took_s


def steady_cycles(simulation: Simulation) -> tuple[float, list[float]]:
    """The first cycle and those after it, in seconds."""
    simulation.report()
    _, first_s = simulation.cycle()
    simulation.report()
    simulation.cycle()
    steady = []
    for _ in range(5):
        simulation.report()
        _, took_s = simulation.cycle()
        steady.append(took_s)
    return first_s, steady


def main() -> int:
    """Measure and print; 1 when a limit is exceeded."""
    collect_garbage_seldom()
    simulation = Simulation()
    first_s, steady = steady_cycles(simulation)
    placements = sum(len(keys) for keys in simulation.memory.last_plan.holds.values())
    pools = len(simulation.orders.table.pools) if simulation.orders.table else 0
    del simulation
    elastic = Simulation(more=100)
    elastic_first_s, elastic_steady = steady_cycles(elastic)
    shrunk_s = shrink_s(elastic)
    searched_s = search_s(elastic)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{MODELS} models, {REPLICAS} replicas, {placements} placements, {pools} pools")
    print(f"{'cycle':34} {'seconds':>8} {'limit':>7} {'ratio':>6}")
    rows = [
        ("first (everything to be placed)", first_s),
        ("steady (median of 5)", statistics.median(steady)),
        ("the size may change: first", elastic_first_s),
        ("the size may change: steady", statistics.median(elastic_steady)),
        ("the size may change: fewer", shrunk_s),
        ("the size may change: more", searched_s),
    ]
    for name, took_s in rows:
        print(f"{name:34} {took_s:8.3f} {CYCLE_LIMIT_S:7.1f} {took_s / CYCLE_LIMIT_S:6.2f}")
    print(f"{'memory, peak (MB)':34} {memory_mb:8.0f} {MEMORY_LIMIT_MB:7d} {memory_mb / MEMORY_LIMIT_MB:6.2f}")
    return 0 if max(took_s for _, took_s in rows) < CYCLE_LIMIT_S and memory_mb < MEMORY_LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))
