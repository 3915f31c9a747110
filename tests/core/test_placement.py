"""Placement: as few changes as possible, by importance, within memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.names import Key, Place
from controlplane.core.placement.placing import place
from controlplane.core.placement.terms import Placement, Rank, Slot, Want

A, B, C, STEP = Key("a", 1), Key("b", 1), Key("c", 1), Key("step", 1)


def slot(name: str, *held: Key, capacity: int = 100, **options: object) -> Slot:
    return Slot(replica=name, capacity_bytes=capacity, held=frozenset(held), **options)  # type: ignore[arg-type]


def want(key: Key, rank: Rank = Rank.AUTO, size: int = 40, **options: object) -> Want:
    return Want(key=key, size_bytes=size, rank=rank, **options)  # type: ignore[arg-type]


def placed(slots: list[Slot], wants: list[Want], **options: object) -> Placement:
    sizes = {each.key: each.size_bytes for each in wants} | {STEP: 10}
    return place(slots, wants, sizes=sizes, **options)  # type: ignore[arg-type]


def test_the_emptiest_replica_gets_the_next_one() -> None:
    result = placed([slot("r0", A), slot("r1")], [want(A, maximum=1), want(B, maximum=1)])
    assert result.holds["r1"] == {B}


def test_what_is_held_stays_where_it_is() -> None:
    result = placed([slot("r0", A, B), slot("r1")], [want(A, maximum=1), want(B, maximum=1)])
    assert result.holds == {"r0": {A, B}, "r1": frozenset()}
    assert not result.added and not result.leaving


def test_copies_spread_while_a_tenth_stays_free() -> None:
    result = placed([slot("r0"), slot("r1")], [want(A, size=40), want(B, size=45)])
    assert result.holds["r0"] == result.holds["r1"] == {A, B}
    tight = placed([slot("r0"), slot("r1")], [want(A, size=50), want(B, size=50)])
    assert sum(len(held) for held in tight.holds.values()) == 2, "a second copy each would leave no room"


def test_demand_makes_the_least_recently_used_leave_and_waits_for_its_room() -> None:
    wants = [want(A, last_used_at=9, maximum=1), want(B, last_used_at=5, maximum=1), want(C, Rank.DEMAND)]
    result = placed([slot("r0", A, B)], wants)
    assert set(result.leaving) == {Place(B, "r0")}
    assert result.holds["r0"] == {A, B}, "it is counted until it has left"
    assert result.unplaced[C].code == "WAITS_FOR_ROOM"


def test_who_finds_no_room_hears_why_the_others_stay() -> None:
    always = placed([slot("r0", A, B)], [want(A, Rank.ALWAYS), want(B, Rank.ALWAYS), want(C, Rank.DEMAND)])
    assert always.unplaced[C].text.endswith("nothing that is there has to leave for it (always loaded: a@1, b@1)")
    asked = placed([slot("r0", A, B)], [want(A, Rank.ALWAYS), want(B, Rank.DEMAND), want(C, Rank.DEMAND)])
    assert asked.unplaced[C].text.endswith("(waited for a moment ago: b@1)")


def test_what_is_being_unloaded_takes_memory_until_it_is_gone() -> None:
    wants = [want(A, maximum=1), want(B), want(C, Rank.DEMAND)]
    result = placed([slot("r0", A, unloading=frozenset({B}))], wants)
    assert not result.leaving and not result.added, "its room is enough"
    assert result.unplaced[C].text == "c@1 waits until b@1 has left r0"
    again = placed([slot("r0", A, unloading=frozenset({B}))], [want(A, maximum=1), want(B, Rank.DEMAND)])
    assert not again.added and again.unplaced[B].text == "b@1 waits until b@1 has left r0"
    assert placed([slot("r0", A)], wants).added.keys() == {Place(C, "r0")}


def test_a_decision_does_not_waver_while_the_leaving_one_still_leaves() -> None:
    wants = [want(A, last_used_at=1, maximum=1), want(B, last_used_at=5, maximum=1), want(C, Rank.DEMAND)]
    result = placed([slot("r0", A, B)], wants, leaving_before=[Place(B, "r0")])
    assert set(result.leaving) == {Place(B, "r0")}, "A became older, but B is half gone"


def test_a_copy_to_spare_leaves_before_somebodys_last_one() -> None:
    wants = [want(A, last_used_at=1), want(B, last_used_at=5, minimum=1), want(C, Rank.DEMAND)]
    result = placed([slot("r0", A, B), slot("r1", B, capacity=60)], wants)
    assert set(result.leaving) == {Place(B, "r0")}


def test_what_always_stays_is_never_a_victim() -> None:
    result = placed([slot("r0", A, B)], [want(A, Rank.ALWAYS), want(B, Rank.ALWAYS), want(C, Rank.DEMAND)])
    assert not result.leaving
    assert result.unplaced[C].code == "NO_ROOM"


def test_auto_takes_only_free_room() -> None:
    result = placed([slot("r0", A, B)], [want(A, maximum=1), want(B, maximum=1), want(C)])
    assert not result.leaving
    assert result.unplaced[C].code == "ON_DEMAND"


def test_keep_asks_for_nothing() -> None:
    result = placed([slot("r0"), slot("r1", B)], [want(A, Rank.KEEP), want(B, Rank.KEEP)])
    assert not result.added and not result.unplaced and not result.leaving


def test_an_ensemble_brings_its_steps_and_protects_them() -> None:
    wants = [want(A, Rank.ROLLOUT, requires=(STEP,)), want(STEP, Rank.AUTO, size=10, maximum=1, last_used_at=-1)]
    result = placed([slot("r0", STEP), slot("r1")], wants)
    assert any(held >= {A, STEP} for held in result.holds.values())
    full = placed(
        [slot("r0", A, STEP, B)],
        [
            want(A, requires=(STEP,), last_used_at=9),
            want(STEP, size=10, last_used_at=0),
            want(B, last_used_at=5),
            want(C, Rank.DEMAND),
        ],
    )
    assert set(full.leaving) == {Place(B, "r0")}, "the step is older, but the ensemble needs it"


def test_steps_are_kept_for_an_ensemble_though_nobody_else_wants_them() -> None:
    result = placed([slot("r0", A, STEP)], [want(A, requires=(STEP,))])
    assert not result.leaving


def test_unwanted_leaves() -> None:
    assert set(placed([slot("r0", A)], []).leaving) == {Place(A, "r0")}


def test_where_it_failed_it_is_not_tried_again() -> None:
    result = placed([slot("r0", failed=frozenset({A})), slot("r1", capacity=50)], [want(A, maximum=1)])
    assert result.holds["r1"] == {A}
    nowhere = placed([slot("r0", failed=frozenset({A}))], [want(A, Rank.DEMAND)])
    assert nowhere.unplaced[A].code == "FAILED"


def test_a_replica_on_its_way_out_gets_nothing_and_does_not_count() -> None:
    result = placed([slot("r0", A, open=False, counts=False), slot("r1")], [want(A, maximum=1)])
    assert result.holds["r1"] == {A}


def test_clashing_versions_do_not_meet() -> None:
    first, second = Key("m", 1), Key("m", 2)
    clashes = {(first, second): "outputs differ"}
    apart = placed([slot("r0", first), slot("r1")], [want(first), want(second, Rank.ROLLOUT)], clashes=clashes)
    assert apart.holds["r1"] == {second}
    nowhere = placed([slot("r0", first)], [want(first), want(second, Rank.ROLLOUT)], clashes=clashes)
    assert nowhere.unplaced[second].code == "CLASH" and "outputs differ" in nowhere.unplaced[second].text


def test_spare_copies_leave_to_what_they_clash_with() -> None:
    first, second = Key("m", 1), Key("m", 2)
    wants = [want(first), want(second, Rank.ROLLOUT)]
    slots = [slot("r0", first), slot("r1", first), slot("r2", first)]
    result = placed(slots, wants, clashes={(first, second): "outputs differ"})
    assert set(result.leaving) == {Place(first, "r0")}
    assert result.unplaced[second].code == "WAITS_FOR_ROOM"
    again = placed(slots, wants, clashes={(first, second): "-"}, leaving_before=[Place(first, "r0")])
    assert set(again.leaving) == {Place(first, "r0")}, "one is enough"
    needed = placed(slots, [want(first, minimum=3), wants[1]], clashes={(first, second): "outputs differ"})
    assert not needed.leaving and needed.unplaced[second].code == "CLASH"


KEYS = [Key(name, 1) for name in "abcdef"]


@given(
    held=st.lists(st.sets(st.sampled_from(KEYS), max_size=3), min_size=1, max_size=4),
    ranks=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(list(Rank))),
    minimum=st.integers(1, 3),
)
def test_memory_is_never_promised_twice(held: list[set[Key]], ranks: dict[Key, Rank], minimum: int) -> None:
    sizes = {key: 10 + 7 * index for index, key in enumerate(KEYS)}
    slots = [slot(f"r{index}", *keys, capacity=100) for index, keys in enumerate(held)]
    wants = [want(key, rank, size=sizes[key], minimum=minimum) for key, rank in ranks.items()]
    result = place(slots, wants, sizes=sizes)
    for each in slots:
        assert result.holds[each.replica] >= each.held, "nothing is dropped before it has left"
        used = sum(sizes[key] for key in result.holds[each.replica])
        assert used <= max(100, sum(sizes[key] for key in each.held))
    for key, name in result.leaving:
        assert key in result.holds[name]
        assert key not in ranks or ranks[key] in (Rank.AUTO, Rank.KEEP), "only the less important makes room"


def test_who_is_asked_least_leaves_and_not_who_was_asked_longest_ago() -> None:
    wants = [
        want(A, use=50.0, last_used_at=1, maximum=1),
        want(B, use=2.0, last_used_at=9, maximum=1),
        want(C, Rank.DEMAND),
    ]
    assert set(placed([slot("r0", A, B)], wants).leaving) == {Place(B, "r0")}


def test_a_spare_copy_makes_room_for_what_is_asked_far_more() -> None:
    def wants(use: float) -> list[Want]:
        return [want(A, use=use, minimum=2, hot=True, size=60), want(B, use=10.0, size=60)]

    slots = [slot("r0", A), slot("r1", B), slot("r2", B)]
    hot = placed(slots, wants(use=30.0))
    assert len(hot.leaving) == 1 and {place.key for place in hot.leaving} == {B}
    assert hot.unplaced[A].code == "WAITS_FOR_ROOM"
    assert not placed(slots, wants(use=15.0)).leaving, "not for what is asked hardly more"
    assert not placed([slot("r0", A), slot("r1", B)], wants(use=30.0)).leaving, "and never somebody's last one"


def test_those_of_high_priority_are_placed_first_and_leave_last() -> None:
    result = placed([slot("r0")], [want(A, use=9.0), want(B, use=5.0), want(C, high=True)])
    assert result.holds["r0"] == {A, C}
    wants = [want(A, high=True, use=1.0), want(B, use=5.0), want(C, Rank.DEMAND)]
    assert set(placed([slot("r0", A, B)], wants).leaving) == {Place(B, "r0")}, "though it is asked more"
    always = placed([slot("r0")], [want(A, Rank.ALWAYS, size=60), want(B, high=True, size=60)])
    assert always.holds["r0"] == {A}, "rank comes before priority"


@pytest.mark.parametrize(
    ("high", "other", "leaves"),
    [
        pytest.param({}, {}, True, id="nobody asks for either"),
        pytest.param({"in_use": True}, {"in_use": True}, True, id="both are in use"),
        pytest.param({}, {"in_use": True}, False, id="only the other one is in use"),
        pytest.param({}, {"high": True}, False, id="it is of high priority too"),
        pytest.param({}, {"rank": Rank.DEMAND}, False, id="somebody waits for the other one"),
        pytest.param({"idle_s": 60.0}, {}, False, id="it is idle"),
    ],
)
def test_one_of_high_priority_that_is_loaded_nowhere_takes_the_room_of_another(
    high: dict[str, Any], other: dict[str, Any], leaves: bool
) -> None:
    result = placed([slot("r0", A)], [want(A, **{"size": 60, **other}), want(B, size=60, high=True, **high)])
    assert set(result.leaving) == ({Place(A, "r0")} if leaves else set())
    again = placed([slot("r0", A), slot("r1", B)], [want(A, size=60), want(B, size=60, high=True, minimum=2)])
    assert not again.leaving, "not for a second copy"


@pytest.mark.parametrize(
    ("held", "asked", "leaves"),
    [
        pytest.param({"in_use": True}, {}, False, id="in use"),
        pytest.param({"in_use": True}, {"high": True}, True, id="in use, but the other one is of high priority too"),
        pytest.param({}, {}, True, id="nobody asks for it"),
        pytest.param({"in_use": True}, {"rank": Rank.ALWAYS}, True, id="always comes before priority"),
        pytest.param({"in_use": True, "rank": Rank.KEEP}, {}, False, id="loaded on demand"),
    ],
)
def test_one_of_high_priority_leaves_for_no_request_while_it_is_in_use(
    held: dict[str, Any], asked: dict[str, Any], leaves: bool
) -> None:
    wants = [want(A, **{"size": 60, "high": True, **held}), want(B, **{"size": 60, "rank": Rank.DEMAND, **asked})]
    result = placed([slot("r0", A)], wants)
    assert set(result.leaving) == ({Place(A, "r0")} if leaves else set())
    assert result.unplaced[B].code == ("WAITS_FOR_ROOM" if leaves else "NO_ROOM")


def test_copies_go_where_others_are_together() -> None:
    """A hundred models of four sizes with two copies each, on ten replicas: any two of them could be a pool."""
    wants = [want(Key(f"m{n:03d}", 1), size=1 + n % 4, minimum=2, maximum=2) for n in range(100)]
    result = placed([slot(f"r{n}") for n in range(10)], wants)
    pools = {frozenset(name for name, held in result.holds.items() if each.key in held) for each in wants}
    assert not result.unplaced
    assert len(pools) <= 10
    sizes = {each.key: each.size_bytes for each in wants}
    used = [sum(sizes[key] for key in held) for held in result.holds.values()]
    assert max(used) - min(used) <= 20, "within a tenth and the largest of them"
