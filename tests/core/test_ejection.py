"""Slow replicas get no requests for a while, then some again, as a trial; the last copies of a version always do."""

from __future__ import annotations

import pytest

from controlplane.core.entry import SequenceBatching, Serving
from controlplane.core.load import Ejection, Load, Scaler
from controlplane.core.members import quick, trusted
from controlplane.core.scaling.ejection import EJECTED_MOST_S, EJECTED_S, FORGOTTEN_S, ejected, ejections
from tests.core.world import World, not_replaced, promoted

NOW = 10_000.0
FOUR = ("cpu-0", "cpu-1", "cpu-2", "cpu-3")


@pytest.mark.parametrize(
    ("members", "slow", "draining", "expected"),
    [
        (FOUR, {"cpu-1": 4.0}, (), ("cpu-0", "cpu-2", "cpu-3")),
        (FOUR, {"cpu-1": 4.0, "cpu-2": 5.0}, (), ("cpu-0", "cpu-1", "cpu-3")),  # one in three at most: the slowest
        (FOUR, {"cpu-1": 4.0, "cpu-2": 4.0}, (), ("cpu-0", "cpu-2", "cpu-3")),
        ((*FOUR, "cpu-4", "cpu-5"), {"cpu-1": 4.0, "cpu-2": 5.0}, (), ("cpu-0", "cpu-3", "cpu-4", "cpu-5")),
        (("cpu-0", "cpu-1"), {"cpu-1": 4.0}, (), ("cpu-0",)),
        (("cpu-1",), {"cpu-1": 4.0}, (), ("cpu-1",)),  # nobody else has it
        (("cpu-0", "cpu-1"), {"cpu-1": 4.0}, ("cpu-0",), ("cpu-0", "cpu-1")),  # nor takes a new request
        (FOUR, {"cpu-1": 4.0, "cpu-2": 5.0}, ("cpu-2",), ("cpu-0", "cpu-2", "cpu-3")),
        (FOUR, {"cpu-9": 4.0}, (), FOUR),
    ],
)
def test_how_many_are_left_out(
    members: tuple[str, ...], slow: dict[str, float], draining: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert quick(members, slow, draining) == expected


def test_only_who_takes_new_requests_is_instead_of_who_is_not_trusted() -> None:
    assert trusted(FOUR, {"cpu-0"}, ()) == FOUR[1:]
    assert trusted(FOUR, set(FOUR), ()) == FOUR
    assert trusted(("cpu-0", "cpu-1"), {"cpu-0"}, {"cpu-1"}) == ("cpu-0", "cpu-1")


def test_who_is_found_slow_again_is_out_for_twice_as_long_and_who_is_well_is_forgotten() -> None:
    now, known = NOW, ejections({}, {"cpu-0": 4.0}, FOUR, NOW)
    assert ejected(known, now).keys() == {"cpu-0"} and known["cpu-0"].until == NOW + EJECTED_S
    assert ejections(known, {}, FOUR, now + 1) == known, "nothing is measured of it: that says nothing"
    lengths = []
    for _ in range(7):
        now = known["cpu-0"].until
        assert not ejected(known, now), "it is tried"
        assert ejections(known, {}, FOUR, now) == known, "and remembered"
        known = ejections(known, {"cpu-0": 5.0}, FOUR, now)
        lengths.append(known["cpu-0"].until - now)
    assert lengths == [min(EJECTED_S * 2**n, EJECTED_MOST_S) for n in range(1, 8)]
    later = known["cpu-0"].until + FORGOTTEN_S + 1
    assert ejections(known, {}, FOUR, later) == {}
    assert ejections(known, {}, ("cpu-1",), now) == {}, "it is gone"


def test_its_end_moves_with_the_clock() -> None:
    known = Scaler(ejections={"cpu-0": Ejection(until=100.0, times=1, ratio=4.0)})
    assert known.shifted(lambda at: at + 7).ejections["cpu-0"].until == 107.0


def slow(world: World, **ratios: float) -> None:
    found = {name.replace("_", "-"): ratio for name, ratio in ratios.items()}
    world.load = Load(at=world.now, step_s=2.0, demand=1.0, slow=found)


def test_a_slow_one_gets_no_requests_and_is_tried_again_by_and_by() -> None:
    world = World(3)
    key = promoted(world)
    assert world.served(key) == {"cpu-0", "cpu-1", "cpu-2"}
    not_replaced(world)
    slow(world, cpu_1=4.0)
    world.run(4)
    assert world.served(key) == {"cpu-0", "cpu-2"} and set(world.replicas) == {"cpu-0", "cpu-1", "cpu-2"}
    (why,) = world.plan.reasons["replica/cpu-1"]
    assert why.code == "EJECTED" and "4.0 times" in why.text
    slow(world)  # nothing is measured of it any more
    before = world.orders.table
    world.run(int(EJECTED_S) - 5, seconds=1.0)
    assert world.orders.table is before, "nothing wavers meanwhile"
    world.run(20, seconds=1.0)
    assert world.served(key) == {"cpu-0", "cpu-1", "cpu-2"} and not world.plan.reasons.get("replica/cpu-1")
    slow(world, cpu_1=3.5)
    world.run(4)
    assert world.served(key) == {"cpu-0", "cpu-2"}
    slow(world)
    world.run(int(EJECTED_S) + 10, seconds=1.0)
    assert world.served(key) == {"cpu-0", "cpu-2"}, "the second time it takes longer"


def test_a_slow_one_gets_nothing_new_that_has_room_elsewhere() -> None:
    world = World(3, memory_mib=1000)
    promoted(world, serving=Serving(load="on_demand", min_copies=2))
    not_replaced(world)
    emptiest = min(world.replicas, key=lambda name: len(world.replicas[name].copies))
    slow(world, **{emptiest.replace("-", "_"): 5.0})
    world.run(4)
    new = promoted(world, "new", serving=Serving(load="on_demand"))
    assert world.served(new) and emptiest not in world.served(new)


def test_a_slow_one_serves_what_nobody_else_has() -> None:
    world = World(2, memory_mib=150)
    first, second = promoted(world, "first"), promoted(world, "second")
    alone = {name for key in (first, second) for name in world.served(key)}
    assert alone == {"cpu-0", "cpu-1"}
    not_replaced(world)
    slow(world, cpu_0=9.0)
    world.run(10)
    assert {len(world.served(key)) for key in (first, second)} == {1}
    assert "EJECTED" in {each.code for each in world.plan.reasons["replica/cpu-0"]}


def test_models_with_sequences_go_on_where_they_are() -> None:
    world = World(2)
    plain = promoted(world, "plain")
    sequences = promoted(world, "sequences", sequence_batching=SequenceBatching())
    not_replaced(world)
    slow(world, cpu_0=9.0)
    world.run(10)
    assert world.served(plain) == {"cpu-1"}
    assert world.served(sequences) == {"cpu-0", "cpu-1"}


def test_an_old_load_ejects_nobody() -> None:
    world = World(2)
    key = promoted(world)
    not_replaced(world)
    world.memory.loads["cpu"] = Load(at=world.now - 60, step_s=2.0, slow={"cpu-0": 9.0})
    world.run(10)
    assert world.served(key) == {"cpu-0", "cpu-1"}


def test_a_slow_one_is_out_until_it_is_replaced() -> None:
    world = World(2)
    key = promoted(world)
    slow(world, cpu_0=4.0)
    world.run(3)
    slow(world)
    for _ in range(60):
        world.run(1)
        assert world.served(key) and "cpu-0" not in world.served(key)
    assert set(world.replicas) == {"cpu-1", "cpu-2"}
