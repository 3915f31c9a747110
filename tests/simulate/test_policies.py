"""The peers: each formula by a table, the oracle's plan, and a comparison at one share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.models import FleetShape, Goal, Window
from controlplane.simulate.comparison import FIXED, HPA, KEDA, ORACLE, OURS, Bench, cheapest, closed, compare
from controlplane.simulate.oracle import ahead_max, concurrency, scheduled
from controlplane.simulate.outcomes import Outcome
from controlplane.simulate.peers import Fixed, Hpa, Keda, Scheduled
from controlplane.simulate.policies import STEP_S, Begun, Policy, Seen
from controlplane.simulate.replay import Setting
from controlplane.simulate.traces import trace_of

NOTHING = Begun(
    replica=np.zeros(0, np.int64),
    wait_s=np.zeros(0, np.float32),
    work_s=np.zeros(0, np.float32),
    model=np.zeros(0, np.int32),
    end_us=np.zeros(0, np.int64),
)


def told(policy: Policy, present: int, at: dict[float, int], until: float, *, queue: bool = False) -> dict[float, int]:
    """What a policy says over time, followed at once, when so many requests are in flight (or wait) from then on."""
    said = {}
    for step in range(1, round(until / STEP_S) + 1):
        now = step * STEP_S
        asked = next((count for since, count in sorted(at.items(), reverse=True) if since <= now), 0)
        seen = Seen(
            now=now,
            present=present,
            serving=tuple(range(present)),
            queue=asked if queue else 0,
            in_flight=asked,
            waiting=np.array([asked]),
            begun=NOTHING,
        )
        present = policy.desired(seen)
        said[now] = present
    return said


def test_the_hpa_follows_its_formula() -> None:
    said = told(Hpa(4.0), 2, {0: 8, 60: 40, 200: 4}, 620)
    assert said[58] == 2, "8 in flight, 4 a replica"
    # In 15 s at most four more, or twice as many; the metric is a mean over 30 s.
    assert [said[at] for at in (76, 92, 106)] == [6, 10, 10]
    assert said[500] == 10, "no fewer before 300 s"
    assert said[620] == 1


@pytest.mark.parametrize(("in_flight", "count"), [(40, 10), (43, 10), (37, 10), (45, 12), (35, 10), (0, 10)])
def test_the_hpa_tolerates_a_tenth_and_falls_slowly(in_flight: int, count: int) -> None:
    assert told(Hpa(4.0), 10, {0: in_flight}, 2)[2] == count


def test_keda_polls_the_queue_and_keeps_its_least() -> None:
    said = told(Keda(5.0, 2), 2, {0: 0, 33: 20, 90: 0}, 460, queue=True)
    assert said[30] == said[60] == 2, "the queue is looked at every 30 s"
    assert said[78] == 4
    assert said[300] == 4
    assert said[460] == 2


def test_keda_goes_to_zero_after_its_cooldown() -> None:
    said = told(Keda(5.0, 0), 1, {0: 3, 10: 0}, 700, queue=True)
    assert (said[320], said[700]) == (1, 0)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 8))
def test_a_plan_looks_ahead(values: list[int], width: int) -> None:
    made = ahead_max(np.array(values), width)
    assert made == [max(values[index : index + width]) for index in range(len(values))]


def test_concurrency_is_work_by_time() -> None:
    trace = trace_of("t", np.array([0.0, 1.0, 5.0]), np.array([3.0, 1.0, 1.0], np.float32))
    assert list(concurrency(trace)) == pytest.approx([1.5, 0.5, 0.5])


def test_a_plan_is_ordered_ahead() -> None:
    setting = Setting(shape=FleetShape(name="f", min_replicas=0, max_replicas=9), start_s=4.0)
    plan = scheduled(np.array([0, 0, 0, 0, 2.0, 0, 0, 1.5, 0]), 1.0, setting, "x").plan
    assert list(plan) == [0, 0, 2, 2, 2, 2, 2, 2, 0]
    assert told(Scheduled(plan, ""), 0, {}, 30)[30] == 0


@pytest.mark.parametrize(
    ("least", "most", "schedule", "share", "counts"),
    [
        (0, 20, (), 1.0, range(21)),
        (2, 20, (), 0.0, range(2, 21)),
        (0, 1, (), 1.0, range(2)),
        (3, 3, (), 1.0, [3]),
        (0, 1, (Window(days=tuple(range(7)), begins_min=0, ends_min=1440, max_replicas=9),), 1.0, range(10)),
    ],
)
def test_the_least_fixed_number_is_found_between_the_limits(
    least: int, most: int, schedule: tuple[Window, ...], share: float, counts: Sequence[int]
) -> None:
    # Forty at one moment keep hardly anything busy in the mean of a step, and yet need five replicas.
    trace = trace_of("at once", np.array([0.0] * 40 + [9.0]), np.full(41, 0.1, np.float32))
    shape = FleetShape(
        name="f", min_replicas=least, max_replicas=most, goal=Goal(queue_ms=150.0), schedule=schedule, idle_s=1.0
    )
    bench = Bench(trace, Setting(shape=shape, initial=counts[-1]))
    found = cheapest(bench.fixed(share), share)
    every = [bench.of(Fixed(count)) for count in counts]
    by_hand = cheapest(every, share)
    assert (found and found.tuned) == (by_hand and by_hand.tuned)
    assert {each.tuned for each in bench.fixed(share)} <= {each.tuned for each in every}


def made_outcome(hours: float, share: float) -> Outcome:
    nothing = np.zeros(1)
    return Outcome(
        policy="p",
        tuned="",
        replica_hours=hours,
        share=share,
        wait_p50_s=0,
        wait_p95_s=0,
        wait_p99_s=0,
        wait_max_s=0,
        unserved=0,
        cold=0,
        starts=0,
        stops=0,
        most=1,
        present=nothing.astype(np.int64),
        waits_s=nothing,
        bin_s=2.0,
    )


def test_the_cheapest_that_reaches_a_share_is_taken() -> None:
    outcomes = [made_outcome(3, 0.999), made_outcome(2, 0.99), made_outcome(1, 0.98)]
    assert cheapest(outcomes, 0.985) is outcomes[1]
    assert cheapest(outcomes, 0.9999) is None


@pytest.mark.parametrize(
    ("ours", "hpa", "oracle", "part"), [(6, 10, 5, 0.8), (10, 10, 5, 0.0), (11, 10, 5, -0.2), (5, 5, 5, None)]
)
def test_the_part_of_the_gap_that_is_closed(ours: float, hpa: float, oracle: float, part: float | None) -> None:
    found = closed(made_outcome(ours, 1), made_outcome(hpa, 1), made_outcome(oracle, 1))
    assert found == (part if part is None else pytest.approx(part))
    assert closed(made_outcome(ours, 1), made_outcome(hpa, 1), None) is None
    assert closed(None, made_outcome(hpa, 1), made_outcome(oracle, 1)) is None


def even(goal: Goal, *, most: int = 20) -> Bench:
    random = np.random.default_rng(5)
    at = np.sort(random.random(1500) * 300)
    trace = trace_of("even", at, random.gamma(2, 0.3, 1500).astype(np.float32))
    shape = FleetShape(name="f", min_replicas=0, max_replicas=most, goal=goal)
    return Bench(trace, Setting(shape=shape, start_s=10.0, initial=2), 60.0)


def test_a_comparison_is_at_one_share_and_at_the_goal() -> None:
    made = compare(even(Goal(queue_ms=1000, share=0.95)))
    assert list(made.peers) == [FIXED, HPA, KEDA, ORACLE]
    assert made.ours.share is not None
    for each in made.peers.values():
        assert each is None or (each.share or 0) >= made.ours.share
    fixed, oracle = made.peers[FIXED], made.peers[ORACLE]
    assert fixed is not None
    assert oracle is not None
    assert oracle.replica_hours <= fixed.replica_hours, "a number that never changes is a plan, too"
    assert list(made.at_goal) == [OURS, FIXED, HPA, KEDA, ORACLE]
    for each in made.at_goal.values():
        assert each is not None
        assert (each.share or 0) >= 0.95
    assert made.with_hindsight is not None
    assert made.with_hindsight.replica_hours <= made.ours.replica_hours, "as it is, it reaches the goal"


def test_this_autoscaler_is_told_other_goals() -> None:
    bench = even(Goal(latency_ms=2000, share=0.98))
    ours = bench.ours()
    told = bench.told_otherwise(ours)
    assert told[0] is ours
    assert len({each.tuned for each in told}) == len(told), "none is replayed twice"
    found = cheapest(told, 0.98)
    assert found is not None
    shares = (0.6, 0.8, 0.9, 0.94, 0.96, 0.98, 0.99)  # half of them late is more than any fleet can be given
    every = {str(Goal(latency_ms=limit_ms, share=share)) for limit_ms in (2000, 1000) for share in shares}
    assert {each.tuned for each in told} == every
    assert found.replica_hours <= ours.replica_hours


def test_requests_are_in_time_by_the_goal_of_the_fleet_whatever_is_told() -> None:
    bench = even(Goal(queue_ms=10, share=0.95))
    told = bench.ours(Goal(queue_ms=60_000, share=0.95))
    itself = replace(bench.setting, shape=replace(bench.setting.shape, goal=Goal(queue_ms=60_000, share=0.95)))
    relaxed = Bench(bench.trace, itself, bench.warm_up_s).ours()
    assert relaxed.share is not None and told.share is not None
    assert told.replica_hours == relaxed.replica_hours
    assert told.share < relaxed.share


def test_a_goal_that_is_out_of_reach_is_out_of_reach_with_hindsight() -> None:
    made = compare(even(Goal(queue_ms=1, share=0.95), most=1))
    assert made.with_hindsight is None
    assert made.closed_at_goal is None
