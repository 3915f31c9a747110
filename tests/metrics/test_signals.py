"""Signals from counters: Triton's own page, and the formulas against figures measured on a real server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.models import Cost
from controlplane.core.names import Key
from controlplane.metrics.counters import Counters, parse_counters
from controlplane.metrics.readings import Interval
from controlplane.metrics.signals import Signals, signals

PAGE = """\
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="m",version="2"} 80
nv_inference_request_success{model="m",version="1"} 5
nv_inference_request_failure{model="m",version="2",reason="REJECTED"} 3
nv_inference_request_failure{model="m",version="2",reason="OTHER"} 1
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="m",version="2",gpu_uuid="GPU-a"} 6
nv_inference_exec_count{model="m",version="2",gpu_uuid="GPU-b"} 4
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{model="m",version="2"} 10
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{model="m",version="2"} 100
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.5
"""


def test_a_page_becomes_counters_by_version_with_gpus_added_up() -> None:
    counters = parse_counters(PAGE)
    assert set(counters) == {Key("m", 1), Key("m", 2)}
    assert counters[Key("m", 2)] == Counters(success=80, failures=1, not_run=3, executions=10, compute_us=110)


# 8 closed-loop clients on one instance that takes 20 ms for a batch of 4, for 10 s: 500 executions, 2,000 requests, of
# which each waits for one other batch.
AFTER = Counters(
    success=2000,
    failures=20,
    inferences=2000,
    executions=500,
    request_us=80e6,
    queue_us=40e6,
    compute_us=2000 * 20e3,
    cache_hits=0,
)


def between(before: Counters, after: Counters, window_s: float = 10.0) -> Signals | None:
    key = Key("m", 1)
    return signals(Interval(at=20.0, window_s=window_s, before={key: before}, after={key: after}), key)


def test_the_formulas() -> None:
    made = between(Counters(), AFTER)
    assert made is not None
    assert made.requests_per_s == 202
    assert made.failures_per_s == 2
    assert made.batch_size == 4
    assert made.queue_ms == 20
    assert made.latency_ms == 40
    assert made.in_flight == pytest.approx(8)
    assert made.queue_length == pytest.approx(4)
    assert made.duty_cycle == pytest.approx(1.0)


def test_with_the_cost_the_duty_cycle_is_right_for_batches_of_all_sizes() -> None:
    """Ten batches of 1 (12 ms each) and ten of 9 (28 ms): 0.4 s of 2."""
    counted = Counters(success=100, inferences=100, executions=20, compute_us=10 * 12e3 + 10 * 9 * 28e3)
    exact = signals(
        Interval(at=20.0, window_s=2.0, after={Key("m", 1): counted}),
        Key("m", 1),
        cost=Cost(fixed_s=0.010, each_s=0.002),
    )
    assert exact is not None and exact.duty_cycle == pytest.approx(0.2)
    guess = between(Counters(), counted, window_s=2.0)
    assert guess is not None and guess.duty_cycle == pytest.approx(0.264)


def test_what_fails_keeps_instances_busy_too() -> None:
    """A Python model that raises: Triton counts executions, and no durations, items or success."""
    failed = Counters(failures=80, executions=10)
    made = signals(
        Interval(at=20.0, window_s=2.0, after={Key("m", 1): failed}), Key("m", 1), cost=Cost(fixed_s=0.1, each_s=0.0)
    )
    assert made is not None
    assert made.requests_per_s == made.failures_per_s == 40
    assert made.duty_cycle == pytest.approx(0.5)
    assert made.batch_size is None and made.latency_ms is None
    unknown = between(Counters(), failed)
    assert unknown is not None and unknown.duty_cycle is None


def test_cache_hits_are_no_executions() -> None:
    made = between(Counters(), replace(AFTER, success=4000, cache_hits=2000))
    assert made is not None and made.duty_cycle == pytest.approx(1.0)


def test_nothing_executed_is_not_zero() -> None:
    made = between(AFTER, replace(AFTER, pending=3))
    assert made is not None
    assert made.requests_per_s == 0 and made.waiting == 3
    assert made.batch_size is None and made.queue_ms is None and made.duty_cycle is None


def test_a_counter_that_went_back_counts_from_its_new_start() -> None:
    made = between(AFTER, Counters(success=30, executions=10, inferences=30))
    assert made is not None and made.requests_per_s == 3 and made.batch_size == 3


def test_one_reading_tells_nothing() -> None:
    assert between(Counters(), AFTER, window_s=0.0) is None
