"""What a replay comes to: replica-hours, the share of requests within the goal, waits, starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from controlplane.core.errors import InvalidInput
from controlplane.core.models import Goal
from controlplane.simulate.policies import STEP_S, Integers
from controlplane.simulate.replay import Run
from controlplane.simulate.traces import Floats, Trace

BINS = 90
"""Into so many stretches of time waits are summed up for a picture, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Figures of one replay, without its warm-up.

    `share`: of the requests, those within the goal (None where the goal is no time). Waits in seconds, infinite for who
    was never served. `cold`: requests that came while no replica was ready. `tuned`: what the policy was set to.
    `present` by step; `waits_s`: the 95th percentile by stretch of `bin_s` seconds, NaN where nothing came.
    """

    policy: str
    tuned: str
    replica_hours: float
    share: float | None
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    wait_max_s: float
    unserved: int
    cold: int
    starts: int
    stops: int
    most: int
    present: Integers
    waits_s: Floats
    bin_s: float

    def row(self) -> Mapping[str, Any]:
        """The figures as plain data."""

        def seconds(value: float) -> float | None:
            return round(value, 4) if np.isfinite(value) else None

        return {
            "policy": self.policy,
            "set_to": self.tuned,
            "replica_hours": round(self.replica_hours, 4),
            "share": None if self.share is None else round(self.share, 6),
            "wait_p50_s": seconds(self.wait_p50_s),
            "wait_p95_s": seconds(self.wait_p95_s),
            "wait_p99_s": seconds(self.wait_p99_s),
            "wait_max_s": seconds(self.wait_max_s),
            "unserved": self.unserved,
            "cold_requests": self.cold,
            "starts": self.starts,
            "stops": self.stops,
            "most_replicas": self.most,
        }


def goal_s(goal: Goal) -> float | None:
    """The time that the goal allows, in seconds; None where it is none."""
    limit_ms = goal.queue_ms if goal.queue_ms is not None else goal.latency_ms
    return limit_ms / 1e3 if limit_ms is not None else None


def share_out_of_reach(trace: Trace, goal: Goal) -> float:
    """Which part of the requests can't be in time, since their own work takes longer than the goal's whole latency."""
    if goal.latency_ms is None:
        return 0.0
    return float(np.mean(trace.work_s > _just_above(goal.latency_ms / 1e3)))


def _just_above(limit_s: float) -> float:
    """Times are whole microseconds, and single precision must not make one late, nor the sum of two."""
    return float(np.nextafter(np.float32(limit_s), np.float32(np.inf)))


def first_counted(trace: Trace, warm_up_s: float) -> int:
    """Which request is the first after a warm-up. Raises InvalidInput where there is none."""
    first = int(np.searchsorted(trace.arrival_s, warm_up_s))
    if first == len(trace):
        what = f"nothing comes after a warm-up of {warm_up_s:g} s: the trace is {trace.length_s:.0f} s long"
        raise InvalidInput(what, field="--warm-up", remedy="give a shorter one")
    return first


def outcome(run: Run, trace: Trace, goal: Goal, *, warm_up_s: float = 0.0, tuned: str = "") -> Outcome:
    """Sum up a replay. What came in the first `warm_up_s` seconds, and what the fleet cost and did in them, does not
    count. Raises InvalidInput where nothing came after them."""
    first = first_counted(trace, warm_up_s)
    wait_s = run.wait_s[first:]
    warm = int(warm_up_s // STEP_S)

    def counted(totals: Integers | Floats) -> float:
        return float(totals[-1] - (totals[warm - 1] if warm else 0))

    limit_s = goal_s(goal)
    share = None
    if limit_s is not None:
        spent_s = wait_s if goal.latency_ms is None else wait_s + trace.work_s[first:]
        share = float(np.count_nonzero(spent_s <= _just_above(limit_s))) / len(wait_s)
    p50, p95, p99, most = np.quantile(wait_s, (0.5, 0.95, 0.99, 1.0), method="higher")
    waits_s, bin_s = _binned(run, trace)
    return Outcome(
        policy=run.policy,
        tuned=tuned,
        replica_hours=counted(run.replica_s) / 3600,
        share=share,
        wait_p50_s=float(p50),
        wait_p95_s=float(p95),
        wait_p99_s=float(p99),
        wait_max_s=float(most),
        unserved=int(np.count_nonzero(np.isinf(wait_s))),
        cold=int(counted(run.came_cold)),
        starts=int(counted(run.started)),
        stops=int(counted(run.stopped)),
        most=int(run.present[warm:].max()),
        present=run.present,
        waits_s=waits_s,
        bin_s=bin_s,
    )


def _binned(run: Run, trace: Trace) -> tuple[Floats, float]:
    bin_s = max((trace.length_s + STEP_S) / BINS, STEP_S)
    count = int(trace.length_s // bin_s) + 1
    bounds = np.searchsorted(trace.arrival_s, np.arange(count + 1) * bin_s)
    waits = [
        float(np.quantile(run.wait_s[low:high], 0.95, method="higher")) if high > low else np.nan
        for low, high in itertools.pairwise(bounds)
    ]
    return np.array(waits), bin_s
