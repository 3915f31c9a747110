"""How important a model is for the gateways: what its stable version says."""

from __future__ import annotations

from controlplane.core.entry import Serving
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
