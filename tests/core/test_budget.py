"""What all fleets together may have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.actions import StartReplica
from controlplane.core.models import FleetRecord, FleetShape
from controlplane.core.plan import plan
from controlplane.core.snapshot import Settings, Snapshot
from tests.core.world import SETTINGS, World, promoted


@pytest.mark.parametrize("settings", [Settings(max_replicas=5), Settings(max_gpus=5)], ids=["replicas", "GPUs"])
def test_fleets_share_a_budget(settings: Settings) -> None:
    fleets = {
        name: FleetRecord(shape=FleetShape(name=name, gpus=1, min_replicas=3, max_replicas=4)) for name in ("a", "b")
    }
    made = plan(Snapshot(fleets=fleets, settings=settings), 1_000.0)
    started = sorted(each.replica for each in made.actions if isinstance(each, StartReplica))
    assert started == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert "leaves 2 more" in made.decisions["b"].reason.text


@pytest.mark.parametrize(("budget", "most"), [(2, 2), (3, 3)])
def test_a_replacement_waits_for_the_budget(budget: int, most: int) -> None:
    world = World(replicas=2)
    world.memory.settings = replace(SETTINGS, max_replicas=budget)
    promoted(world)
    seen, told = set(), ""
    for _ in range(3):
        world.replicas["cpu-0"].crash()
        for _ in range(8):
            world.turn()
            seen.add(len(world.replicas))
            told += "; ".join(each.text for each in world.plan.reasons["fleet/cpu"])
    assert max(seen) == most
    assert ("once the budget leaves room for the new one" in told) == (budget == 2)


def test_so_many_start_at_the_same_time_and_no_more() -> None:
    world = World(replicas=0)
    world.memory.settings = replace(SETTINGS, starts_at_once=3)
    world.resize(8)
    world.cycle()
    assert len(world.replicas) == 3
    assert "5 of them start when those that are starting are up" in world.plan.reasons["fleet/cpu"][0].text
    for replica in world.replicas.values():
        replica.silent = True
    world.run(5)
    assert len(world.replicas) == 3, "nobody has heard that one of them is up"
    for replica in world.replicas.values():
        replica.silent = False
    world.run()
    assert len(world.replicas) == 8
    world.replicas["cpu-0"].crash()
    world.turn()
    world.resize(12)
    world.cycle()
    assert len(world.replicas) == 11, "one that starts anew holds nobody up"
    for replica in world.replicas.values():
        replica.silent = True
    world.restart_controller()
    world.cycle()
    world.now += SETTINGS.settle_s + 1
    world.cycle()
    world.resize(20)
    world.cycle()
    assert len(world.replicas) > 11, "nor do those that a new controller has not heard"
