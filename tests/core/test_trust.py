"""Replicas whose servers keep ending are not trusted for a while: they get nothing new, and requests only where nobody
else has what is asked for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from controlplane.core.load import Load
from controlplane.core.names import Key
from controlplane.core.placement.placing import place
from controlplane.core.placement.terms import Rank, Slot, Want
from controlplane.core.scaling.fitness import FLAPS, FLAPS_WITHIN_S, distrusted
from controlplane.core.snapshot import ReplicaView
from tests.core.world import World, manifest, promoted

A, B, C = Key("a", 1), Key("b", 1), Key("c", 1)
NOW = 10_000.0


def view(name: str, *ago_s: float) -> ReplicaView:
    return ReplicaView(name=name, fleet="cpu", crashed_at=tuple(NOW - each for each in ago_s))


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([(1, 2, 3), ()], {"cpu-0"}),
        ([(1, 2), ()], set()),
        ([(601, 2, 1), ()], set()),
        ([(700, 650, 3, 2, 1), ()], {"cpu-0"}),
        ([(1, 2, 3)], set()),  # there is nobody else
        ([(1, 2, 3), (1, 2, 3)], set()),
        ([(1, 2, 3), (1, 2, 3), ()], set()),  # more than half: it is hardly their fault
        ([(1, 2, 3), (1, 2, 3), (), ()], {"cpu-0", "cpu-1"}),
    ],
)
def test_who_is_not_trusted(ends: list[tuple[float, ...]], expected: set[str]) -> None:
    found = distrusted([view(f"cpu-{n}", *sorted(each, reverse=True)) for n, each in enumerate(ends)], NOW)
    assert found.keys() == expected
    assert {each.code for each in found.values()} <= {"NOT_TRUSTED"}


def test_it_is_told_for_how_long() -> None:
    found = distrusted([view("cpu-0", 590, 400, 5, 3), view("cpu-1")], NOW)
    assert "for another 4 min" in found["cpu-0"].text, "until there are fewer than three: 600 s after the second"


def slots(**held: Key) -> list[Slot]:
    return [
        Slot(replica="good", capacity_bytes=100, held=frozenset(held.values())),
        Slot(replica="shaky", capacity_bytes=1000, trusted=False),
    ]


def test_what_is_new_goes_where_it_is_trusted_while_there_is_room() -> None:
    sizes = {A: 60, B: 60}
    wants = [Want(key=key, size_bytes=60, rank=Rank.AUTO) for key in (A, B)]
    found = place(slots(), wants, sizes=sizes)
    assert found.holds == {"good": frozenset({A}), "shaky": frozenset({B})}, (
        "one that has room nowhere else comes to it"
    )
    again = [replace(slot, held=found.holds[slot.replica]) for slot in slots()]
    assert place(again, wants, sizes=sizes).holds == found.holds, "and stays"
    trusted = [replace(slot, trusted=True) for slot in again]
    kept = place(trusted, wants, sizes=sizes).holds
    assert kept["good"] == frozenset({A}) and kept["shaky"] == frozenset({A, B}), "trusted again it gets more"


def test_further_copies_do_not_join_others_on_a_replica_that_is_not_trusted() -> None:
    sizes = {A: 10, B: 10}
    both = [
        Slot(replica="one", capacity_bytes=100, held=frozenset({A, B})),
        Slot(replica="shaky", capacity_bytes=100, held=frozenset({A}), trusted=False),
        Slot(replica="two", capacity_bytes=100),
    ]
    wants = [Want(key=key, size_bytes=10, rank=Rank.AUTO, minimum=2, maximum=2) for key in (A, B)]
    found = place(both, wants, sizes=sizes)
    assert found.holds["two"] == frozenset({B}) and not found.leaving


def flapping(replicas: int, **options: int) -> tuple[World, Key]:
    """One whose first replica has ended too often just now, and can't be replaced: another one was a moment ago."""
    world = World(replicas, **options)
    key = promoted(world)
    scaler = world.plan.scalers["cpu"]
    world.memory.last_plan = replace(world.plan, scalers={"cpu": replace(scaler, replaced_at=world.now + 60)})
    for _ in range(FLAPS):
        world.replicas["cpu-0"].crash()
        world.run(6)
    return world, key


def test_its_copies_get_no_requests_while_another_is_ready_until_it_is_trusted_again() -> None:
    world, key = flapping(3)
    assert set(world.replicas) == {"cpu-0", "cpu-1", "cpu-2"}
    assert world.replicas["cpu-0"].copies[key].state == "ready" and world.served(key) == {"cpu-1", "cpu-2"}
    assert [each.code for each in world.plan.reasons["replica/cpu-0"]] == ["NOT_TRUSTED"]
    new = promoted(world, "new")
    assert world.served(new) == {"cpu-1", "cpu-2"} and new not in world.replicas["cpu-0"].copies
    before = world.orders.table
    world.run(40)
    assert world.orders.table is before, "nothing wavers meanwhile"
    world.run(int(FLAPS_WITHIN_S / 5) + 20, seconds=5.0)
    assert world.served(key) == world.served(new) == {"cpu-0", "cpu-1", "cpu-2"}
    assert not world.plan.reasons.get("replica/cpu-0")


def test_others_come_for_those_that_get_no_requests() -> None:
    world, key = flapping(4)
    world.resize(4, more=4)
    world.load = Load(at=world.now, step_s=2.0, demand=3.5, features=(math.log1p(3.5),) * 3)
    for _ in range(30):
        world.load = replace(world.load, at=world.now)
        world.run(1)
    assert len(world.served(key) - {"cpu-0"}) > 3
    (why,) = [each for each in world.plan.reasons["fleet/cpu"] if "replica" in each.text]
    assert "1 of them get no requests for a while" in why.text


def test_what_nobody_else_has_it_serves_all_the_same() -> None:
    world, key = flapping(2)
    assert world.served(key) == {"cpu-1"}
    world.replicas["cpu-1"].crash()
    world.turn()
    assert world.served(key) == {"cpu-0"}, "serving badly beats not serving"
    world.run(10)
    assert world.served(key) == {"cpu-1"}


def test_a_model_that_has_room_nowhere_else_goes_to_it() -> None:
    world, _ = flapping(2, memory_mib=250)
    large = world.registry.register(manifest("large", size_mib=140), world.now)
    other = world.registry.register(manifest("other", size_mib=140), world.now)
    world.registry.promote(large, world.now)
    world.run(20)
    world.registry.promote(other, world.now)
    world.run(20)
    assert world.served(large) == {"cpu-1"}
    assert world.served(other) == {"cpu-0"}
