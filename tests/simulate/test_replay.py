"""The replay: a queue computed by hand, what is conserved whatever comes, and the controller's own decisions."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.errors import InvalidInput
from controlplane.core.load import Load, Scaler
from controlplane.core.models import FleetRecord, FleetShape, Goal
from controlplane.core.scaling.decision import decide
from controlplane.core.scaling.limits import limits_of
from controlplane.simulate.controller import Controller
from controlplane.simulate.outcomes import outcome
from controlplane.simulate.peers import Fixed
from controlplane.simulate.policies import STEP_S, Seen
from controlplane.simulate.replay import Run, Setting, replay
from controlplane.simulate.traces import Trace, trace_of


def fleet(least: int = 0, most: int = 10, idle_s: float = 300.0) -> FleetShape:
    return FleetShape(name="f", min_replicas=least, max_replicas=most, goal=Goal(queue_ms=500.0), idle_s=idle_s)


def requests(*each: tuple[float, float]) -> Trace:
    at, work = zip(*each, strict=True)
    return trace_of("t", np.array(at, np.float64), np.array(work, np.float32))


@dataclass
class Told:
    """Does what it was told for each step, and remembers what it saw."""

    counts: list[int]
    seen: list[Seen] = field(default_factory=list)
    name: str = "told"

    def desired(self, seen: Seen) -> int:
        self.seen.append(replace(seen, waiting=seen.waiting.copy()))
        return self.counts[min(len(self.seen), len(self.counts)) - 1]


def test_a_queue_by_hand() -> None:
    """One replica of two slots: a and b begin at once, c waits for a, d for b, e finds a slot free."""
    trace = requests((0, 3.0), (0.5, 3.4), (1, 1.0), (1.5, 2.0), (4.5, 1.0))
    run = replay(trace, Setting(shape=fleet(least=1), slots=2), Fixed(1))
    assert list(run.wait_s) == pytest.approx([0, 0, 2.0, 2.4, 0.0])
    assert list(run.queue) == [2, 0, 0]
    assert list(run.present) == [1, 1, 1]
    assert list(run.replica_s) == [2, 4, 6]
    assert (run.starts, run.stops, run.cold) == (0, 0, 0)


def test_a_start_takes_its_time_and_requests_wait_for_it() -> None:
    """Nobody is there. At 2 s a replica is ordered, ready 5 s later; the first two requests are held until then."""
    trace = requests((0, 1.0), (6.5, 1.0), (7.5, 1.0), (9.5, 1.0))
    policy = Told([1])
    run = replay(trace, Setting(shape=fleet(), slots=1, start_s=5.0, initial=0), policy)
    assert list(run.wait_s) == pytest.approx([7.0, 1.5, 1.5, 0.5])
    assert (run.starts, run.cold) == (1, 2)
    assert list(run.ready) == [0, 0, 0, 1, 1]
    assert list(run.replica_s) == [0, 2, 4, 6, 8]
    assert [each.in_flight for each in policy.seen[:5]] == [1, 1, 1, 2, 1]


def test_what_is_ordered_when_the_trace_ends_is_not_counted() -> None:
    run = replay(requests((1, 1.0), (3, 1.0)), Setting(shape=fleet(least=1), slots=1), Told([4, 9]))
    assert (list(run.present), run.starts, run.stops) == ([1, 4], 3, 0)


def test_who_ends_within_the_last_step_is_counted() -> None:
    run = replay(requests((0, 2.5), (0, 2.5), (3, 0.1)), Setting(shape=fleet(), slots=1, initial=2), Told([1]))
    assert (list(run.present), run.stops) == ([2, 1], 1)


def test_who_leaves_ends_what_it_has_and_gets_nothing_new() -> None:
    """Two replicas of one slot. At 2 s one leaves: it is busy until 7 s and is paid until then; the next requests have
    the other alone."""
    trace = requests((0, 1.0), (1, 6.0), (3, 4.0), (4, 1.0), (10.5, 1.0))
    run = replay(trace, Setting(shape=fleet(least=0), slots=1, initial=2), Told([1]))
    assert list(run.wait_s) == pytest.approx([0, 0, 0, 3.0, 0])
    assert run.stops == 1
    assert list(run.replica_s) == pytest.approx([4, 8, 12, 15, 17, 19])


def test_who_is_on_its_way_out_comes_back_before_a_new_one_starts() -> None:
    trace = requests((0, 9.0), (0.5, 9.0), (5, 1.0), (11, 1.0))
    run = replay(trace, Setting(shape=fleet(), slots=1, initial=2), Told([1, 2, 3]))
    assert run.starts == 1
    assert list(run.present) == [2, 1, 2, 3, 3, 3]


def test_limits_hold_whatever_a_policy_says() -> None:
    trace = requests(*((float(at), 0.1) for at in range(40)))
    run = replay(trace, Setting(shape=fleet(least=2, most=3), start_s=0.0), Told([0, 100]))
    assert set(run.present) == {2, 3}


def test_whoever_is_never_served_waits_for_ever() -> None:
    run = replay(requests((0, 1.0), (1, 1.0)), Setting(shape=fleet(), initial=0), Fixed(0))
    assert np.isinf(run.wait_s).all()
    assert run.cold == 2
    made = outcome(run, requests((0, 1.0), (1, 1.0)), Goal(queue_ms=100))
    assert (made.share, made.unserved, made.row()["wait_p99_s"]) == (0.0, 2, None)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"slots": 0}, "--slots"),
        ({"slots": 1 << 20}, "--slots"),
        ({"start_s": -1.0}, "--start-s"),
        ({"start_s": float("nan")}, "--start-s"),
        ({"start_s": float("inf")}, "--start-s"),
        ({"most": 5000}, "replicas.max"),
    ],
)
def test_settings_that_cant_be(wrong: dict[str, float], named: str) -> None:
    most = int(wrong.pop("most", 10))
    with pytest.raises(InvalidInput) as caught:
        Setting(shape=fleet(most=most), **wrong)  # type: ignore[arg-type]
    assert caught.value.field == named


def test_a_goal_for_the_whole_latency_counts_the_work() -> None:
    trace = requests((0, 1.0), (0, 1.0), (0, 0.2))
    run = replay(trace, Setting(shape=fleet(least=1), slots=1), Fixed(1))
    assert outcome(run, trace, Goal(queue_ms=1000)).share == pytest.approx(2 / 3)
    assert outcome(run, trace, Goal(latency_ms=1000)).share == pytest.approx(1 / 3)
    assert outcome(run, trace, Goal(in_flight=4)).share is None


def test_single_precision_makes_no_sum_late() -> None:
    """Each waits for the one before it: 0.1 s of waiting and 0.7 of work are within 0.8 s, and so on."""
    for wait_ms in range(100, 1000, 7):
        trace = requests((0, wait_ms / 1000), (0, 0.7))
        run = replay(trace, Setting(shape=fleet(least=1), slots=1), Fixed(1))
        assert outcome(run, trace, Goal(latency_ms=wait_ms + 700)).share == 1.0
        assert outcome(run, trace, Goal(latency_ms=wait_ms + 699.99)).share == 0.5


def test_a_warm_up_counts_neither_requests_nor_replicas() -> None:
    trace = requests((0, 5.0), (1, 1.0), (6, 1.0), (9, 1.0))
    run = replay(trace, Setting(shape=fleet(least=1), slots=1), Fixed(1))
    whole, rest = (outcome(run, trace, Goal(queue_ms=100), warm_up_s=each) for each in (0, 6))
    assert (whole.share, rest.share) == (0.75, 1.0)
    assert (whole.replica_hours, rest.replica_hours) == (10 / 3600, 4 / 3600)
    with pytest.raises(InvalidInput, match="nothing comes after a warm-up"):
        outcome(run, trace, Goal(queue_ms=100), warm_up_s=10)


def test_a_warm_up_counts_no_starts_stops_and_cold_requests() -> None:
    trace = requests((0, 1.0), (1, 1.0), (9, 1.0), (30, 1.0))
    told = Told([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1])
    run = replay(trace, Setting(shape=fleet(), slots=1, start_s=4.0, initial=0), told)
    whole, rest = (outcome(run, trace, Goal(queue_ms=100), warm_up_s=each) for each in (0, 8))
    assert (whole.starts, whole.stops, whole.cold) == (2, 1, 2)
    assert (rest.starts, rest.stops, rest.cold) == (1, 1, 0)


steps = st.lists(
    st.tuples(st.floats(0, 20).map(lambda each: round(each, 3)), st.floats(0, 9).map(lambda each: round(each, 3))),
    min_size=1,
    max_size=60,
).map(sorted)


def reference(trace: Trace, servers: int) -> list[float]:
    """First come, first served on so many servers, told plainly."""
    free, waits = [0.0] * servers, []
    for at, work in zip(trace.arrival_s, trace.work_s, strict=True):
        begun = max(heapq.heappop(free), at)
        waits.append(begun - at)
        heapq.heappush(free, begun + float(work))
    return waits


@given(steps, st.integers(1, 3), st.integers(1, 3))
def test_a_steady_fleet_is_a_plain_queue(each: list[tuple[float, float]], slots: int, count: int) -> None:
    trace = requests(*each)
    run = replay(trace, Setting(shape=fleet(least=count), slots=slots), Fixed(count))
    assert run.wait_s == pytest.approx(reference(trace, slots * count), abs=1e-4)


@given(steps, st.lists(st.integers(0, 4), min_size=1, max_size=15), st.integers(1, 3), st.floats(0, 7))
def test_whatever_is_told_every_request_is_served_once_and_in_order(
    each: list[tuple[float, float]], counts: list[int], slots: int, start_s: float
) -> None:
    trace = requests(*each)
    policy = Told([*counts, 1])
    run = replay(trace, Setting(shape=fleet(), slots=slots, start_s=start_s, initial=counts[0]), policy)
    assert np.isfinite(run.wait_s).all()
    begun = trace.arrival_s + run.wait_s
    assert (np.diff(begun) >= -1e-4).all(), "first come, first served"
    assert sum(len(seen.begun.replica) for seen in policy.seen) == len(trace)
    # Never more at once than there are slots, even counting those who leave; what was done was paid for.
    for seen in policy.seen:
        arrived = np.count_nonzero(trace.arrival_s < seen.now)
        served = np.count_nonzero(begun < seen.now - 1e-4)
        assert seen.queue <= arrived - served
        assert seen.queue == seen.waiting.sum()
    worked = np.clip(np.minimum(begun + trace.work_s, len(run.replica_s) * 2.0) - begun, 0, None).sum()
    assert worked <= run.replica_s[-1] * slots + 1e-3
    assert (np.diff(run.replica_s) >= -1e-6).all()
    assert run.starts + counts[0] >= run.stops


def bursts() -> Trace:
    random = np.random.default_rng(7)
    rate = 3 + 12 * (np.arange(600) % 120 < 30)
    at = np.sort(np.concatenate([second + random.random(random.poisson(each)) for second, each in enumerate(rate)]))
    return trace_of("bursts", at, random.gamma(2, 0.2, len(at)).astype(np.float32))


@dataclass
class Checked(Controller):
    """The controller's policy, and beside it `decide` called by hand with the load that it made."""

    by_hand: Scaler = field(default_factory=Scaler)
    decisions: list[tuple[int, int]] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)

    def desired(self, seen: Seen) -> int:
        made = super().desired(seen)
        assert self.load is not None
        now = self.origin + seen.now
        record = FleetRecord(shape=self.setting.shape)
        decision, self.by_hand = decide(
            self.setting.shape,
            limits_of(record, now),
            self.load,
            self.by_hand,
            present=seen.present,
            waited_for="requests wait" if not seen.serving and seen.queue > 0 else "",
            now=now,
        )
        self.decisions.append((made, decision.desired))
        self.loads.append(self.load)
        return made


