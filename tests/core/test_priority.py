"""How important a model is: for the gateways what its stable version says, and for its place in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.entry import Serving
from controlplane.core.load import Load
from controlplane.core.messages import Demand
from controlplane.core.names import Key
from tests.core.world import World, manifest


def register(world: World, priority: str) -> Key:
    serving = Serving(priority=priority)  # type: ignore[arg-type]
    return world.registry.register(manifest("m", serving=serving), world.now)


def routed(world: World) -> str:
    return world.gateways["gw-0"].table.routes["m"].priority


def test_the_stable_version_says_the_priority() -> None:
    world = World()
    world.registry.promote(register(world, "normal"), world.now)
    world.run()
    assert routed(world) == "normal"
    second = register(world, "high")
    world.run()
    assert routed(world) == "normal"
    world.registry.promote(second, world.now)
    world.run()
    assert (world.stable("m"), routed(world)) == (2, "high")


def test_before_anything_is_stable_the_rollouts_target_says_it() -> None:
    world = World()
    world.bad[register(world, "high")] = "model"
    world.registry.promote(Key("m", 1), world.now)
    world.turn()
    world.turn()
    assert world.stable("m") is None
    assert routed(world) == "high"


def shared(world: World) -> dict[str, Key]:
    """Two models of normal and two of high priority, one copy each."""
    keys = {}
    for name, priority in (("a", "normal"), ("b", "normal"), ("y", "high"), ("z", "high")):
        serving = Serving(priority=priority, max_copies=1)  # type: ignore[arg-type]
        keys[name] = world.registry.register(manifest(name, serving=serving), world.now)
        world.registry.promote(keys[name], world.now)
        world.run(20)
    return keys


def use(world: World, *keys: Key) -> None:
    for replica in world.replicas.values():
        for key in replica.copies.keys() & set(keys):
            replica.copies[key] = replace(replica.copies[key], last_used_at=world.now)


@pytest.mark.parametrize("name", ["cpu-0", "cpu-1"])
@pytest.mark.parametrize("busy", [False, True])
def test_when_a_replica_is_gone_those_of_high_priority_have_the_room(name: str, busy: bool) -> None:
    world = World(replicas=2, memory_mib=200)
    keys = shared(world)
    assert all(world.served(key) for key in keys.values())
    if busy:
        world.load = Load(at=world.now, step_s=2.0, use={keys["a"]: 50.0, keys["b"]: 40.0, keys["y"]: 2.0})
    world.replicas[name].silent = True
    for _ in range(30):
        use(world, *(keys.values() if busy else ()))
        world.run(4)
    (left,) = set(world.replicas) - {name}
    assert set(world.replicas[left].copies) == {keys["y"], keys["z"]}
    assert world.served(keys["y"]) == world.served(keys["z"]) == {left}
    for _ in range(20):
        use(world, *(keys.values() if busy else ()))
        world.run(4)
        assert set(world.replicas[left].copies) == {keys["y"], keys["z"]}, "and keep it"


def test_those_of_high_priority_leave_for_others_when_nobody_asks_for_them() -> None:
    world = World(replicas=1, memory_mib=200, idle_s=30.0)
    keys = shared(world)
    world.run(10)
    assert world.served(keys["y"]) and world.served(keys["z"]) and not world.served(keys["a"])
    world.gateways["gw-0"].demand = (Demand(model="a", version=1, waiting=1),)
    world.run(10)
    assert not world.served(keys["a"]) and "has to leave for it" in world.gateways["gw-0"].table.routes["a"].reasons[1]
    for _ in range(20):
        use(world, keys["y"])
        world.run(10)
    assert world.served(keys["a"]) and world.served(keys["y"]) and not world.served(keys["z"])
    world.gateways["gw-0"].demand = ()
    for _ in range(10):
        use(world, keys["a"], keys["y"])
        world.run(10)
        assert world.served(keys["a"]), "nor is it sent away again while it is in use"
