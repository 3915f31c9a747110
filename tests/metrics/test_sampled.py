"""From what a Prometheus answers, or does not, to decisions. Time passes as a number, so an hour takes no time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest

from controlplane.core.load import Load, Scaler
from controlplane.core.models import Cost, FleetRecord, FleetShape, Goal
from controlplane.core.names import Key
from controlplane.core.scaling.decision import Decision, decide
from controlplane.core.scaling.limits import limits_of
from controlplane.metrics.counters import Counters
from controlplane.metrics.loads import LoadMeter
from controlplane.metrics.readings import Interval
from controlplane.metrics.sampled import Sampled
from controlplane.metrics.series import Readings, Series, readings_of
from tests.core.world import manifest

M = Key("m", 1)
STEP_S = 2.0
BEGAN = 1_000_000.0
SHAPE = FleetShape(name="cpu", min_replicas=0, max_replicas=9, goal=Goal(queue_ms=200), down_after_s=90.0, idle_s=180.0)
RECORD = FleetRecord(shape=SHAPE, start_s=10.0, costs={"d": Cost(fixed_s=0.0, each_s=0.1, executions=100)})
"""A replica can do ten requests a second at the very most."""


@dataclass
class World:
    """Replicas that answer requests, a Prometheus that scrapes them every `every_s`, each at a time of its own, and
    what the controller makes of it every two seconds. What is given as a function is one of the time that passed."""

    every_s: float
    rate: Callable[[float], float] = lambda _: 5.0
    """Requests a second that each replica answers."""
    away: Callable[[float], bool] = lambda _: False
    """Whether Prometheus is away: it scrapes nothing, and does not answer."""
    scrapes: Callable[[float], bool] = lambda _: True
    """Whether Prometheus scrapes well."""
    late_s: float = 0.0
    """For how long it thinks about an answer."""
    replicas: int = 1
    present: int | None = None
    now: float = BEGAN
    problem: str = ""
    sampled: Sampled = field(default_factory=Sampled)
    meter: LoadMeter = field(default_factory=lambda: LoadMeter(step_s=STEP_S))
    load: Load | None = None
    scaler: Scaler = field(default_factory=Scaler)
    decision: Decision | None = None
    counted: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By replica: the samples."""
    _due: dict[str, float] = field(default_factory=dict)
    _answers: list[tuple[float, Mapping[str, Readings]]] = field(default_factory=list)
    _total: float = 1000.0

    def __post_init__(self) -> None:
        for number in range(self.replicas):
            name = f"cpu-{number}"
            self.counted[name] = []
            self._due[name] = BEGAN + self.every_s * (0.1 + number / self.replicas)

    @property
    def passed_s(self) -> float:
        return self.now - BEGAN

    def step(self) -> tuple[Load, Decision]:
        """Two seconds pass."""
        for tenth in range(1, 21):
            at = self.now + tenth * STEP_S / 20
            self._total += self.rate(at - BEGAN) * STEP_S / 20
            for name, due in self._due.items():
                if at >= due:
                    if not self.away(at - BEGAN) and self.scrapes(at - BEGAN):
                        self.counted[name].append((at, self._total))
                    self._due[name] = due + self.every_s
        self.now += STEP_S
        self._ask()
        self.load = self.meter.measure(
            RECORD,
            self.sampled.intervals,
            manifests={M: ("d", manifest("m"))},
            serving=frozenset(self.counted),
            held={},
            now=self.now,
        )
        self.decision, self.scaler = decide(
            SHAPE,
            limits_of(RECORD, self.now),
            self.load,
            self.scaler,
            present=self.present or self.replicas,
            waited_for="",
            now=self.now,
        )
        return self.load, self.decision

    def pass_s(self, seconds: float) -> list[tuple[Load, Decision]]:
        """So much time passes. Every load with what was decided."""
        return [self.step() for _ in range(math.ceil(seconds / STEP_S))]

    def _ask(self) -> None:
        self.sampled.expect(self.counted, self.now)
        if self.away(self.passed_s):
            self.problem = "no connection"
            return
        if not self._answers:
            window_s = self.sampled.window_s(self.now)
            self._answers.append((self.now + self.late_s, self._answer(window_s)))
        if self._answers[0][0] <= self.now:
            self.problem = self.sampled.take(self._answers.pop()[1], self.now)

    def _answer(self, window_s: float) -> dict[str, Readings]:
        found = {}
        for name, samples in self.counted.items():
            seen = [each for each in samples if self.now - window_s < each[0]]
            labels = {"model": "m", "version": "1", "replica": name}
            up = Series(metric={**labels, "__name__": "up"}, values=[(at, 1.0) for at, _ in seen] or [(0.0, 0.0)])
            success = Series(metric={**labels, "__name__": "nv_inference_request_success"}, values=seen or [(0.0, 0.0)])
            readings = readings_of([up, success], address="")
            if readings is not None:
                found[name] = readings
        return found


