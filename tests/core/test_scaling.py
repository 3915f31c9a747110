"""How many replicas: what is known in, a decision with its reason out."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.load import Believed, Contest, Features, Load, Moment, Scaler
from controlplane.core.models import FleetRecord, FleetShape, Goal, ManualScale, Window
from controlplane.core.scaling.analogs import SHORT, STEADY_FEWEST, Past, likely_need, needed
from controlplane.core.scaling.decision import Decision, decide
from controlplane.core.scaling.forecasts import ANALOGS, NONE
from controlplane.core.scaling.limits import Limits, is_open, limits_of, sizes
from controlplane.core.scaling.steady import CLOSE, enough, late

SHAPE = FleetShape(name="cpu", min_replicas=0, max_replicas=8, down_after_s=20, idle_s=60)
LIMITS = Limits(least=0, most=8, why="the deployment asks for 0 to 8")
STEP_S = 2.0


class Fleet:
    """A fleet that does at once what is decided, and is measured every two seconds."""

    def __init__(
        self, shape: FleetShape = SHAPE, limits: Limits = LIMITS, present: int = 0, believes: str = ""
    ) -> None:
        self.shape, self.limits, self.present = shape, limits, present
        self.now = 1_000_000.0
        self.scaler = Scaler(contest=Contest(usual=Believed(believes) if believes else None))
        self.decision: Decision | None = None

    def step(self, *, waited_for: str = "", measured: bool = True, **load: Any) -> int:
        self.now += STEP_S
        given = self.load(**load) if measured else None
        self.decision, self.scaler = decide(
            self.shape, self.limits, given, self.scaler, present=self.present, waited_for=waited_for, now=self.now
        )
        self.present = self.decision.desired
        return self.present

    def load(self, demand: float = 0.0, features: Features | None = None, **load: Any) -> Load:
        """A load as it has been for a while, unless `features` say another past."""
        past = (math.log1p(demand),) * 3 if features is None else features
        return Load(at=self.now, step_s=STEP_S, demand=demand, features=past, **load)

    def run(self, seconds: float, **load: Any) -> int:
        for _ in range(int(seconds / STEP_S)):
            self.step(**load)
        return self.present

    @property
    def why(self) -> str:
        assert self.decision is not None
        return self.decision.reason.text


def test_nothing_is_started_while_nothing_is_asked() -> None:
    fleet = Fleet()
    assert fleet.run(10) == 0


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"held": 1}, id="a request is held"),
        pytest.param({"rate_per_s": 0.1}, id="a request of a model whose cost is not known"),
        pytest.param({"waiting": 1}, id="one in a queue"),
        pytest.param({"waited_for": "m@2 is being rolled out"}, id="a rollout waits"),
    ],
)
def test_the_least_that_is_asked_starts_one(asked: dict[str, Any]) -> None:
    fleet = Fleet()
    assert fleet.step(**asked) == 1
    assert fleet.run(58) == 1, "and it stays for a while"
    assert fleet.decision is not None and fleet.decision.next_desired == 0
    assert fleet.run(10) == 0


def test_a_burst_is_answered_at_once_and_what_waits_counts() -> None:
    assert Fleet(present=1).step(demand=3.0) == math.ceil(3 + math.sqrt(3))
    assert Fleet(present=1).step(demand=0.5, backlog_s=60.0, start_s=10.0) > 5


@pytest.mark.parametrize(("at_once", "spread"), [(1.0, 1.0), (4.0, 0.5), (100.0, 0.1), (0.2, 1.0)])
def test_the_more_requests_a_replica_executes_at_once_the_less_they_spread(at_once: float, spread: float) -> None:
    fleet = Fleet(present=1)
    fleet.step(demand=4.0, at_once=at_once)
    assert fleet.scaler.likely == pytest.approx(4 + 2 * spread)


def test_a_short_rush_on_a_small_fleet_starts_nothing() -> None:
    usual = (math.log1p(0.25),) * 3
    assert Fleet(present=1).step(demand=0.5, features=usual) == 1, "twice as many as usual in one measurement"
    assert Fleet(present=1).step(demand=0.25, features=usual) == 1
    assert Fleet(present=1).step(demand=0.9, features=usual) == 2


def test_fewer_only_after_fewer_have_been_enough_for_long_enough() -> None:
    fleet = Fleet(present=1)
    high = fleet.run(60, demand=2.0)
    low = math.ceil(0.5 + math.sqrt(0.5))
    assert fleet.run(18, demand=0.5) == high
    assert fleet.decision is not None and fleet.decision.next_desired == low
    assert "would do now" in fleet.why
    assert fleet.run(4, demand=0.5) == low


def test_a_controller_that_has_just_begun_to_measure_takes_nothing_away() -> None:
    fleet = Fleet(present=6)
    assert fleet.run(18, demand=0.1) == 6
    assert "first 20 s" in fleet.why
    assert fleet.run(4, demand=0.1) == 1


def test_no_data_is_not_zero() -> None:
    fleet = Fleet(present=1)
    fleet.run(60, demand=2.0)
    high = fleet.present
    for _ in range(100):
        assert fleet.step(measured=False) == high
    assert "without a fresh measurement" in fleet.why
    old = Load(at=fleet.now - 100, step_s=STEP_S)
    decision, _ = decide(SHAPE, LIMITS, old, fleet.scaler, present=5, waited_for="", now=fleet.now)
    assert decision.desired == 5 and "100 s old" in decision.reason.text
    assert fleet.run(40, demand=0.0, complete=False) == high
    assert "not every replica has told" in fleet.why


def test_limits_hold_and_are_told() -> None:
    fleet = Fleet()
    assert fleet.step(demand=50.0) == 8
    assert fleet.decision is not None and fleet.decision.reason.code == "LIMIT"
    assert "that would take" in fleet.why and "0 to 8" in fleet.why
    least = Fleet(limits=Limits(least=2, most=4, why="the deployment asks for 2 to 4"))
    assert least.run(300) == 2
    fixed = Fleet(limits=Limits(least=3, most=3, why="ann has set it to 3"))
    assert fixed.step(demand=50.0) == 3 and fixed.why == "ann has set it to 3"
    old = Load(at=fixed.now - 100, step_s=STEP_S)
    decision, _ = decide(SHAPE, fixed.limits, old, fixed.scaler, present=3, waited_for="", now=fixed.now)
    assert decision.reason.text == "ann has set it to 3 (the last measurement is 100 s old)"


def test_the_share_that_may_be_late_is_corrected_by_what_was_measured() -> None:
    moments = tuple(Moment((0.0, 0.0, 0.0), need=n / 30, weight=1.0) for n in range(1, 301))
    fleet = Fleet(replace(SHAPE, goal=Goal(queue_ms=100, share=0.9)))
    before = fleet.step(demand=1.0, moments=moments, met=0.0, answered=10)
    fleet.run(300, demand=1.0, moments=moments, met=0.5, answered=10)
    assert fleet.scaler.miss == pytest.approx(0.01) and fleet.present >= before
    fleet.run(6000, demand=1.0, moments=moments, met=1.0, answered=10)
    assert fleet.scaler.miss == pytest.approx(0.3)


def test_what_arrives_steadily_is_planned_for_however_long_it_may_wait() -> None:
    moments = tuple(Moment((math.log1p(4.0),) * 3, need=0.5, weight=1.0) for _ in range(300))
    fleet = Fleet(believes=ANALOGS)
    fleet.step(demand=4.0, moments=moments, features=(math.log1p(4.0),) * 3)
    assert fleet.scaler.likely == pytest.approx(3.6), "nine tenths, where the past alone says 0.5"
    assert "moments" not in fleet.why


def test_the_past_is_not_believed_before_it_was_judged() -> None:
    moments = tuple(Moment((0.0, 0.0, 0.0), need=9.0, weight=1.0) for _ in range(300))
    fleet = Fleet()
    fleet.step(demand=4.0, moments=moments)
    assert fleet.scaler.likely == pytest.approx(4 + math.sqrt(4)) and "moments" not in fleet.why


def test_what_is_more_than_ever_is_like_no_moment_of_the_past() -> None:
    moments = tuple(Moment((math.log1p(1.0),) * 3, need=1.5, weight=1.0) for _ in range(300))
    fleet = Fleet(believes=ANALOGS)
    fleet.step(demand=1.1, moments=moments)
    assert fleet.scaler.likely == 1.5 and "after moments like this one" in fleet.why
    fleet.step(demand=4.0, moments=moments)
    assert fleet.scaler.likely == pytest.approx(4 + math.sqrt(4)) and "moments" not in fleet.why


def test_it_is_told_where_a_load_is_taken_to_rise_as_before() -> None:
    fleet = Fleet()
    fleet.scaler = Scaler(contest=Contest(usual=Believed(NONE, 2.0)))
    fleet.step(demand=1.0)
    assert fleet.scaler.likely == pytest.approx(4.0) and "as the load has risen before" in fleet.why


def asked_for(steady: float | None, lasting: float = 2.0, met: float = 1.0) -> Fleet:
    """A fleet whose past says 9, and is believed, after five minutes of a demand of 2 in which such a share met the
    goal."""
    moments = tuple(Moment((math.log1p(2.0),) * 3, need=9.0, weight=1.0) for _ in range(300))
    features = (math.log1p(2.0), math.log1p(2.0), math.log1p(lasting))
    fleet = Fleet(believes=ANALOGS)
    fleet.run(300, demand=2.0, moments=moments, features=features, steady=steady, met=met, answered=10)
    return fleet


def test_no_more_is_held_than_a_steady_number_that_has_been_enough() -> None:
    forecast, steady = asked_for(steady=None), asked_for(steady=4.0)
    assert forecast.scaler.likely == 9.0 and "as after moments like this one" in forecast.why
    assert steady.scaler.likely == 4.0 and "4.00 are likely" in steady.why and "steady number" in steady.why
    assert asked_for(steady=9.5).scaler.likely == 9.0, "the forecast asks for less"
    more = asked_for(steady=0.5)
    assert more.scaler.likely == pytest.approx(2 + math.sqrt(2)), "more arrives than was ever enough"
    assert "steady number" not in more.why
    assert asked_for(steady=4.0, lasting=6.0).scaler.likely == pytest.approx(6 + math.sqrt(6)), "it rises"


def test_a_steady_number_is_not_believed_while_too_many_were_late_with_it() -> None:
    assert asked_for(steady=4.0).present == 4
    assert asked_for(steady=4.0, met=0.9).present == 8, "as many as there may be: the forecast asks for 9"


def believing(**load: Any) -> Fleet:
    """A fleet that believes yesterday, moved by half a replica, and has done well with two."""
    fleet = Fleet()
    fleet.scaler = Scaler(contest=Contest(season=Believed("yesterday", 0.5)))
    fleet.step(steady=2.0, **load)
    return fleet


def test_a_season_that_is_believed_decides_and_no_steady_number_holds_it_down() -> None:
    fleet = believing(demand=1.0, seasons={"yesterday": 6.0})
    assert fleet.scaler.likely == 6.5 and not fleet.scaler.capped
    assert fleet.present == 7 and "6.50 are likely" in fleet.why and "as yesterday" in fleet.why


def test_a_season_is_told_only_where_it_decides() -> None:
    fleet = believing(demand=4.0, seasons={"yesterday": 1.0})
    assert fleet.scaler.likely == pytest.approx(4 + 2 + 0.5), "it says what the last half minute needs"
    assert "are likely" in fleet.why and "yesterday" not in fleet.why


def test_without_a_season_it_is_as_if_none_was_believed() -> None:
    fleet = believing(demand=1.0, features=(math.log1p(4.0), 0.0, 0.0))
    assert fleet.scaler.likely == 2.0 and fleet.scaler.capped


def test_a_measurement_from_the_time_to_come_decides_nothing() -> None:
    fleet = Fleet()
    fleet.step(demand=1.0)
    ahead = replace(fleet.load(demand=6.0), at=fleet.now + 3600)
    decision, scaler = decide(SHAPE, LIMITS, ahead, fleet.scaler, present=2, waited_for="", now=fleet.now)
    assert (decision.desired, decision.reason.code) == (2, "NO_METRICS") and scaler == fleet.scaler
    assert "from before the clock was set back" in decision.reason.text


loads = st.fixed_dictionaries(
    {"demand": st.floats(0, 20), "backlog_s": st.floats(0, 100), "held": st.integers(0, 5), "complete": st.booleans()}
)


@given(
    steps=st.lists(st.tuples(loads, st.sampled_from(["", "somebody has asked for m@1"])), max_size=40),
    least=st.integers(0, 3),
    more=st.integers(0, 6),
)
def test_whatever_is_measured_the_limits_hold_and_the_same_again_gives_the_same(
    steps: list[tuple[dict[str, Any], str]], least: int, more: int
) -> None:
    fleet = Fleet(limits=Limits(least=least, most=least + more, why="-"), present=least)
    for load, waited_for in steps:
        before, scaler = fleet.present, fleet.scaler
        desired = fleet.step(waited_for=waited_for, **load)
        assert least <= desired <= least + more
        if load["held"] and least + more:
            assert desired >= 1
        if not load["complete"]:
            assert desired >= min(before, least + more)
        again, _ = decide(
            SHAPE,
            fleet.limits,
            fleet.load(**load),
            scaler,
            present=before,
            waited_for=waited_for,
            now=fleet.now,
        )
        assert again == fleet.decision


# What the past tells.


@pytest.mark.parametrize(
    ("demand", "slack_s", "expected"),
    [
        pytest.param([2.0, 2.0, 2.0], 0.0, 2.0, id="steady"),
        pytest.param([0.0, 6.0, 0.0], 0.0, 6.0, id="a burst without slack"),
        pytest.param([0.0, 6.0, 0.0], 4.0, 2.0, id="a burst that may wait"),
        pytest.param([], 1.0, 0.0, id="nothing"),
    ],
)
def test_needed(demand: list[float], slack_s: float, expected: float) -> None:
    assert needed(demand, 2.0, slack_s) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("demand", "slack_s", "share", "expected"),
    [
        pytest.param([2.0] * 100, 0.0, 0.99, 2.0, id="steady"),
        pytest.param([1.0] * 99 + [9.0], 0.0, 0.99, 9.0, id="a burst of more than may be late"),
        pytest.param([1.0] * 99 + [1.1], 0.0, 0.9, 1.0, id="a burst of less than may be late"),
        pytest.param([1.0] * 99 + [9.0], 14.0, 1.0, 1.125, id="a burst that may wait"),
        pytest.param([], 1.0, 0.99, 0.0, id="nothing"),
        pytest.param([5e-324], 0.1, 0.99, 0.0, id="the least that is not nothing"),
    ],
)
def test_the_least_steady_capacity(demand: list[float], slack_s: float, share: float, expected: float) -> None:
    assert enough(demand, 2.0, slack_s, share) == pytest.approx(expected, rel=0.03)


@given(
    demand=st.lists(st.floats(0.1, 20), min_size=1, max_size=60),
    slack_s=st.floats(0.1, 30),
    share=st.floats(0.5, 0.999),
    guess=st.floats(0, 25),
)
def test_it_is_enough_and_no_more_than_to_have_nothing_late(
    demand: list[float], slack_s: float, share: float, guess: float
) -> None:
    found = enough(demand, 2.0, slack_s, share, guess)
    assert late(demand, 2.0, slack_s, found) <= (1 - share) * sum(demand) * (1 + 1e-9)
    assert found <= needed(demand, 2.0, slack_s) * (1 + 2 * CLOSE) + 1e-6


def test_a_steady_capacity_is_known_after_a_while_and_told_anew_for_another_share() -> None:
    past = Past(step_s=2.0, horizon_s=10.0, slack_s=0.0)
    for n in range(STEADY_FEWEST):
        assert past.steady() is None
        past.add(9.0 if n % 20 == 0 else 1.0, 2.0 * n)
    assert past.steady() == pytest.approx(9.0)
    past.reset(10.0, 0.0, 0.5)
    steady = past.steady()
    assert steady is not None and 1.4 < steady < 4.0, "it works off what bursts leave, while half may be late"


def test_what_comes_once_an_hour_is_not_forgotten_by_the_steady_capacity() -> None:
    past = Past(step_s=2.0, horizon_s=10.0, slack_s=0.0)
    told = []
    for n in range(3 * 2700):
        past.add(9.0 if n % 2700 < 180 else 1.0, 2.0 * n)
        told.append(past.steady())
    assert told[2699:] == [pytest.approx(9.0, rel=2 * CLOSE)] * (len(told) - 2699), "every 90 minutes, even"


def test_the_past_tells_what_follows_a_moment_like_this_one() -> None:
    past = Past(step_s=2.0, horizon_s=10.0, slack_s=0.0)
    announced = (*[0.0] * 15, 1.0, 1.0)  # each quiet half minute, two steps of 1 announce a burst of 5
    for step, each in enumerate([*[*announced, *[5.0] * 4] * 100, *announced]):
        past.add(each, 2.0 * step)
    assert likely_need(past.moments, past.features(), 0.9) == pytest.approx(5.0)
    assert likely_need(list(past.moments)[:100], past.features(), 0.9) is None, "too short to tell"


def test_the_past_is_bounded_and_can_be_told_anew() -> None:
    past = Past(step_s=2.0, horizon_s=4.0, slack_s=0.0, keep_s=100.0)
    for n in range(500):
        moment = past.add(float(n % 7), 2.0 * n)
    assert len(past.demand) == 50 and len(past.moments) == 50
    assert moment is not None and moment.at == 2.0 * (499 - past.lag)
    past.reset(8.0, 1.0, 0.99)
    assert len(past.demand) == 50 and 0 < len(past.moments) < 50


@given(st.lists(st.floats(0, 9), min_size=SHORT + 1, max_size=SHORT + 40), st.sampled_from([0.0, 0.1, 2.0, 30.0]))
def test_waited_forof_many_is_what_looking_at_every_stretch_finds(demand: list[float], slack_s: float) -> None:
    sums = [0.0, *itertools.accumulate(each * 2.0 for each in demand)]
    every = max(
        (sums[end] - sums[begin]) / ((end - begin) * 2.0 + slack_s)
        for begin, end in itertools.combinations(range(len(sums)), 2)
    )
    assert needed(demand, 2.0, slack_s) == pytest.approx(every, abs=1e-9)


@pytest.mark.parametrize("horizon_s", [3597.0, 3599.0, 4000.0, 86_400.0])
def test_a_start_may_take_longer_than_the_past_is_kept(horizon_s: float) -> None:
    past = Past(step_s=2.0, horizon_s=horizon_s, slack_s=0.1)
    moments = [past.add(float(n % 7), 2.0 * n) for n in range(2500)]
    assert moments[1000] is not None and len(past.moments) > 1000, "half of what is kept is looked ahead"
    past.reset(horizon_s + 10.0, 0.1, 0.99)
    assert likely_need(past.moments, past.features(), 0.9) is not None


# Limits.


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NIGHT = Window(days=(4,), begins_min=22 * 60, ends_min=6 * 60, min_replicas=0, max_replicas=1)
OFFICE = Window(days=(0, 1, 2, 3, 4), begins_min=8 * 60, ends_min=18 * 60, timezone="Europe/Berlin", min_replicas=3)


@pytest.mark.parametrize(
    ("window", "when", "expected"),
    [
        pytest.param(NIGHT, "2026-11-27 23:00", True, id="Friday night"),
        pytest.param(NIGHT, "2026-11-28 05:59", True, id="and on into Saturday"),
        pytest.param(NIGHT, "2026-11-28 06:00", False, id="until its end"),
        pytest.param(NIGHT, "2026-11-28 23:00", False, id="not Saturday night"),
        pytest.param(OFFICE, "2026-11-23 07:30", True, id="in its own time zone"),
        pytest.param(OFFICE, "2026-07-06 06:30", True, id="and its summer time"),
        pytest.param(OFFICE, "2026-11-22 10:00", False, id="not on Sunday"),
    ],
)
def test_windows(window: Window, when: str, expected: bool) -> None:
    assert is_open(window, at(when)) is expected


def test_a_hand_comes_before_the_schedule_and_the_schedule_before_the_deployment() -> None:
    shape = FleetShape(name="cpu", min_replicas=1, max_replicas=2, schedule=(OFFICE,))
    record = FleetRecord(shape=shape)
    assert limits_of(record, at("2026-11-22 10:00")) == Limits(least=1, most=2, why="the deployment asks for 1 to 2")
    office = limits_of(record, at("2026-11-23 10:00"))
    assert (office.least, office.most) == (3, 3) and "schedule" in office.why
    manual = ManualScale(
        replicas=5, actor="ann", at=datetime.now(UTC), until=datetime(2026, 11, 23, 11, tzinfo=UTC), reason="a launch"
    )
    by_hand = limits_of(replace(record, manual=manual), at("2026-11-23 10:00"))
    assert (by_hand.least, by_hand.most) == (5, 5)
    assert by_hand.why == "ann has set it to 5 until 2026-11-23 11:00:00 UTC: a launch"
    assert limits_of(replace(record, manual=manual), at("2026-11-23 11:01")) == office, "it ends by itself"
    told = sizes(shape, replace(record, manual=manual), at("2026-11-23 10:00"))
    assert told == {"min_replicas": 1, "max_replicas": 2, "by_schedule": (3, 3), "by_hand": 5}
    assert sizes(shape, None, at("2026-11-22 10:00")) == told | {"by_schedule": None, "by_hand": None}


def test_what_must_always_be_loaded_has_room() -> None:
    decision, _ = decide(
        SHAPE, LIMITS, Load(at=1000.0, step_s=STEP_S), Scaler(), present=1, waited_for="", pinned=3, now=1000.0
    )
    assert decision.desired == 3 and "takes the memory of 3" in decision.reason.text
    idle = Scaler(idle_since=900.0)
    for pinned, next_desired in ((0, 0), (1, None)):
        decision, _ = decide(
            SHAPE, LIMITS, Load(at=950.0, step_s=STEP_S), idle, present=1, waited_for="", pinned=pinned, now=950.0
        )
        assert (decision.desired, decision.next_desired) == (1, next_desired)
        assert ("it goes to zero" in decision.reason.text) == (next_desired == 0)
