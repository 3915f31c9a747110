"""Who leaves: whoever costs least to have back for the memory that it frees; equal ones as if nobody had asked that."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.names import Key, Place
from controlplane.core.placement.placing import place
from controlplane.core.placement.terms import Placement, Rank, Slot, Want
from controlplane.core.placement.victims import who_leaves

A, B, NEW = Key("a", 1), Key("b", 1), Key("new", 1)
LARGE = Key("large", 1)
SMALL = [Key(f"small-{number}", 1) for number in range(8)]


def want(key: Key, size: int = 40, **options: object) -> Want:
    return Want(key=key, size_bytes=size, rank=Rank.AUTO, maximum=1, **options)  # type: ignore[arg-type]


def asked(size: int) -> Want:
    """Somebody waits for it."""
    return Want(key=NEW, size_bytes=size, rank=Rank.DEMAND)


def slot(name: str, *held: Key, capacity: int) -> Slot:
    return Slot(replica=name, capacity_bytes=capacity, held=frozenset(held))


def placed(slots: list[Slot], wants: list[Want], *before: Place) -> Placement:
    sizes = {each.key: each.size_bytes for each in wants}
    return place(slots, wants, sizes=sizes, leaving_before=before)


def leaves(slots: list[Slot], wants: list[Want]) -> set[Key]:
    return {each.key for each in placed(slots, wants).leaving}


def mixed(large: float, small: float) -> list[Want]:
    """One of 80 bytes and eight of 10, with what each is asked."""
    return [want(LARGE, 80, use=large), *(want(key, 10, use=small) for key in SMALL)]


def test_one_large_model_leaves_rather_than_eight_small_ones() -> None:
    here = slot("r0", LARGE, *SMALL, capacity=160)
    assert leaves([here], [*mixed(2.0, 1.9), asked(80)]) == {LARGE}
    assert leaves([here], [*mixed(20.0, 1.9), asked(80)]) == set(SMALL), "together they are asked less"


def test_the_replica_where_it_costs_least_makes_room() -> None:
    slots = [slot("r0", *SMALL, capacity=80), slot("r1", LARGE, capacity=80)]
    assert leaves(slots, [*mixed(2.0, 1.9), asked(80)]) == {LARGE}
    assert leaves(slots, [*mixed(20.0, 1.9), asked(80)]) == set(SMALL)
    slots = [slot("r0", A, capacity=40), slot("r1", B, capacity=40)]
    slow = [want(A, use=1.0, reload_s=20.0), want(B, use=2.0, reload_s=1.0)]
    assert leaves(slots, [*slow, asked(40)]) == {B}


def test_what_loads_slowly_stays_before_what_loads_quickly() -> None:
    here = slot("r0", A, B, capacity=80)
    for slow, quick in ((A, B), (B, A)):
        wants = [want(slow, use=3.0, reload_s=9.0, last_used_at=1), want(quick, use=3.0, reload_s=2.0, last_used_at=2)]
        assert leaves([here], [*wants, asked(40)]) == {quick}
    often = [want(A, use=3.0, reload_s=9.0), want(B, use=30.0, reload_s=2.0)]
    assert leaves([here], [*often, asked(40)]) == {A}, "but how often it is asked counts as much"


def test_what_turns_out_to_be_needless_stays() -> None:
    """The small ones are worth the least by memory, but only the large one makes room enough, and does so alone."""
    wants = [want(LARGE, 80, use=9.0), *(want(key, 10, use=1.0) for key in SMALL[:3])]
    assert leaves([slot("r0", LARGE, *SMALL[:3], capacity=110)], [*wants, asked(80)]) == {LARGE}
    assert leaves([slot("r0", LARGE, *SMALL[:3], capacity=110)], [*wants, asked(90)]) == {LARGE, SMALL[0]}


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from([Rank.AUTO, Rank.KEEP])), max_size=8),
    st.integers(1, 300),
    st.sampled_from([0.3, 1.0, 7.7]),
)
def test_equal_models_leave_in_the_order_in_which_they_are_asked(
    models: list[tuple[int, int, Rank]], missing: int, reload_s: float
) -> None:
    """One size, one time to load: by rank, then who is asked least, then who was asked longest ago."""
    wants = [
        replace(want(Key(f"m{number}", 1), 40, use=use / 3, last_used_at=used, reload_s=reload_s), rank=rank)
        for number, (use, used, rank) in enumerate(models)
    ]
    by_use = sorted(wants, key=lambda each: (-each.rank, each.use, each.last_used_at, each.key))
    count = -(-missing // 40)
    found = who_leaves(wants, missing, sizes={each.key: 40 for each in wants}, is_last=lambda key: True)
    assert found == (by_use[:count] if count <= len(wants) else None)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 9), st.floats(0.01, 90)), max_size=9),
    st.integers(1, 200),
)
def test_as_much_room_as_is_needed_and_nobody_leaves_for_nothing(
    models: list[tuple[int, float, float]], missing: int
) -> None:
    wants = [
        want(Key(f"m{number}", 1), size, use=use, reload_s=reload_s)
        for number, (size, use, reload_s) in enumerate(models)
    ]
    sizes = {each.key: each.size_bytes for each in wants}
    found = who_leaves(wants, missing, sizes=sizes, is_last=lambda key: True)
    if found is None:
        assert sum(sizes.values()) < missing
        return
    freed = sum(sizes[each.key] for each in found)
    assert freed >= missing
    assert all(freed - sizes[each.key] < missing for each in found)


def test_two_of_like_worth_do_not_take_turns() -> None:
    """Nobody asks for the one that is out, or its request is served: what is measured may waver, and nothing moves.
    While the room is being made, the decision stays, too."""
    here = slot("r0", A, capacity=60)
    for turn in range(10):
        wants = [want(A, use=3.0, reload_s=2.0 + turn % 2), want(B, use=3.0, reload_s=3.0 - turn % 2)]
        assert not placed([here], wants).leaving, "there is no request"
    full, new = slot("r0", A, B, capacity=80), asked(40)
    first = placed([full], [want(A, use=3.0, reload_s=2.0), want(B, use=3.0, reload_s=2.1), new])
    assert set(first.leaving) == {Place(A, "r0")}
    for turn in range(10):
        wants = [want(A, use=3.0, reload_s=2.2 - turn % 2 / 5), want(B, use=3.0, reload_s=2.1), new]
        assert set(placed([full], wants, *first.leaving).leaving) == {Place(A, "r0")}


def test_a_spare_copy_leaves_for_what_is_asked_far_more_however_quickly_it_loads() -> None:
    """How long it loads says which copy leaves, not whether one may."""

    def wants(use: float) -> list[Want]:
        hot = replace(want(A, use=use, hot=True, minimum=2), maximum=None)
        return [hot, replace(want(B, use=10.0, reload_s=0.01), maximum=None)]

    slots = [slot("r0", A, capacity=60), slot("r1", B, capacity=60), slot("r2", B, capacity=60)]
    assert not placed(slots, wants(15.0)).leaving
    assert placed(slots, wants(30.0)).leaving
