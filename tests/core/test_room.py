"""A fleet whose size may change has as many replicas as what must have a place takes, and no more for longer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.entry import Serving
from controlplane.core.load import Load, Room
from controlplane.core.messages import Demand
from controlplane.core.names import Key
from controlplane.core.placement.room import Needs
from controlplane.core.placement.terms import Rank, Slot, Want
from tests.core.world import World, ensemble, manifest, promoted

ALWAYS = Serving(load="always")
IDLE_S = 20.0


def elastic(memory_mib: int = 100, least: int = 1, most: int = 4) -> World:
    """A fleet of which nothing is asked, as far as its servers tell, but what a test asks."""
    world = World(least, most=most, memory_mib=memory_mib, idle_s=IDLE_S, down_after_s=5.0)
    world.load = Load(at=world.now, step_s=2.0)
    return world


def register(world: World, name: str, size_mib: int, serving: Serving | None = None) -> Key:
    key = world.registry.register(manifest(name, size_mib=size_mib, serving=serving or Serving()), world.now)
    world.registry.promote(key, world.now)
    return key


def use(world: World, key: Key) -> None:
    """Somebody asks for it and gets an answer."""
    for replica in world.replicas.values():
        if key in replica.copies:
            replica.copies[key] = replace(replica.copies[key], last_used_at=world.now)


def sizes(world: World, turns: int) -> set[int]:
    """The numbers of replicas that there are to be, meanwhile."""
    seen = set()
    for _ in range(turns):
        world.run(1)
        seen.add(world.plan.decisions["cpu"].desired)
    return seen


def why(world: World) -> str:
    (reason,) = world.plan.reasons["fleet/cpu"]
    return reason.text


def test_a_request_for_a_cold_model_gets_a_replica_where_nobody_may_leave_for_it() -> None:
    world = elastic()
    fixed = promoted(world, "fixed", size_mib=80, serving=ALWAYS)
    cold = promoted(world, "cold", size_mib=60, serving=Serving(load="on_demand"))
    assert world.stable("cold") == 1, "its proof took a replica of its own"
    assert sizes(world, 120) == {1, 2} and not world.served(cold) and world.served(fixed)
    assert set(world.replicas) == {"cpu-0"} and world.plan.decisions["cpu"].desired == 1
    started = world.started
    world.gateways["gw-0"].demand = (Demand(model="cold", version=1, waiting=1),)
    world.run(1)
    assert "shall have 2" in why(world) and "fixed@1 (always); cold@1 (somebody waits for it)" in why(world)
    world.run(8)
    assert world.served(cold) == {"cpu-1"}
    world.gateways["gw-0"].demand = ()
    for _ in range(10):  # it is asked now and then, and nobody waits: it stays
        use(world, cold)
        assert sizes(world, 20) == {2}
    assert world.started == started + 1 and "cold@1 (asked of late)" in why(world)
    assert 1 in sizes(world, 100)
    assert set(world.replicas) == {"cpu-0"} and world.served(fixed), "nobody needs it any more"


def test_what_is_asked_for_at_once_and_has_no_place_together_gets_one_each() -> None:
    """Either of them finds room beside what is pinned, but not both: neither leaves for the other again and again."""
    world = elastic()
    promoted(world, "fixed", size_mib=30, serving=ALWAYS)
    keys = [promoted(world, name, size_mib=60, serving=Serving(load="on_demand")) for name in ("a", "b")]
    world.run(200)
    assert len(world.replicas) == 1
    started = world.started
    world.gateways["gw-0"].demand = tuple(Demand(model=key.model, version=1, waiting=1) for key in keys)
    world.run(20)
    world.gateways["gw-0"].demand = ()
    for _ in range(10):
        for key in keys:
            assert world.served(key)
            use(world, key)
        world.run(20)
    assert world.started == started + 1 and len(world.replicas) == 2
    world.run(200)
    assert len(world.replicas) == 1


def test_what_is_always_loaded_is_packed_not_divided() -> None:
    world = elastic()
    keys = [register(world, name, 60, ALWAYS) for name in ("a", "b", "c")]
    world.run(60)
    assert world.started == 3 and all(len(world.served(key)) == 1 for key in keys)
    assert "3 replicas have a place for a@1, b@1, c@1 (always)" in why(world)
    assert sizes(world, 200) == {3}, "nothing is asked, and they stay"
    world.registry.delete(keys[1], world.now)
    world.run(100)
    assert len(world.replicas) == 2 and world.started == 3
    assert all(world.served(key) for key in (keys[0], keys[2]))


def test_the_last_one_that_fits_nowhere_is_not_waited_for_with_more_replicas() -> None:
    world = elastic(most=2)
    keys = [register(world, name, 60, ALWAYS) for name in ("a", "b", "c")]
    large = register(world, "large", 200, ALWAYS)
    assert max(sizes(world, 100)) == 2
    assert sum(bool(world.served(key)) for key in keys) == 2 and not world.served(large)
    assert "that would take 3" in why(world)
    alone = elastic()
    register(alone, "large", 200, ALWAYS)
    assert sizes(alone, 100) == {1}


def test_copies_that_an_entry_asks_for_have_replicas() -> None:
    world = elastic(memory_mib=1000)
    key = promoted(world, serving=Serving(min_copies=3))
    world.run(20)
    assert world.served(key) == {"cpu-0", "cpu-1", "cpu-2"}
    assert "m@1 (in several copies)" in why(world)
    assert sizes(world, 200) == {3} and world.started == 3
    world.registry.delete(key, world.now)
    world.run(100)
    assert len(world.replicas) == 1 and world.started == 3


def test_too_few_replicas_for_the_copies_are_told() -> None:
    world = World(replicas=1)
    key = promoted(world, serving=Serving(min_copies=3))
    assert [each.text for each in world.plan.reasons[f"version/{key}"]] == [
        "m@1 has 1 of 3 copies: there is no further replica"
    ]


def test_copies_that_load_asked_for_keep_no_replica_when_the_load_is_gone() -> None:
    world = elastic(least=0, most=3)
    key = promoted(world, "hot", size_mib=20)
    busy = Load(at=world.now, step_s=2.0, demand=2.5, rate_per_s=9.0, copies={key: 2.5})
    world.load = busy
    for _ in range(20):
        use(world, key)
        world.run(1)
    assert world.served(key) == {"cpu-0", "cpu-1", "cpu-2"}
    world.load = replace(busy, demand=0.2)  # how many copies were busy fades slowly
    seen = set()
    for _ in range(60):
        use(world, key)
        seen |= sizes(world, 1)
    assert len(world.served(key)) == 1, seen


def test_several_copies_keep_no_fleet_from_zero() -> None:
    world = elastic(least=0, memory_mib=1000)
    key = register(world, "m", 100, Serving(min_copies=2))
    sizes(world, 30)
    assert len(world.served(key)) == 2
    assert not world.plan.table.asleep
    asleep = set()
    for _ in range(200):
        world.run(1)
        asleep.add((bool(world.plan.table.endpoints), world.plan.table.asleep))
    assert asleep == {(True, False), (False, True)}, "gateways answer for the servers as soon as none is left"
    assert not world.replicas and world.started <= 3
    world.gateways["gw-0"].demand = (Demand(model="m", version=1, waiting=1),)
    world.run(1)
    assert "shall have 2: somebody has asked for m@1" in why(world) and world.plan.table.asleep, "it only begins"
    world.run(20)
    assert len(world.served(key)) == 2 and not world.plan.table.asleep
    for each in world.replicas.values():
        each.crash()
    world.turn()
    assert not world.plan.table.asleep, "who is down has been there: nobody is told that all is well"


def test_a_rollout_of_what_is_to_be_apart_waits_for_a_replica_of_its_own() -> None:
    world = elastic(memory_mib=1000)
    big = promoted(world, "big")
    other = register(world, "other", 100, Serving(apart_from=("big",)))
    world.run(4)
    rollout = world.registry.models["other"].rollout
    assert rollout is not None and rollout.state == "running"
    assert "other@1 (promoted); big@1 (apart from these)" in why(world)
    world.run(30)
    assert world.stable("other") == 1
    assert not world.served(big) & world.served(other)
    for _ in range(5):
        use(world, other)
        assert sizes(world, 20) == {2}
    assert world.started == 2
    world.run(150)
    assert len(world.replicas) == 1, "nobody asks for either of them"


def test_a_rollout_that_can_get_no_replica_fails_at_once() -> None:
    world = elastic(memory_mib=1000, most=2)
    promoted(world, "one")
    promoted(world, "two", serving=Serving(apart_from=("one",)))
    register(world, "three", 100, Serving(apart_from=("one", "two")))
    world.run(30)
    rollout = world.registry.models["three"].rollout
    assert rollout is not None and rollout.state == "failed" and "apart from" in rollout.reason


def test_a_clashing_version_is_promoted_on_another_replica() -> None:
    world = elastic(memory_mib=1000)
    world.clash = lambda one, other: "outputs differ"
    promoted(world)
    second = world.registry.register(manifest("m"), world.now)
    world.registry.promote(second, world.now)
    while world.stable("m") == 1:
        world.run(1)
        assert world.gateways["gw-0"].table.routes["m"].targets[0].pool is not None, "it is served all the while"
    for _ in range(20):
        use(world, second)
        world.run(10)
    print(why(world), world.plan.reasons)
    assert len(world.replicas) == 1 and world.served(second) and world.started == 2


def test_pieces_of_free_memory_that_are_too_small_are_seen() -> None:
    """Packed anew all of it would have a place; but what is there does not move, so there is one more, and it stays."""
    world = elastic(most=6)
    world.load = Load(at=world.now, step_s=2.0, demand=3.9)
    world.run(20)
    small = [promoted(world, name, size_mib=30, serving=Serving(load="always", max_copies=1)) for name in "abcd"]
    held = [len(replica.copies) for replica in world.replicas.values()]
    assert held == [1] * len(held), "one on each"
    large = register(world, "large", 90, ALWAYS)
    world.run(40)
    assert world.served(large)
    world.load = Load(at=world.now, step_s=2.0)
    world.run(60)
    before = world.started
    assert sizes(world, 300) == {5} and world.started == before
    assert world.served(large) and all(world.served(key) for key in small)


def test_a_bad_model_is_no_reason_for_a_replica() -> None:
    world = elastic()
    promoted(world, "fixed", size_mib=60, serving=ALWAYS)
    bad = register(world, "bad", 60)
    world.bad[bad] = "model"
    world.run(100)
    assert world.started <= 2 and world.registry.models["bad"].rollout.state == "failed"  # type: ignore[union-attr]


def test_a_silent_replica_is_no_reason_for_another_one() -> None:
    world = elastic()
    for name in ("a", "b"):
        promoted(world, name, size_mib=60, serving=ALWAYS)
    assert len(world.replicas) == 2
    world.replicas["cpu-1"].silent = True
    assert sizes(world, 120) == {2} and world.started == 2


# Without a world.


def want(name: str, size: int, rank: Rank = Rank.ALWAYS, **options: object) -> Want:
    return Want(key=Key(name, 1), size_bytes=size, rank=rank, **options)  # type: ignore[arg-type]


def needs(wants: list[Want], before: Room | None = None, *, capacity: int = 100) -> Needs:
    sizes_ = {each.key: each.size_bytes for each in wants}
    return Needs(wants, before or Room(), capacity_bytes=capacity, sizes=sizes_, clashes={}, loaded=())


@pytest.mark.parametrize(
    ("wants", "expected"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([want("a", 100), want("b", 1, Rank.AUTO)], 1, id="what may be cold needs none"),
        pytest.param([want("a", 60), want("b", 60), want("c", 60)], 3, id="more than half each"),
        pytest.param([want(name, 40) for name in "abcde"], 3, id="two on each"),
        pytest.param([want("a", 50), want("b", 50)], 1, id="exactly"),
        pytest.param([want("a", 10, minimum=3, least=3)], 3, id="copies"),
        pytest.param([want("a", 10, minimum=3, least=1)], 1, id="copies for the load are not asked for by the entry"),
        pytest.param([want("a", 101)], 0, id="what fits nowhere"),
        pytest.param([want("a", 10, minimum=0)], 0, id="quarantined"),
        pytest.param([want("a", 10, Rank.AUTO, minimum=2, least=2)], 2, id="copies of what may leave"),
        pytest.param([want("a", 10, Rank.AUTO, minimum=2, least=2, idle_s=9.0)], 0, id="but not when it is idle"),
    ],
)
def test_how_many_it_takes(wants: list[Want], expected: int) -> None:
    assert needs(wants).room(1, 9, 0.0).replicas == expected


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 40))
def test_with_as_many_as_it_takes_everything_fits_and_it_stays_so(each: list[int], present: int) -> None:
    wants = [want(f"m{index}", size) for index, size in enumerate(each)]
    cramped = frozenset(each.key for each in wants)
    found = needs(wants, Room(cramped=cramped)).room(present, present + 40, 0.0)
    assert found.replicas <= present + len(wants), "one each is enough"
    empty = [Slot(replica=f"r{number:02}", capacity_bytes=100) for number in range(found.replicas)]
    assert needs(wants, found).still_fits(found.replicas, empty) == found.replicas
    assert needs(wants, found).room(present, 80, 0.0) == replace(found, cramped=frozenset())


def test_an_ensemble_takes_its_steps_along() -> None:
    world = elastic()
    step = promoted(world, "step", size_mib=50, serving=Serving(max_copies=1))
    promoted(world, "fixed", size_mib=60, serving=ALWAYS)
    whole = world.registry.register(ensemble("whole", step), world.now)
    world.registry.promote(whole, world.now)
    world.run(30)
    assert world.stable("whole") == 1 and len(world.replicas) == 2


def test_who_has_waited_longest_for_room_gets_it_however_seldom_it_is_asked_for() -> None:
    """Twelve models share the room of five; somebody always asks for each of them, for some more than for others."""
    world = World(1, memory_mib=100)
    world.load = Load(at=world.now, step_s=2.0, rate_per_s=10.0, demand=0.5)
    keys = [register(world, f"m{number:02}", 20, Serving(load="on_demand", max_copies=1)) for number in range(12)]
    world.run(20)
    world.load = replace(world.load, use={key: float(number) for number, key in enumerate(keys)})
    gateway, waited, longest = world.gateways["gw-0"], dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
    for _ in range(600):
        cold = [key for key in keys if not world.served(key)]
        gateway.demand = tuple(Demand(model=key.model, version=1, waiting=1) for key in cold)
        for key in keys:
            waited[key] = waited[key] + 1 if key in cold else 0
            longest[key] = max(longest[key], waited[key])
        world.run(1)
    assert max(longest.values()) < 3 * min(longest.values()), longest


def test_who_asks_again_and_again_with_short_deadlines_keeps_the_place() -> None:
    world = World(1, memory_mib=20)
    world.load = Load(at=world.now, step_s=2.0, rate_per_s=10.0, demand=0.5)
    keys = []
    for name in "abc":
        keys.append(register(world, name, 20, Serving(load="on_demand", max_copies=1)))
        world.run(20)
    gateway, served = world.gateways["gw-0"], dict.fromkeys(keys, 0)
    for turn in range(400):
        cold = [key for key in keys if not world.served(key)]
        patient = [key for key in cold if key.model != "a" or turn % 8]  # its clients give up and come back
        gateway.demand = tuple(Demand(model=key.model, version=1, waiting=1) for key in patient)
        world.run(1)
        for key in keys:
            served[key] += bool(world.served(key))
    assert min(served.values()) > max(served.values()) / 3, served
