"""Replicas that are replaced: whose server does not come up, or that have lost memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from controlplane.core.entry import Serving
from controlplane.core.load import Load
from controlplane.core.messages import ReplicaReport
from controlplane.core.models import FleetShape
from controlplane.core.routes import Endpoint
from controlplane.core.scaling.fitness import FLAPS, unfit
from controlplane.core.snapshot import ReplicaView
from tests.core.world import MIB, World, manifest, not_replaced, promoted

NOW = 10_000.0
SHAPE = FleetShape(name="cpu")


def view(name: str, server: str = "ready", failed_starts: int = 0) -> ReplicaView:
    endpoint = Endpoint(replica=name, host="127.0.0.1", grpc_port=1, http_port=2) if server == "ready" else None
    report = ReplicaReport(
        replica=name,
        fleet="cpu",
        incarnation="one",
        server=server,  # type: ignore[arg-type]
        reason="no space left on device" if server == "down" else "",
        failed_starts=failed_starts,
    )
    return ReplicaView(name=name, fleet="cpu", heard_at=NOW, report=report, endpoint=endpoint)


@pytest.mark.parametrize(
    ("replicas", "lost", "replaced"),
    [
        ([view("cpu-0", "down", 3), view("cpu-1")], (), True),
        ([view("cpu-0", "down", 2), view("cpu-1")], (), False),
        ([view("cpu-0", "down", 3)], (), False),  # it may be the fleet's own fault
        ([view("cpu-0", "down", 3), view("cpu-1", "down", 9)], (), False),
        ([view("cpu-0", "down", 3), view("cpu-1", "starting")], (), False),
        ([view("cpu-0", "down", 3), view("cpu-1")], ("cpu-1",), False),  # nobody knows whether it is up
        ([view("cpu-0", "ready", 3), view("cpu-1")], (), False),
    ],
)
def test_who_does_not_come_up_is_replaced_where_others_do(
    replicas: list[ReplicaView], lost: tuple[str, ...], replaced: bool
) -> None:
    found = unfit(replicas, SHAPE, None, lost=lost, replaced_at=0.0, now=NOW)
    assert (found is not None) == replaced
    if found is not None:
        name, why = found
        assert (name, why.code) == ("cpu-0", "START_FAILS") and "no space left on device" in why.text
        assert unfit(replicas, SHAPE, None, replaced_at=NOW - 10, now=NOW) is None, "one in ten minutes"


def test_an_agent_that_does_not_know_of_failed_starts_is_understood_and_one_that_knows_more() -> None:
    reports = TypeAdapter(ReplicaReport)
    told = {"replica": "cpu-0", "fleet": "cpu", "incarnation": "one", "server": "down"}
    assert reports.validate_python(told).failed_starts == 0
    assert reports.validate_python({**told, "something_new": 3}).failed_starts == 0


def test_a_replica_whose_server_never_comes_up_gives_its_place_to_a_new_one() -> None:
    world = World(replicas=2)
    key = promoted(world)
    world.replicas["cpu-1"].crash()
    world.down = {"cpu-1"}
    world.run(5)
    assert "cpu-2" in world.replicas, "it serves nothing: nobody waits for the new one"
    world.run(60)
    assert set(world.replicas) == {"cpu-0", "cpu-2"}
    assert world.served(key) == {"cpu-0", "cpu-2"}


def test_why_one_leaves_is_told_until_it_has_left() -> None:
    """Also when something else decides about the fleet meanwhile."""
    world = World(replicas=2)
    promoted(world)
    told = set()
    for _ in range(FLAPS):
        world.replicas["cpu-1"].crash()
        for _ in range(6):
            world.run(1)
            if "cpu-1" in world.plan.stopping:
                told |= {each for each in world.plan.reasons["replica/cpu-1"] if each.code != "NOT_TRUSTED"}
    world.run(40)
    assert "cpu-1" not in world.replicas
    (why,) = told
    assert why.code == "FLAPPING" and why.text.startswith("cpu-1 is replaced: its server ended unexpectedly 3 times")


def test_where_the_new_one_does_not_come_up_either_another_is_tried_seldom() -> None:
    world = World(replicas=2)
    key = promoted(world)
    world.replicas["cpu-1"].crash()
    world.down = {f"cpu-{n}" for n in range(1, 99)}
    seen = []
    for _ in range(200):
        world.run(1, seconds=10.0)
        seen += [each for each in world.replicas.values() if each not in seen and each.name != "cpu-0"]
        assert len(world.replicas) <= 3 and world.served(key) == {"cpu-0"}
    assert 3 <= len({id(each) for each in seen}) <= 5, "one in ten minutes, of two thousand seconds"


def test_a_full_budget_is_no_reason_to_keep_one_that_does_not_come_up() -> None:
    world = World(replicas=2)
    world.memory.settings = replace(world.memory.settings, max_replicas=2)
    promoted(world)
    world.replicas["cpu-1"].crash()
    world.down = {"cpu-1"}
    world.run(60)
    assert set(world.replicas) == {"cpu-0", "cpu-2"}


def test_what_is_on_one_that_does_not_come_up_goes_elsewhere_even_if_no_new_one_comes() -> None:
    world = World(replicas=2, memory_mib=1000)
    always = promoted(world, "always", serving=Serving(load="always", max_copies=1))
    (where,) = world.served(always)
    world.replicas[where].crash()
    world.down = {where, "cpu-2", "cpu-3"}
    new = world.registry.register(manifest("new"), world.now)
    world.registry.promote(new, world.now)
    world.run(60)
    other = ({"cpu-0", "cpu-1"} - {where}).pop()
    assert world.served(always) == {other} and world.served(new) == {other}


def test_a_fleet_of_which_nothing_comes_up_is_left_alone() -> None:
    world = World(replicas=2)
    world.down = {"cpu-0", "cpu-1", "cpu-2"}
    world.run(100, seconds=10.0)
    assert set(world.replicas) == {"cpu-0", "cpu-1"}


# Lost memory.


def test_what_is_lost_is_told_until_a_quiet_moment_comes() -> None:
    world = World(replicas=1, memory_mib=1000)
    key = promoted(world, size_mib=400, serving=Serving(load="always"))
    world.replicas["cpu-0"].leaked_bytes = 200 * MIB
    world.load = Load(at=world.now, step_s=2.0, demand=0.9)
    world.run(10)
    (why,) = [each for each in world.plan.reasons["fleet/cpu"] if each.code == "LEAKING"]
    assert "cpu-0 (200 MiB)" in why.text and "quiet" in why.text and set(world.replicas) == {"cpu-0"}
    world.load = Load(at=world.now, step_s=2.0, demand=0.1)
    world.run(80)
    assert set(world.replicas) == {"cpu-1"} and world.served(key) == {"cpu-1"}
    assert "LEAKING" not in {each.code for each in world.plan.reasons["fleet/cpu"]}


def test_a_little_is_no_matter() -> None:
    world = World(replicas=1, memory_mib=1000)
    first = promoted(world, size_mib=460, serving=Serving(load="always"))
    world.replicas["cpu-0"].leaked_bytes = 90 * MIB
    second = world.registry.register(manifest("m", size_mib=460), world.now)
    world.registry.promote(second, world.now)
    world.run(40)
    assert world.stable("m") == second.version and first.version != second.version


def test_no_quiet_moment_is_waited_for_where_what_was_lost_is_missed() -> None:
    world = World(replicas=1, memory_mib=1000)
    promoted(world, size_mib=400, serving=Serving(load="always"))
    world.replicas["cpu-0"].leaked_bytes = 250 * MIB
    large = world.registry.register(manifest("large", size_mib=500), world.now)
    world.registry.promote(large, world.now)
    for _ in range(60):
        world.load = Load(at=world.now, step_s=2.0, demand=0.9)
        world.run(1)
    assert world.stable("large") == large.version and set(world.replicas) == {"cpu-1"}


def test_what_would_fit_but_for_lost_memory_is_not_too_large() -> None:
    world = World(replicas=1, memory_mib=1000)
    promoted(world)
    not_replaced(world)
    world.replicas["cpu-0"].leaked_bytes = 600 * MIB
    large = world.registry.register(manifest("large", size_mib=500), world.now)
    world.registry.promote(large, world.now)
    for _ in range(20):
        world.load = Load(at=world.now, step_s=2.0, demand=0.9)
        world.run(1)
    rollout = world.registry.models["large"].running_rollout
    assert rollout is not None, "it waits, and does not fail"
    world.resize(1, more=1)
    world.run(40)
    assert "cpu-1" in world.served(large), "where the fleet may grow, it does"


def test_only_the_worst_are_named() -> None:
    world = World(replicas=5, memory_mib=1000)
    promoted(world)
    for name, each in world.replicas.items():
        each.leaked_bytes = (200 + int(name[-1])) * MIB
    world.load = Load(at=world.now, step_s=2.0, demand=4.9)
    world.run(2)
    (why,) = [each for each in world.plan.reasons["fleet/cpu"] if each.code == "LEAKING"]
    assert "cpu-4 (204 MiB), cpu-3 (203 MiB), cpu-2 (202 MiB) and 2 more" in why.text
