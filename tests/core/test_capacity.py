"""What a copy can do, from what was measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.entry import DynamicBatching, Entry, InstanceGroup
from controlplane.core.models import Capabilities, Cost, Goal
from controlplane.core.scaling.capacity import (
    MOST_USED,
    Executions,
    all_it_can,
    at_once,
    fit,
    instances_of,
    per_s,
    queue_s,
    within_per_s,
)

BATCHED = Entry(name="m", backend="python", max_batch_size=8, dynamic_batching=DynamicBatching())
SINGLE = Entry(name="m", backend="python", max_batch_size=8)
COST = Cost(fixed_s=0.010, each_s=0.002)


def measured(cost: Cost, *sizes: int) -> list[Executions]:
    return [Executions(size=size, count=10, total_s=10 * cost.of(size)) for size in sizes]


@pytest.mark.parametrize(
    ("rate_per_s", "entry", "instances", "requests"),
    [
        pytest.param(30.0, SINGLE, 1, 30 * 0.012, id="one instance that is busy for a third of the time"),
        pytest.param(150.0, SINGLE, 4, 150 * 0.012, id="four instances without batches"),
        pytest.param(200.0, BATCHED, 1, 200 * (0.010 + 200 * 0.010 / 0.6 * 0.002), id="batches of three and a third"),
        pytest.param(1.0, BATCHED, 1, 0.012, id="hardly anything"),
        pytest.param(8 / 0.026, BATCHED, 1, 8.0, id="always full batches"),
    ],
)
def test_requests_that_are_executed_at_once(rate_per_s: float, entry: Entry, instances: int, requests: float) -> None:
    assert at_once(rate_per_s, COST, entry, instances) == pytest.approx(requests)


def test_a_cost_is_found_again_from_executions_of_two_sizes() -> None:
    made = fit(measured(COST, 1, 8))
    assert made is not None
    assert (made.fixed_s, made.each_s) == pytest.approx((COST.fixed_s, COST.each_s))
    assert made.executions == 20


@pytest.mark.parametrize(
    ("executions", "expected"),
    [
        pytest.param([], None, id="nothing measured"),
        pytest.param([Executions(size=4, count=0, total_s=0.0)], None, id="nothing executed"),
        pytest.param(measured(COST, 4), (0.0, COST.of(4) / 4), id="one size: batching has to show that it helps"),
        pytest.param(
            [Executions(size=1, count=5, total_s=5 * 0.03), Executions(size=8, count=5, total_s=5 * 0.01)],
            (0.02, 0.0),
            id="larger batches quicker: noise, and no negative cost",
        ),
        pytest.param(
            [Executions(size=1, count=5, total_s=5 * 0.001), Executions(size=8, count=5, total_s=5 * 0.5)],
            (0.0, 0.2505 / 4.5),
            id="worse than in proportion: nothing fixed",
        ),
    ],
)
def test_fits_at_the_edge(executions: list[Executions], expected: tuple[float, float] | None) -> None:
    made = fit(executions)
    assert (made is None) if expected is None else made is not None
    if made is not None and expected is not None:
        assert (made.fixed_s, made.each_s) == pytest.approx(expected)


def test_requests_of_several_items() -> None:
    assert all_it_can(COST, BATCHED, 1, items=4) == pytest.approx(2 / 0.026), "two to a batch"
    assert all_it_can(COST, BATCHED, 1, items=8) == pytest.approx(1 / 0.026)
    assert all_it_can(COST, SINGLE, 1, items=8) == pytest.approx(1 / 0.026), "one is executed whole, always"
    goal = Goal(queue_ms=50)
    assert per_s(COST, goal, BATCHED, 1, items=4) < per_s(COST, goal, BATCHED, 1) / 2


def test_batching_is_what_it_does_with_full_batches() -> None:
    assert all_it_can(COST, BATCHED, 1) == pytest.approx(8 / 0.026)
    assert all_it_can(COST, SINGLE, 1) == pytest.approx(1 / 0.012)
    assert all_it_can(COST, BATCHED, 3) == pytest.approx(3 * 8 / 0.026)


@pytest.mark.parametrize(
    ("sizes", "delay_us", "full"),
    [((4,), 0, 4), ((4, 8), 0, 4), ((4,), 500, 5), ((4, 6), 500, 7), ((4, 8), 500, 8)],
)
def test_preferred_sizes_limit_what_can_be_done(sizes: tuple[int, ...], delay_us: int, full: int) -> None:
    batching = DynamicBatching(preferred_batch_size=sizes, max_queue_delay_us=delay_us)
    preferring = Entry(name="m", backend="python", max_batch_size=8, dynamic_batching=batching)
    assert all_it_can(COST, preferring, 1) == pytest.approx(full / COST.of(full))


costs = st.builds(Cost, fixed_s=st.floats(0.0, 1.0), each_s=st.floats(1e-4, 1.0))


@given(cost=costs, limit_s=st.floats(0.001, 100), max_batch=st.integers(1, 64), instances=st.integers(1, 8))
def test_the_rate_within_a_limit_keeps_it_and_no_higher_one_does(
    cost: Cost, limit_s: float, max_batch: int, instances: int
) -> None:
    rate = within_per_s(cost, limit_s, max_batch=max_batch, instances=instances)
    most = MOST_USED * instances * max_batch / cost.of(max_batch)
    assert 0 <= rate <= most
    if rate > 0:
        assert queue_s(rate * 0.999, cost, max_batch=max_batch, instances=instances) <= limit_s
    if rate < most * 0.999:
        assert queue_s(rate * 1.01 + 1e-9, cost, max_batch=max_batch, instances=instances) > limit_s * 0.9


@given(cost=costs, one=st.floats(1, 1e4), other=st.floats(1, 1e4))
def test_a_laxer_goal_never_means_less(cost: Cost, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert per_s(cost, Goal(queue_ms=low), BATCHED, 1) <= per_s(cost, Goal(queue_ms=high), BATCHED, 1)
    assert per_s(cost, Goal(latency_ms=low), BATCHED, 1) <= per_s(cost, Goal(latency_ms=high), BATCHED, 1)


def test_a_latency_that_no_execution_meets_still_gives_a_rate() -> None:
    rate = per_s(COST, Goal(latency_ms=1), BATCHED, 1)
    assert 0 < rate < all_it_can(COST, BATCHED, 1)
    assert math.isfinite(rate)


@pytest.mark.parametrize(
    ("groups", "gpus", "expected"),
    [
        pytest.param((), 0, 1, id="none stated"),
        pytest.param((InstanceGroup(kind="CPU", count=3),), 2, 3, id="on the CPU"),
        pytest.param((InstanceGroup(kind="GPU", count=2),), 2, 4, id="on each GPU"),
        pytest.param((InstanceGroup(kind="GPU", count=2, gpus=(1,)),), 2, 2, id="on one GPU"),
        pytest.param(
            (InstanceGroup(count=2), InstanceGroup(count=9, passive=True)), 0, 2, id="passive ones do nothing"
        ),
    ],
)
def test_instances(groups: tuple[InstanceGroup, ...], gpus: int, expected: int) -> None:
    entry = Entry(name="m", backend="python", instances=groups)
    assert instances_of(entry, Capabilities(server_version="2.60.0", backends=("python",), gpus=gpus)) == expected


@given(cost=costs, queue_ms=st.floats(1, 1e4), copies=st.integers(1, 20))
def test_more_copies_never_do_less_each(cost: Cost, queue_ms: float, copies: int) -> None:
    goal = Goal(queue_ms=queue_ms)
    fewer, more = (per_s(cost, goal, SINGLE, 2, copies=count) for count in (copies, copies + 1))
    assert fewer <= more * (1 + 1e-6)
    assert more <= all_it_can(cost, SINGLE, 2)
