"""Unknown is not gone: a new controller, the silent, what can't be read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.entry import Serving
from controlplane.core.load import Load
from tests.core.world import SETTINGS, World, manifest, promoted


def test_a_new_controller_takes_nothing_away_before_it_has_heard() -> None:
    world = World(replicas=2)
    key = promoted(world)
    world.restart_controller()
    for replica in world.replicas.values():
        replica.silent = True
    for _ in range(10):
        world.turn()
        assert world.served(key) == {"cpu-0", "cpu-1"}
    for replica in world.replicas.values():
        replica.silent = False
    world.run()
    assert world.served(key) == {"cpu-0", "cpu-1"}
    assert world.gateways["gw-0"].table.epoch == world.epoch


def test_nor_because_a_new_gateway_has_spoken_first() -> None:
    world = World(replicas=2)
    key = promoted(world)
    world.restart_controller()
    world.join("gw-1")
    for _ in range(3):
        world.cycle()
        world.sync_replicas()
        world.sync_gateways("gw-1")
        world.apply_tables()
        world.check()
    for _ in range(20):
        world.turn()
        world.check()
        assert world.served(key) == {"cpu-0", "cpu-1"}
    assert {each.table.epoch for each in world.gateways.values()} == {world.epoch}


def test_what_a_new_controller_had_taken_away_unheard_is_not_led_to_before_it_is_back() -> None:
    world = World(replicas=1)
    world.run(6)
    key = world.registry.register(manifest("m", serving=Serving(load="always")), world.now)
    world.registry.promote(key, world.now)
    world.turn()
    replica = world.replicas["cpu-0"]
    assert key in replica.copies
    replica.silent = True
    for _ in range(3):
        replica.work({}, {})
    assert replica.copies[key].state == "ready", "which nobody knows"
    world.restart_controller()
    world.run(30)
    assert world.orders.ordered("cpu-0") == frozenset()
    replica.silent = False
    world.run(20)  # checks in each turn that nobody is led astray
    assert world.served(key) == {"cpu-0"}


def test_silence_of_all_holders_is_no_proof_that_they_are_gone() -> None:
    world = World(replicas=2)
    key = promoted(world)
    for replica in world.replicas.values():
        replica.silent = True
    world.run(100)
    assert world.served(key) == {"cpu-0", "cpu-1"}


def test_a_silent_replica_is_left_out_while_another_one_has_the_version() -> None:
    world = World(replicas=2)
    key = promoted(world)
    world.replicas["cpu-1"].silent = True
    world.run(100)
    assert world.served(key) == {"cpu-0"}


def test_an_unreadable_document_takes_nothing_away_from_a_new_controller() -> None:
    world = World()
    key = promoted(world)
    other = promoted(world, "other")
    document = world.registry.models.pop("m")
    world.restart_controller()
    world.memory.problems["models/m.json"] = "it is no JSON"
    world.problems = dict(world.memory.problems)
    for _ in range(60):
        world.turn()
        world.memory.problems = dict(world.problems)
        assert world.served(key) == world.served(other) == {"cpu-0", "cpu-1"}
    assert world.gateways["gw-0"].table.epoch == world.epoch, "the new controller's table is in force"
    world.registry.models["m"] = document
    world.memory.problems = world.problems = {}
    world.run(20)
    assert world.served(key) == {"cpu-0", "cpu-1"}


def test_an_unreadable_manifest_takes_nothing_away_either() -> None:
    world = World()
    key = promoted(world)
    world.registry.manifests.clear()
    world.restart_controller()
    for _ in range(40):
        world.turn()
        assert world.served(key) == {"cpu-0", "cpu-1"}


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_gateway_leads_to_that_nobody_hears_stays_as_long_as_with_the_controller_before(restarted: bool) -> None:
    world = World(replicas=2, gateways=2)
    old = promoted(world)
    world.run()
    if restarted:
        world.restart_controller()
    cut_off, since = world.gateways["gw-1"], world.now
    new = world.registry.register(manifest("m"), world.now)
    world.registry.promote(new, world.now)
    while world.now < since + SETTINGS.gateway_lost_s - 1:
        world.turn_hearing("gw-0")
        assert all(old in replica.copies for replica in world.replicas.values())
        world.check_table(cut_off.table)
    assert world.served(new) == {"cpu-0", "cpu-1"}


def test_a_silent_replica_that_is_to_leave_stays_until_others_serve_what_it_serves() -> None:
    """Its agent is gone; its server answers."""
    world = World(replicas=1, most=2, down_after_s=5)
    world.load = Load(at=world.now, step_s=2.0, demand=1.9, rate_per_s=10)
    alone = Serving(load="always", min_copies=1, max_copies=1)
    promoted(world, "a", size_mib=60, serving=alone)
    key = promoted(world, "b", size_mib=30, serving=alone)
    assert world.served(key) == {"cpu-1"}
    world.replicas["cpu-1"].silent = True
    world.load = replace(world.load, demand=0.1)
    other = world.replicas["cpu-0"]
    for _ in range(100):
        before = other.copies.get(key)
        world.turn()
        if before is not None and before.state == "loading" and key in other.copies:
            other.copies[key] = before  # it takes its time
        assert world.served(key) == {"cpu-1"}
    assert other.copies[key].state == "loading"
    world.run(60)
    assert world.served(key) == {"cpu-0"}
    assert set(world.replicas) == {"cpu-0"}


def test_a_rollout_that_was_written_while_there_was_no_controller_has_all_of_its_time() -> None:
    world = World(replicas=1)
    world.run()
    key = world.registry.register(manifest("m"), world.now - 7200)
    world.registry.promote(key, world.now - 7200)  # or by a clock that is two hours slow
    world.run()
    assert world.stable("m") == 1 and world.served(key)


def test_that_no_gateway_is_heard_confirms_nothing() -> None:
    world = World(replicas=1)
    world.run()
    gateway, since = world.gateways["gw-0"], world.now
    key = world.registry.register(manifest("m"), world.now)
    world.registry.promote(key, world.now)
    while world.now < since + SETTINGS.gateway_lost_s - 1:
        world.turn_hearing()
        assert world.stable("m") is None
    world.now += 2
    world.run()
    assert world.stable("m") == 1 and "m" in gateway.table.routes


def test_a_gateway_that_has_said_that_it_ends_is_waited_for_no_more() -> None:
    world = World(replicas=2, gateways=2)
    old = promoted(world)
    world.run()
    world.restart_controller()
    world.memory.gateway_ended("gw-1")  # its pod is still listed
    new = world.registry.register(manifest("m"), world.now)
    world.registry.promote(new, world.now)
    for _ in range(120):
        world.turn_hearing("gw-0")
    assert all(old not in replica.copies for replica in world.replicas.values())


def test_a_silent_replica_with_a_request_that_never_ends_leaves_in_the_end() -> None:
    world = World(replicas=2)
    key = promoted(world)
    world.replicas["cpu-1"].silent = True
    world.gateways["gw-0"].in_flight = {"cpu-1": 1}
    world.resize(1)
    since = world.now
    while world.now < since + SETTINGS.gateway_lost_s + SETTINGS.replica_lost_s + 10:
        world.turn()
        if world.now < since + SETTINGS.gateway_lost_s - 5:
            assert "cpu-1" in world.replicas
    assert set(world.replicas) == {"cpu-0"} and world.served(key) == {"cpu-0"}
