"""What two readings of the counters say about the time between them."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.metrics.counters import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """A model version on one replica over a window of `window_s` that ended at `at` (seconds since 1970).

    `batch_size` is items per execution, `queue_ms` the mean wait of a request, `in_flight` the mean number of requests
    inside the server (Little's law), `duty_cycle` the share of the time that its instances computed (0 to 1). None:
    nothing was executed, so nothing is known; that is not zero.
    """

    at: float
    window_s: float
    requests_per_s: float
    in_flight: float
    queue_length: float
    queue_ms: float | None = None
    latency_ms: float | None = None
    batch_size: float | None = None
    duty_cycle: float | None = None


def signals(before: Counters, after: Counters, *, at: float, window_s: float, instances: int = 1) -> Signals | None:
    """The signals of a window. None when a counter went back: the version was loaded anew in between."""
    success = after.success - before.success
    executions = after.executions - before.executions
    inferences = after.inferences - before.inferences
    queue_us, compute_us = after.queue_us - before.queue_us, after.compute_us - before.compute_us
    request_us = after.request_us - before.request_us
    hits = after.cache_hits - before.cache_hits
    if window_s <= 0 or min(success, executions, inferences, queue_us, compute_us, request_us, hits) < 0:
        return None
    window_us = window_s * 1e6
    executed = success - hits
    return Signals(
        at=at,
        window_s=window_s,
        requests_per_s=success / window_s,
        in_flight=request_us / window_us,
        queue_length=queue_us / window_us,
        queue_ms=queue_us / success / 1e3 if success else None,
        latency_ms=request_us / success / 1e3 if success else None,
        batch_size=inferences / executions if executions else None,
        # Triton adds a batch's compute time to each request of it: without the ratio it is wrong by the batch's size.
        duty_cycle=compute_us / window_us * (executions / executed) / instances
        if executions and executed > 0
        else None,
    )
