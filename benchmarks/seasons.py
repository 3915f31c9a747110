"""What is needed at the same time every day, and at any time: what forecasts of the day before save, by simulation.

Run ``python -m benchmarks.seasons``. Each full hour for six minutes, six times as much is asked; or as often, as long
and as much, but at random times. A replica takes two minutes to start and works on one request at once; the goal is
that 99 % of the requests wait no longer than 2 s. The peer is the same autoscaler that knows of no other day. What
counts is six hours of the third day: a season is believed when it was better for a day. Limits: no more replica-hours
than the peer's where the hours are alike, 1.02 times as many where they are not, and no smaller a share in time, less a
tenth of a percent.
"""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np

from benchmarks.ending import left_to_starter
from benchmarks.traffic import GRAIN_S, by_rate
from controlplane.core.models import FleetShape, Goal
from controlplane.core.scaling.seasons import Seasons
from controlplane.metrics.loads import LoadMeter
from controlplane.simulate.controller import Controller
from controlplane.simulate.outcomes import Outcome, outcome
from controlplane.simulate.policies import STEP_S
from controlplane.simulate.replay import Setting, replay
from controlplane.simulate.traces import Trace
from examples.interrupts import interruptible

HOUR_S = 3600.0
LENGTH_S, COUNTS_FROM_S = 55 * HOUR_S, 49 * HOUR_S
USUAL_PER_S, MUCH_PER_S, MUCH_S = 2.0, 12.0, 360.0
START_S, LIMIT_MS, SHARE = 120.0, 2000.0, 0.99
LIMITS = {"each hour": 1.0, "at random": 1.02}
SHARE_LESS = 0.001


class OfToday(Seasons):
    """Knows of no other day."""

    def likely(self, now: float, horizon_s: float) -> dict[str, float]:
        """Nothing."""
        return {}


def traffic(name: str) -> Trace:
    """The requests of all this time."""
    rate_per_s = np.full(int(LENGTH_S / GRAIN_S), USUAL_PER_S)
    begins = np.arange(0.0, LENGTH_S, HOUR_S)
    if name == "at random":
        begins = np.random.default_rng(5).uniform(0, LENGTH_S, len(begins))
    for begin in begins:
        rate_per_s[int(begin / GRAIN_S) : int((begin + MUCH_S) / GRAIN_S)] = MUCH_PER_S
    return by_rate(name, rate_per_s, seed=7)


def replayed(case: tuple[str, bool]) -> Outcome:
    """The autoscaler on this traffic; whether it knows of other days."""
    name, seasonal = case
    trace = traffic(name)
    shape = FleetShape(name="f", min_replicas=0, max_replicas=1000, goal=Goal(queue_ms=LIMIT_MS, share=SHARE))
    setting = Setting(shape=shape, slots=1, start_s=START_S, initial=2)
    meter = LoadMeter(step_s=STEP_S) if seasonal else LoadMeter(step_s=STEP_S, seasons=OfToday())
    run = replay(trace, setting, Controller(setting, meter=meter))
    return outcome(run, trace, shape.goal, warm_up_s=COUNTS_FROM_S)


def main() -> int:
    """Measure and print; 1 when a limit was missed."""
    cases = [(name, seasonal) for name in LIMITS for seasonal in (True, False)]
    with multiprocessing.Pool(2, initializer=left_to_starter) as pool:
        made = dict(zip(cases, pool.imap(replayed, cases), strict=True))
    print(f"{'much is asked':14} {'replica-hours':>14} {'in time':>9}", end="")
    print(f"   {'of today alone':>14} {'in time':>9}   ratio  limit")
    kept = True
    for name, limit in LIMITS.items():
        ours, peer = made[name, True], made[name, False]
        ratio, less = ours.replica_hours / peer.replica_hours, (peer.share or 0.0) - (ours.share or 0.0)
        figures = (f"{each.replica_hours:14.2f} {each.share or 0.0:9.2%}" for each in (ours, peer))
        print(f"{name:14} {'   '.join(figures)}   {ratio:5.3f}  {limit:g}")
        kept = kept and ratio <= limit and less <= SHARE_LESS
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))