def checked(trace: Trace, setting: Setting) -> tuple[Checked, Run]:
    policy = Checked(setting, trace.models, trace.origin)
    return policy, replay(trace, setting, policy)


def test_decisions_are_those_of_the_core() -> None:
    trace = bursts()
    policy, run = checked(trace, Setting(shape=fleet(least=1, most=6), slots=2, start_s=6.0))
    assert all(made == by_hand for made, by_hand in policy.decisions)
    assert len(set(run.present)) > 2, "it scales"
    counted = sum(load.rate_per_s for load in policy.loads) * STEP_S
    assert counted == pytest.approx(len(trace), rel=0.01), "what arrived, but for what is not answered in the end"
    assert list(run.present[1:]) == [made for made, _ in policy.decisions[: len(run.present) - 1]]


def test_a_load_test_is_over_when_it_is_over() -> None:
    """What the load rises to once is kept ready for a few minutes, not for hours; where it rises again, it is."""
    setting = Setting(shape=fleet(least=0, most=20), slots=4, start_s=30.0)
    random, rate = np.random.default_rng(7), np.full(2700, 5.0)
    rate[600:720] = 40.0
    most = {}
    for again in (False, True):
        rate[1500:1620] = 40.0 if again else 5.0
        at = np.sort(np.concatenate([second + random.random(random.poisson(each)) for second, each in enumerate(rate)]))
        trace = trace_of("test", at, random.gamma(2, 0.25, len(at)).astype(np.float32))
        run = replay(trace, setting, Controller(setting))
        most[again] = [int(max(run.present[minute * 30 : (minute + 5) * 30])) for minute in (10, 20, 40)]
    assert most[False][0] >= 8, "as the load rises"
    assert max(most[False][1:]) <= 3 < most[True][2]