ORDINARY = [2.0, 5.0, 15.0, 30.0, 60.0]


@pytest.mark.parametrize("every_s", ORDINARY)
def test_however_often_prometheus_scrapes_it_is_measured(every_s: float) -> None:
    world = World(every_s)
    world.pass_s(2 * every_s + 4)  # two scrapes
    for load, decision in world.pass_s(600):
        assert load.complete and load.rate_per_s == pytest.approx(5.0, rel=0.1)
        assert decision.reason.code != "NO_METRICS" and decision.desired in (1, 2)
    assert not world.problem


@pytest.mark.parametrize("every_s", ORDINARY)
def test_a_fleet_grows_and_gets_smaller_however_often_prometheus_scrapes(every_s: float) -> None:
    world = World(every_s, rate=lambda passed_s: 1.0 if passed_s < 600 else 12.0 if passed_s < 900 else 0.0, replicas=3)
    low = [decision.desired for _, decision in world.pass_s(600)]
    assert low[0] == 3 and low[-1] < 3, "3 requests a second"
    high = [decision.desired for _, decision in world.pass_s(2 * every_s + 40)]
    assert max(high) > 3, "36 a second are more than 3 can do"
    world.pass_s(300 - 2 * every_s - 40)
    empty = [decision.desired for _, decision in world.pass_s(SHAPE.idle_s + 3 * every_s + 10)]
    assert empty[0] > 3 and empty[-1] == 0
    told_s = sum(each > 0 for each in empty) * STEP_S
    assert told_s >= SHAPE.idle_s, "not before nothing was asked for so long"


@pytest.mark.parametrize("every_s", ORDINARY)
def test_what_was_told_seldom_is_as_much_as_what_was_told_often(every_s: float) -> None:
    """Servers are scraped at different times: who told nothing new in these two seconds goes on as before."""
    world = World(every_s, replicas=4)
    world.pass_s(2 * every_s + 4)
    loads = [load for load, _ in world.pass_s(300)]
    assert {round(load.rate_per_s) for load in loads} == {20}
    answered = {load.at: load.answered for load in loads}
    assert sum(answered.values()) == pytest.approx(300 * 20, rel=0.02 + every_s / 300), "each request counts once"
    counted = world.meter.load.use if world.meter.load else {}
    assert counted[M] > 0


@pytest.mark.parametrize("every_s", ORDINARY)
def test_while_prometheus_is_away_for_an_hour_nothing_gets_smaller(every_s: float) -> None:
    """All traffic ends in the moment in which Prometheus goes: nobody knows."""
    world = World(
        every_s,
        rate=lambda passed_s: 5.0 if passed_s < 400 or passed_s > 4000 else 0.0,
        away=lambda passed_s: 400 <= passed_s < 4000,
        replicas=3,
        present=4,
    )
    seen, decision = world.pass_s(400)[-1]
    before = decision.desired
    assert before >= 2
    away = [decision for _, decision in world.pass_s(3600)]
    assert all(each.desired >= before for each in away)
    assert all(each.reason.code == "NO_METRICS" and each.desired == 4 for each in away[math.ceil(2 * every_s + 5) :])
    assert "without a fresh measurement" in away[-1].reason.text
    back = world.pass_s(3 * every_s + 4)
    assert back[-1][1].reason.code != "NO_METRICS" and back[-1][0].complete
    assert all(each.window_s <= max(30.0, 2 * every_s) for each in world.sampled.intervals.values()), "no hour"
    assert back[-1][0].features == pytest.approx(seen.features, rel=0.3), "nobody takes the hour for a quiet one"
    assert back[-1][0].rate_per_s == pytest.approx(15.0, rel=0.1)


@pytest.mark.parametrize("every_s", ORDINARY)
@pytest.mark.parametrize("away", [(700, 4300), (0, 400)], ids=["for an hour", "from the start"])
def test_a_time_without_measurements_is_no_time_without_requests(every_s: float, away: tuple[float, float]) -> None:
    """Requests come once a minute, also while nobody counts them."""
    gone, back = away
    world = World(
        every_s,
        rate=lambda passed_s: 10.0 if passed_s % 60 < 2 else 0.0,
        away=lambda passed_s: gone <= passed_s < back,
    )
    decisions = [decision for _, decision in world.pass_s(back + SHAPE.idle_s + 4 * every_s)]
    assert all(each.desired >= 1 for each in decisions)
    assert decisions[-1].reason.code != "NO_METRICS"
    world.rate = lambda _: 0.0
    ends = [decision for _, decision in world.pass_s(SHAPE.idle_s + 3 * every_s + 70)]
    assert ends[-1].desired == 0, "but when nothing is asked it goes to zero"


