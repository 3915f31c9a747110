"""Replicas that leave: drained first, told once, and gone before anybody comes in their place."""

from __future__ import annotations

import pytest

from controlplane.core.actions import RemoveReplica, StartReplica
from controlplane.core.entry import Serving
from controlplane.core.names import Key
from tests.core.world import Replica, World, promoted


def test_a_smaller_fleet_drains_before_it_stops() -> None:
    world = World(replicas=2)
    key = promoted(world, serving=Serving(max_copies=1))
    (name,) = world.served(key)
    if name == "cpu-0":  # the one that leaves is the one with the higher number: make it the holder
        world.replicas["cpu-0"].silent = True
        world.run(60)
        world.replicas["cpu-0"].silent = False
        world.run(10)
    world.resize(1)
    for _ in range(40):
        world.turn()
        world.check()
        assert world.served(key), "it is served all the while"
    assert set(world.replicas) == {"cpu-0"}
    assert world.served(key) == {"cpu-0"}, f"it was on {name}"


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_replica_that_somebody_else_ends_leaves_when_its_versions_are_ready_elsewhere(replicas: int) -> None:
    world = World(replicas=replicas)
    key = promoted(world)
    world.evicted = {"cpu-0"}
    while "cpu-0" in world.replicas:
        world.turn()
        world.check()
        assert world.served(key)
    world.run(20)
    assert len(world.replicas) == replicas and len(world.served(key)) == replicas


def rolling() -> tuple[World, Key]:
    """Two replicas that serve a version, while a Deployment replaces the first of them."""
    world = World(replicas=2)
    key = promoted(world)
    world.replicas["cpu-new"] = Replica("cpu-new", "cpu", 7)
    world.extra = {"cpu-new"}
    return world, key


def test_who_is_there_beside_as_many_as_shall_be_is_left_to_who_made_it() -> None:
    world, key = rolling()
    world.run(20)
    assert not world.plan.stopping
    world.evicted = {"cpu-0"}  # as a Deployment does when the new one is ready
    world.extra = set()
    world.run(40)
    assert world.replicas.keys() == {"cpu-1", "cpu-new"}
    assert world.served(key) == {"cpu-1", "cpu-new"}


def test_nobody_is_told_to_stop_while_somebody_replaces_them() -> None:
    """On Kubernetes whoever was told stays until the rolling update has ended, and it may wait for that one."""
    world, key = rolling()
    world.resize(1)
    world.run(20)
    assert world.served(key) == {"cpu-0", "cpu-1", "cpu-new"}
    world.evicted, world.extra = {"cpu-0"}, set()
    world.run(60)
    assert world.served(key) == world.replicas.keys() == {"cpu-1"}


def leave(world: World, name: str) -> None:
    """Until its agent has ended its server, as it was told to."""
    world.resize(1)
    while world.replicas[name].server != "stopped":
        world.turn()


@pytest.mark.parametrize("server", ["stopping", "stopped"])
def test_who_was_told_to_stop_ends_though_the_controller_that_said_so_is_gone(server: str) -> None:
    world = World(replicas=2)
    key = promoted(world)
    leave(world, "cpu-1")
    world.replicas["cpu-1"].server = server
    world.restart_controller()
    world.resize(2)
    world.run(40)
    assert len(world.served(key)) == 2
    assert world.served(key) == world.replicas.keys()


def test_who_was_told_to_stop_by_somebody_else_comes_back() -> None:
    """As an agent that is only started anew."""
    world = World(replicas=2)
    key = promoted(world)
    started = world.started
    world.replicas["cpu-1"].server = "stopped"
    world.run(5)
    world.replicas["cpu-1"].server = "ready"
    world.run(5)
    assert world.served(key) == {"cpu-0", "cpu-1"}
    assert world.started == started


def test_nobody_comes_for_one_that_has_ended_before_it_is_gone() -> None:
    world = World(replicas=2)
    promoted(world)
    leave(world, "cpu-1")
    world.resize(2)
    assert not world.cycle().actions
    world.sync_replicas()
    assert [type(each) for each in world.cycle().actions] == [RemoveReplica]
    assert [type(each) for each in world.cycle().actions] == [StartReplica]


def test_who_may_have_heard_that_it_is_to_stop_gets_nothing_any_more() -> None:
    """Although the one that has what it had has ended, and its own last report was that it is ready."""
    world = World(replicas=2)
    key = promoted(world)
    world.resize(1)
    world.replicas["cpu-1"].silent = True
    while "cpu-1" not in world.plan.stop:
        world.turn()
    world.replicas["cpu-0"].crash()
    world.replicas["cpu-0"].crashed = True
    world.replicas["cpu-1"].silent = False
    world.run(20)  # looks whether requests are led astray
    assert world.served(key) == world.replicas.keys() == {"cpu-0"}
