"""What all fleets together may have."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from controlplane.core.actions import StartReplica
from controlplane.core.load import Load
from controlplane.core.models import Capabilities, FleetRecord, FleetShape, ManualScale, Window
from controlplane.core.plan import Plan, plan
from controlplane.core.scaling.budget import Budget, Claim
from controlplane.core.scaling.limits import Limits
from controlplane.core.snapshot import ReplicaView, Settings, Snapshot
from tests.core.world import SETTINGS, World, promoted


@pytest.mark.parametrize("settings", [Settings(max_replicas=5), Settings(max_gpus=5)], ids=["replicas", "GPUs"])
def test_fleets_share_a_budget(settings: Settings) -> None:
    fleets = {
        name: FleetRecord(shape=FleetShape(name=name, gpus=1, min_replicas=3, max_replicas=4)) for name in ("a", "b")
    }
    made = plan(Snapshot(fleets=fleets, settings=settings), 1_000.0)
    started = sorted(each.replica for each in made.actions if isinstance(each, StartReplica))
    assert started == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert "leaves 2 more" in made.decisions["b"].reason.text


WIDE = Limits(least=0, most=9, why="the deployment asks for 0 to 9")


def test_a_budget_bounds_what_is_added_and_takes_nothing_away() -> None:
    claims = {"one": Claim(present=2), "with GPUs": Claim(present=2, gpus=4), "large": Claim(present=5)}
    budget = Budget(left={"replicas": 3, "GPUs": 4}, claims=claims)
    assert budget.allows("one", WIDE).most == 5
    told = budget.allows("with GPUs", WIDE)
    assert told.most == 3 and "the budget of GPUs leaves 1 more" in told.why
    assert budget.allows("one", replace(WIDE, most=4)).most == 4, "it allows more than is asked"
    budget.take("with GPUs", 3)
    assert budget.left == {"replicas": 2, "GPUs": 0}
    assert not budget.has_room("with GPUs") and budget.has_room("one")
    budget.take("one", 4)
    assert budget.allows("large", WIDE) == replace(
        WIDE, most=5, why=WIDE.why + ", and the budget of replicas leaves 0 more", is_cut=True
    )
    assert budget.allows("large", replace(WIDE, least=7)).least == 5
    budget.take("large", 3)
    assert budget.left["replicas"] == 0, "who leaves has not left yet"
    assert Budget(claims={"large": Claim(present=5, gpus=8)}).allows("large", WIDE) == WIDE


def test_what_a_fleet_must_have_is_kept_for_it() -> None:
    claims = {"a": Claim(present=1), "b": Claim(present=1, least=3, gpus=2), "c": Claim(gpus=1)}
    budget = Budget(left={"replicas": 5, "GPUs": 5}, claims=claims)
    told = budget.allows("a", WIDE)
    assert told.most == 4 and "leaves 3 more beside what others must have (2)" in told.why
    assert budget.allows("b", WIDE).most == 3, "GPUs for one more than it must have are not left"
    assert budget.allows("c", WIDE).most == 1
    budget.take("b", 3)
    assert budget.allows("a", WIDE).most == 4 and budget.allows("c", WIDE).most == 1, "it has them now"


def test_who_is_waited_for_comes_after_what_must_be_and_before_what_would_be_good() -> None:
    claims = {"a": Claim(present=1, needed=True), "b": Claim(needed=True), "c": Claim(present=1, least=2)}
    budget = Budget(left={"replicas": 2}, claims=claims)
    assert budget.allows("a", WIDE).most == 1, "it has one"
    assert budget.allows("b", WIDE).most == 1
    assert budget.allows("c", WIDE).most == 2
    budget.left["replicas"] = 1
    assert [budget.allows(name, WIDE).most for name in "abc"] == [1, 0, 2]
    budget.claims["c"] = Claim(present=2, least=2)
    assert [budget.allows(name, WIDE).most for name in "abc"] == [1, 1, 2]
    assert not any(budget.has_room(name) for name in "abc"), "for one that replaces another"


def test_what_a_deployment_asks_for_comes_before_a_schedule_or_a_hand() -> None:
    claims = {"a": Claim(least=3), "b": Claim(floor=1, least=1), "c": Claim(needed=True)}
    budget = Budget(left={"replicas": 3}, claims=claims)
    assert [budget.allows(name, WIDE).most for name in "abc"] == [2, 1, 0]
    budget.claims["a"] = Claim(present=2, least=3)
    budget.left["replicas"] = 1
    assert [budget.allows(name, WIDE).most for name in "abc"] == [2, 1, 0]


def test_nothing_is_kept_for_who_is_waited_for_and_has_no_room_in_any_case() -> None:
    claims = {"a": Claim(present=1, gpus=1), "b": Claim(needed=True, gpus=8)}
    budget = Budget(left={"replicas": 9, "GPUs": 7}, claims=claims)
    assert budget.allows("a", WIDE).most == 8
    budget.left["GPUs"] = 8
    assert budget.allows("a", WIDE).most == 1


CAPABLE = Capabilities(server_version="2.51.0", backends=())


class Fleets:
    """Fleets whose replicas come at once, and leave a few seconds after they were told to."""

    def __init__(self, settings: Settings, **shapes: FleetShape) -> None:
        self.settings, self.now = settings, 1_000_000.0
        self.records = {
            name: FleetRecord(shape=replace(shape, name=name), capabilities=CAPABLE) for name, shape in shapes.items()
        }
        self.there: dict[str, str] = {}
        self.demand = dict.fromkeys(shapes, 0.0)
        self.leaves_at: dict[str, float] = {}
        self.plan = Plan()

    def run(self, seconds: float = 120) -> dict[str, int]:
        """How many of each fleet there are then."""
        for _ in range(int(seconds / 2)):
            self._turn()
            most = self.settings.max_replicas
            assert most is None or len(self.there) <= most
        return {name: list(self.there.values()).count(name) for name in self.records}

    def why(self, fleet: str) -> str:
        return self.plan.reasons[f"fleet/{fleet}"][0].text

    def set_by_hand(self, fleet: str, replicas: int) -> None:
        manual = ManualScale(replicas=replicas, actor="ann", at=datetime.now(UTC))
        self.records[fleet] = replace(self.records[fleet], manual=manual)

    def _turn(self) -> None:
        self.now += 2
        loads = {
            name: Load(at=self.now, step_s=2, demand=demand, features=(math.log1p(demand),) * 3)
            for name, demand in self.demand.items()
        }
        replicas = {name: ReplicaView(name=name, fleet=fleet, heard_at=self.now) for name, fleet in self.there.items()}
        self.plan = plan(
            Snapshot(
                fleets=self.records,
                settings=self.settings,
                replicas=replicas,
                loads=loads,
                scalers=self.plan.scalers,
                stopping=self.plan.stopping,
            ),
            self.now,
        )
        for action in self.plan.actions:
            if isinstance(action, StartReplica):
                self.there[action.replica] = action.fleet
        self.leaves_at = {name: self.leaves_at.get(name, self.now + 6) for name in self.plan.stopping}
        for name, at in self.leaves_at.items():
            if at <= self.now:
                del self.there[name]


ELASTIC = FleetShape(name="-", min_replicas=0, max_replicas=6, down_after_s=20)


@pytest.mark.parametrize("budget", [Settings(max_replicas=6), Settings(max_gpus=6)], ids=["replicas", "GPUs"])
def test_a_busy_fleet_leaves_others_what_they_must_have(budget: Settings) -> None:
    fleets = Fleets(budget, a=replace(ELASTIC, gpus=1), b=replace(ELASTIC, min_replicas=2, gpus=1))
    fleets.demand["a"] = 9.0
    assert fleets.run() == {"a": 4, "b": 2}
    assert fleets.why("a").startswith("fleet a has 4 replicas: what arrives keeps 9.00 replicas busy")
    assert "leaves 0 more" in fleets.why("a")


def test_a_schedule_of_one_fleet_leaves_the_others_their_least() -> None:
    always = Window(days=tuple(range(7)), begins_min=0, ends_min=1440, timezone="UTC", min_replicas=3)
    fleets = Fleets(
        Settings(max_replicas=3), a=replace(ELASTIC, schedule=(always,)), b=replace(ELASTIC, min_replicas=1)
    )
    fleets.demand["b"] = 9.0
    assert fleets.run() == {"a": 2, "b": 1}
    assert "that would take" in fleets.why("b") and "the budget of replicas leaves 0 more" in fleets.why("b")


def test_what_is_set_by_hand_is_kept_as_soon_as_there_is_room() -> None:
    fleets = Fleets(Settings(max_replicas=6), a=ELASTIC, b=ELASTIC)
    fleets.demand["a"] = 9.0
    assert fleets.run() == {"a": 6, "b": 0}
    fleets.set_by_hand("b", 4)
    assert fleets.run() == {"a": 6, "b": 0}, "what a fleet has is not taken away"
    assert "the budget of replicas leaves 0 more" in fleets.why("b")
    fleets.demand["a"] = 2.0
    there = fleets.run()
    assert there["b"] == 6 - there["a"] > 0
    fleets.demand["a"] = 1.0
    fleets.run()
    fleets.demand["a"] = 9.0
    assert fleets.run() == {"a": 2, "b": 4}


def test_nothing_is_kept_that_can_not_be_had() -> None:
    fleets = Fleets(Settings(max_gpus=4), a=replace(ELASTIC, gpus=1), b=replace(ELASTIC, gpus=8))
    fleets.demand |= {"a": 9.0, "b": 1.0}
    fleets.set_by_hand("b", 2)
    assert fleets.run() == {"a": 4, "b": 0}


def test_what_must_be_there_may_be_more_than_there_is() -> None:
    fleets = Fleets(Settings(max_replicas=5), a=ELASTIC, b=ELASTIC)
    for name in ("a", "b"):
        fleets.set_by_hand(name, 4)
    assert sum(fleets.run().values()) == 5


def test_a_replacement_and_one_more_at_once_stay_within_the_budget() -> None:
    world = World(replicas=2)
    world.memory.settings = replace(SETTINGS, max_replicas=3)
    promoted(world)
    for _ in range(3):
        world.replicas["cpu-0"].crash()
        world.turn()
        world.turn()
    world.resize(3)
    for _ in range(60):
        world.turn()
        assert len(world.replicas) <= 3


@pytest.mark.parametrize(("budget", "most"), [(2, 2), (3, 3)])
def test_a_replacement_waits_for_the_budget(budget: int, most: int) -> None:
    world = World(replicas=2)
    world.memory.settings = replace(SETTINGS, max_replicas=budget)
    promoted(world)
    seen, told = set(), ""
    for _ in range(3):
        world.replicas["cpu-0"].crash()
        for _ in range(8):
            world.turn()
            seen.add(len(world.replicas))
            told += "; ".join(each.text for each in world.plan.reasons["fleet/cpu"])
    assert max(seen) == most
    assert ("once the budget leaves room for the new one" in told) == (budget == 2)


def test_so_many_start_at_the_same_time_and_no_more() -> None:
    world = World(replicas=0)
    world.memory.settings = replace(SETTINGS, starts_at_once=3)
    world.resize(8)
    world.cycle()
    assert len(world.replicas) == 3
    assert "5 of them start when those that are starting are up" in world.plan.reasons["fleet/cpu"][0].text
    for replica in world.replicas.values():
        replica.silent = True
    world.run(5)
    assert len(world.replicas) == 3, "nobody has heard that one of them is up"
    for replica in world.replicas.values():
        replica.silent = False
    world.run()
    assert len(world.replicas) == 8
    world.replicas["cpu-0"].crash()
    world.turn()
    world.resize(12)
    world.cycle()
    assert len(world.replicas) == 11, "one that starts anew holds nobody up"
    for replica in world.replicas.values():
        replica.silent = True
    world.restart_controller()
    world.cycle()
    world.now += SETTINGS.settle_s + 1
    world.cycle()
    world.resize(20)
    world.cycle()
    assert len(world.replicas) > 11, "nor do those that a new controller has not heard"