@pytest.mark.parametrize("every_s", ORDINARY)
@pytest.mark.parametrize("away", [(400, 4000), (0, 400)], ids=["for an hour", "from the start"])
def test_the_first_measurements_after_a_time_without_them_take_nothing_away(
    every_s: float, away: tuple[float, float]
) -> None:
    """The traffic ends shortly before Prometheus comes back, at the latest."""
    gone, back = away
    world = World(
        every_s,
        rate=lambda passed_s: 12.0 if passed_s < 400 else 0.5,
        away=lambda passed_s: gone <= passed_s < back,
        replicas=3,
    )
    before = [decision.desired for _, decision in world.pass_s(back)][-1]
    assert before >= 3
    assert SHAPE.down_after_s is not None
    after = [decision for _, decision in world.pass_s(SHAPE.down_after_s)]
    assert all(each.desired >= 3 for each in after), "so long fewer must have been enough, as measured"
    assert world.pass_s(4 * every_s + 180)[-1][1].desired < 3


@pytest.mark.parametrize("every_s", ORDINARY)
@pytest.mark.parametrize("hole_s", [20, 45, 80, 125])
def test_short_holes_are_no_idle_time_and_hold_nothing_up(every_s: float, hole_s: float) -> None:
    """Prometheus is away now and then; requests come once a minute, the last ones after 2340 s."""
    world = World(every_s, rate=lambda passed_s: 10.0 if passed_s < 2400 and passed_s % 60 < 2 else 0.0)
    world.away = lambda passed_s: passed_s % 400 < hole_s
    decisions = [decision for _, decision in world.pass_s(2340 + SHAPE.idle_s - every_s)]
    assert all(each.desired >= 1 for each in decisions)
    assert 0 in {decision.desired for _, decision in world.pass_s(1200)}


def test_an_empty_prometheus_makes_nothing_smaller_and_is_told() -> None:
    world = World(2.0, rate=lambda _: 0.0, scrapes=lambda passed_s: passed_s < 20 or passed_s > 600, present=3)
    world.pass_s(20)
    assert not world.problem
    empty = [decision for _, decision in world.pass_s(580)]
    assert all(each.desired == 3 for each in empty)
    assert "nothing new of cpu-0, which run" in world.problem
    world.pass_s(20)
    assert not world.problem and world.load is not None and world.load.complete


def test_an_empty_prometheus_is_told_from_the_start() -> None:
    world = World(2.0, scrapes=lambda _: False)
    world.pass_s(30)
    assert not world.problem, "new targets take their time"
    world.pass_s(4)
    assert "nothing new of cpu-0" in world.problem


def test_answers_that_are_late_make_nothing_smaller() -> None:
    world = World(2.0, rate=lambda _: 0.0, late_s=8.0, present=3)
    decisions = [decision for _, decision in world.pass_s(600)]
    assert all(each.desired == 3 for each in decisions)
    assert world.load is not None and world.load.at > world.now - 12 and not world.load.complete


def test_one_server_that_is_scraped_no_more_keeps_the_fleet_as_it_is() -> None:
    world = World(15.0, rate=lambda _: 0.0, replicas=2)
    world.pass_s(60)
    world._due["cpu-1"] = math.inf
    decisions = [decision for _, decision in world.pass_s(900)]
    assert decisions[-1].desired == 2 and decisions[-1].reason.code == "INCOMPLETE"


@pytest.mark.parametrize(("every_s", "said"), [(90.0, "too seldom"), (120.0, "too seldom"), (300.0, "once a minute")])
def test_scrapes_that_are_too_seldom_are_told(every_s: float, said: str) -> None:
    world = World(every_s)
    decisions = [decision for _, decision in world.pass_s(1800)]
    assert decisions[-1].reason.code == "NO_METRICS"
    assert said in world.problem


@pytest.mark.parametrize(("before_s", "after_s"), [(2.0, 30.0), (30.0, 2.0), (2.0, 60.0)])
def test_a_prometheus_that_scrapes_at_other_times_than_before_is_understood(before_s: float, after_s: float) -> None:
    world = World(before_s)
    world.pass_s(120)
    world.every_s = after_s
    world.pass_s(4 * max(before_s, after_s) + 4)
    loads = [load for load, _ in world.pass_s(300)]
    assert all(load.complete and load.rate_per_s == pytest.approx(5.0, rel=0.1) for load in loads)


