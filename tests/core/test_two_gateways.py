"""Two gateways hold requests for the same model, at once: it is started once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.actions import StartReplica
from controlplane.core.messages import Demand
from tests.core.world import World, manifest


@pytest.mark.parametrize("apart", [0, 1, 3], ids=["at once", "a turn apart", "three turns apart"])
def test_two_gateways_that_ask_at_once_start_one_replica(apart: int) -> None:
    world = World(replicas=1, gateways=2)
    key = world.registry.register(manifest("m"), world.now)
    world.registry.promote(key, world.now)
    world.run()
    world.resize(0)
    world.run(100)
    assert not world.replicas

    world.shape = replace(world.shape, max_replicas=4)
    world.registry.fleets["cpu"] = replace(world.registry.fleets["cpu"], shape=world.shape)
    world.memory.shapes = {"cpu": world.shape}
    demand = (Demand(model="m", version=1, waiting=1),)
    first, second = world.gateways.values()
    first.demand = demand
    started = []
    for turn in range(20):
        if turn == apart:
            second.demand = demand
        world.turn()
        started += [action for action in world.plan.actions if isinstance(action, StartReplica)]
        if world.served(key):
            first.demand = second.demand = ()
    assert len(started) == 1
    assert len(world.served(key)) == 1