def test_loads_are_what_servers_would_have_counted() -> None:
    trace = bursts()
    policy, run = checked(trace, Setting(shape=fleet(least=8, most=9), slots=2, start_s=6.0))
    steady = policy.loads[20:]
    # Work over what a replica does within the goal, in the mean; nothing waits, and all are in time.
    begins_s = 20 * STEP_S
    busy = trace.work_s[trace.arrival_s >= begins_s].sum() / (trace.length_s - begins_s) / 2
    assert busy < np.mean([load.demand for load in steady]) < 1.6 * busy
    assert max(load.backlog_s for load in steady) == 0 == run.queue.max()
    assert all(load.met in (None, 1.0) and load.complete and load.start_s == 6.0 for load in steady)


def test_from_zero_and_back_to_zero() -> None:
    trace = requests((0, 0.5), (1, 0.5), (400, 0.5))
    policy, run = checked(trace, Setting(shape=fleet(idle_s=60.0), slots=1, start_s=5.0))
    assert run.cold == 3
    assert (run.present[2], run.present[150]) == (1, 0)
    assert list(run.wait_s) == pytest.approx([7.0, 6.5, 7.0], abs=2.0)
    assert policy.loads[0].held == 2
    assert sum(load.rate_per_s for load in policy.loads) * STEP_S == pytest.approx(3), "each is counted once"


def test_models_are_counted_apart() -> None:
    random = np.random.default_rng(3)
    at = np.sort(random.random(900) * 300)
    model = random.integers(0, 3, 900).astype(np.int32)
    work = np.array([0.05, 0.2, 0.8], np.float32)[model]
    trace = trace_of("mixed", at, work, model, ("a", "b", "c"))
    policy, _ = checked(trace, Setting(shape=fleet(least=2, most=6), slots=2, start_s=6.0))
    costs = policy.loads[-1].costs
    assert {name: costs[name].each_s for name in "abc"} == pytest.approx({"a": 0.05, "b": 0.2, "c": 0.8}, rel=0.01)
    assert all(made == by_hand for made, by_hand in policy.decisions)
