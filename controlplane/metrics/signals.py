"""What two readings of the counters say about the time between them."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.core.models import Cost
from controlplane.core.names import Key
from controlplane.metrics.counters import Counters
from controlplane.metrics.readings import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """A model version on one replica over a window of `window_s` that ended at `at` (seconds since 1970).

    `requests_per_s` were answered, `failures_per_s` of them with an error that the server itself counts; times and
    sizes are of the others. `batch_size` is items per execution, `queue_ms` the mean wait of a request, `in_flight`
    the mean number of requests inside the server (Little's law), `duty_cycle` the share of the time that its instances
    computed (0 to 1); `waiting` requests are in the queue now. None: nothing was executed, so nothing is known; that is
    not zero.
    """

    at: float
    window_s: float
    requests_per_s: float
    failures_per_s: float
    in_flight: float
    queue_length: float
    waiting: float
    queue_ms: float | None = None
    latency_ms: float | None = None
    batch_size: float | None = None
    duty_cycle: float | None = None


def signals(interval: Interval, key: Key, *, instances: int = 1, cost: Cost | None = None) -> Signals | None:
    """The signals of a version that the later reading has. None for a server that was read only once.

    With the `cost` of its executions the duty cycle is exact also where batches differ in size.
    """
    if interval.window_s <= 0:
        return None
    counted = interval.counted(key)
    window_us = interval.window_s * 1e6
    success, executions = counted.success, counted.executions
    return Signals(
        at=interval.at,
        window_s=interval.window_s,
        requests_per_s=(counted.ended + counted.not_run) / interval.window_s,
        failures_per_s=(counted.failures + counted.not_run) / interval.window_s,
        in_flight=counted.request_us / window_us,
        queue_length=counted.queue_us / window_us,
        waiting=interval.after[key].pending,
        queue_ms=counted.queue_us / success / 1e3 if success else None,
        latency_ms=counted.request_us / success / 1e3 if success else None,
        batch_size=counted.inferences / executions if executions and success else None,
        duty_cycle=busy / interval.window_s / instances if (busy := busy_s(counted, cost)) is not None else None,
    )


def busy_s(counted: Counters, cost: Cost | None) -> float | None:
    """How long a version's instances computed, in seconds. None: nothing is known of that."""
    if not counted.executions or counted.ended <= counted.cache_hits:
        return None
    if cost is not None:
        # Of what failed no items are counted.
        return counted.executions * cost.fixed_s + max(counted.inferences, counted.executions) * cost.each_s
    if counted.success <= counted.cache_hits:
        return None  # Triton has no durations of what fails
    # Triton adds a batch's compute time to each request of it. Divided by the mean batch size that is right where all
    # batches are alike; where they differ, the larger ones count too much.
    return counted.compute_us / 1e6 * counted.executions / (counted.success - counted.cache_hits)