def test_counters_that_go_back_are_neither_nothing_nor_less_than_nothing() -> None:
    world = World(15.0)
    world.pass_s(64)
    world._total = 20.0
    loads = [load for load, _ in world.pass_s(60)]
    assert all(0 < load.rate_per_s <= 7 and load.demand > 0 for load in loads)
    assert loads[-1].rate_per_s == pytest.approx(5.0, rel=0.1)


def test_no_more_is_asked_for_than_is_needed() -> None:
    world = World(2.0)
    assert world.sampled.window_s(world.now) == 30
    world.pass_s(20)
    assert world.sampled.window_s(world.now) == 5
    slow = World(30.0)
    slow.pass_s(120)
    assert max((slow.step(), slow.sampled.window_s(slow.now))[1] for _ in range(60)) <= 34
    slow.away = lambda _: True
    slow.pass_s(600)
    assert slow.sampled.window_s(slow.now) == 62


def read(at: float, success: float, *, first: tuple[float, float] | None = None) -> dict[str, Readings]:
    first_at, began = first or (at, success)
    made = Readings(
        first_at=first_at,
        first={M: Counters(success=began)},
        at=at,
        latest={M: Counters(success=success)},
        apart_s=at - first_at if first else None,
    )
    return {"r": made}


def test_a_clock_that_was_set_back_is_no_reason_to_wait_for_it() -> None:
    sampled = Sampled()
    sampled.expect(["r"], BEGAN)
    assert sampled.take(read(BEGAN, 5), BEGAN) == ""
    earlier = BEGAN - 3600
    sampled.expect(["r"], earlier)
    assert sampled.take(read(earlier, 9, first=(earlier - 2, 8)), earlier) == ""
    assert sampled.intervals["r"].at == earlier and sampled.intervals["r"].counted(M).success == 1
    sampled.expect(["r"], earlier + 40)
    assert "nothing new" in sampled.take({}, earlier + 40)


def test_an_answer_that_is_always_the_same_grows_old_and_is_told() -> None:
    sampled, first = Sampled(), read(BEGAN, 5, first=(BEGAN - 2, 4))
    said = []
    for second in range(40):
        sampled.expect(["r"], BEGAN + second)
        said.append(sampled.take(first, BEGAN + second))
    assert sampled.intervals["r"].at == BEGAN
    assert said[0] == "" and "nothing new of r" in said[-1]


def test_an_answer_to_an_earlier_question_brings_nobody_back() -> None:
    sampled = Sampled()
    sampled.expect(["other"], BEGAN)
    assert sampled.take(read(BEGAN, 5), BEGAN) == ""
    assert not sampled.intervals


def series(name: str, *times: float, **labels: str) -> Series:
    metric = {"__name__": name, "model": "m", "version": "1", "replica": "r", **labels}
    return Series(metric=metric, values=[(at, 1.0) for at in times])


@pytest.mark.parametrize(
    ("found", "apart_s"),
    [
        pytest.param([series("up", 10, 25, 40)], 15, id="one"),
        pytest.param([series("up", 10, 40, 55)], 15, id="a scrape was missed"),
        pytest.param([series("up", 10)], None, id="one scrape"),
        pytest.param(
            [series("up", 10, 25, prometheus="a"), series("up", 11, 26, prometheus="b")],
            15,
            id="two Prometheuses, each at times of its own",
        ),
        pytest.param([series("nv_inference_request_success", 10, 25)], 15, id="without `up`"),
    ],
)
def test_how_far_scrapes_are_apart(found: list[Series], apart_s: float | None) -> None:
    readings = readings_of(found, address="")
    assert readings is not None and readings.apart_s == apart_s


def test_of_a_version_whose_requests_are_not_kept_nothing_is_known() -> None:
    readings = readings_of([series("up", 10), series("nv_inference_exec_count", 10)], address="")
    assert readings is not None and not readings.latest


def test_a_server_that_was_read_once_says_not_even_zero() -> None:
    meter = LoadMeter(step_s=STEP_S)
    once = Interval(at=BEGAN, window_s=0.0, after={M: Counters(success=900.0)})
    made = {M: ("d", manifest("m"))}
    load = meter.measure(RECORD, {"r": once}, manifests=made, serving=frozenset({"r"}), held={}, now=BEGAN)
    assert not load.complete
    twice = replace(once, at=BEGAN + 2, window_s=2.0, before=once.after)
    load = meter.measure(RECORD, {"r": twice}, manifests=made, serving=frozenset({"r"}), held={}, now=BEGAN + 2)
    assert load.complete and not load.asked
