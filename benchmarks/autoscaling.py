"""Autoscaling policies on the same traffic, by simulation: what each costs at the same share of requests in time.

Run ``python -m benchmarks.autoscaling [TRACE …]``: recorded traces, as files that `ctl simulate` reads; without them
those that the variable TRACES names, separated by ':'. Synthetic traffic is replayed besides.

Stated for every figure: a replica works on 4 requests at once and takes 30 s to start; of token traces, prompts take
1 s per 8,000 tokens and answers 1 s per 50; the goal is that 99 % of the requests wait no longer than 2 s, or 10 s. The
first 10 minutes are a warm-up for all and do not count. HPA, KEDA and the fixed number are set to the cheapest setting
that brings as many requests in time as this autoscaler does; the oracle knows the future and is set so, too. Of the
synthetic traffic, two are replayed again with other starts and other replicas.

Limits: a day of 10 million requests replayed in 60 s and 1 GB. Goal: the share of requests reached, and the gap between
HPA and oracle closed by 60 %; where there is hardly a gap, no more than 5 % above the oracle.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.traffic import diurnal, synthetic
from controlplane.core.models import FleetShape, Goal
from controlplane.simulate.comparison import Bench, Comparison, compare
from controlplane.simulate.controller import Controller
from controlplane.simulate.outcomes import outcome
from controlplane.simulate.reading import Service, read_trace
from controlplane.simulate.replay import Setting, replay
from controlplane.simulate.traces import Trace, multiplied
from examples.interrupts import interruptible

DAY_S, DAY_REQUESTS = 86_400.0, 10_000_000
SPEED_LIMIT_S, MEMORY_LIMIT_MB = 60.0, 1000
SLOTS, START_S, WARM_UP_S, SHARE = 4, 30.0, 600.0, 0.99
GOALS_S = (2.0, 10.0)
MULTIPLIERS = (1, 10, 40)
MOST_REQUESTS = 400_000
"""A larger multiple of a trace is left out: every comparison replays it 100 times and more."""
VARIED = ("diurnal, 20/s", "bursts, 10/s")
VARIATIONS = ((5.0, 4), (120.0, 4), (30.0, 1), (30.0, 16))
"""Of a start, in seconds, and of how many requests a replica works on at once."""
COLUMNS = ("in time", "this autoscaler", "HPA", "KEDA", "fixed", "oracle", "gap closed", "at the goal")
CLOSED_GOAL, NEAR_ORACLE = 0.6, 1.05


def speed() -> bool:
    """Replay a day of 10 million requests; whether the limits were kept. To run first: the peak is the process's."""
    trace = diurnal(DAY_S, 1.002 * DAY_REQUESTS / DAY_S, mean_work_s=0.2)  # as many at least
    shape = FleetShape(name="day", min_replicas=1, max_replicas=100, goal=Goal(queue_ms=500, share=SHARE))
    setting = Setting(shape=shape, slots=SLOTS, start_s=START_S)
    began, computed = time.perf_counter(), time.process_time()
    run = replay(trace, setting, Controller(setting))
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - computed
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    made = outcome(run, trace, shape.goal)
    print(f"a day of {len(trace):,} requests, this autoscaler, {made.replica_hours:.0f} replica-hours")
    print(f"{'':20} {'measured':>9} {'limit':>7} {'ratio':>6}")
    print(f"{'seconds':20} {took_s:9.1f} {SPEED_LIMIT_S:7.0f} {took_s / SPEED_LIMIT_S:6.2f}")
    print(f"{'of these, on a core':20} {cpu_s:9.1f}")
    print(f"{'memory, peak (MB)':20} {peak_mb:9.0f} {MEMORY_LIMIT_MB:7d} {peak_mb / MEMORY_LIMIT_MB:6.2f}", flush=True)
    return took_s < SPEED_LIMIT_S and peak_mb < MEMORY_LIMIT_MB


def cases(paths: list[Path]) -> Iterator[tuple[str, Trace]]:
    """Each traffic with its name: recorded at several rates, then synthetic."""
    for path in paths:
        trace = read_trace(path, Service())
        for factor in MULTIPLIERS:
            if factor * len(trace) <= MOST_REQUESTS:
                yield f"{trace.name} × {factor}", multiplied(trace, factor)
    yield from synthetic().items()


def case(trace: Trace, limit_s: float, start_s: float = START_S, slots: int = SLOTS) -> Comparison:
    """Compare the policies on a trace. All begin with as many replicas as its mean demand keeps busy."""
    shape = FleetShape(
        name="f", min_replicas=0, max_replicas=1000, goal=Goal(queue_ms=limit_s * 1000, share=SHARE), idle_s=300.0
    )
    busy = float(trace.work_s.sum()) / max(trace.length_s, 1.0) / slots
    setting = Setting(shape=shape, slots=slots, start_s=start_s, initial=int(busy) + 1)
    return compare(Bench(trace, setting, WARM_UP_S))


def varied() -> None:
    """What changes when replicas start faster or slower, or do less or more."""
    goal_s = GOALS_S[0]
    print(f"\nOther replicas, {SHARE:.0%} within {goal_s:g} s\n")
    columns = ("traffic", "start", "at once", *COLUMNS)
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    traffic = synthetic()
    for name in VARIED:
        for start_s, slots in VARIATIONS:
            made = line(name, f"{start_s:g} s | {slots}", case(traffic[name], goal_s, start_s, slots))
            print(made, flush=True)


def show(name: str, trace: Trace, limit_s: float, made: Comparison) -> None:
    """A table for one traffic and goal."""
    busy_hours = float(trace.work_s[trace.arrival_s >= WARM_UP_S].sum()) / SLOTS / 3600
    print(f"\n{name}: {len(trace):,} requests in {trace.length_s:.0f} s, {SHARE:.0%} within {limit_s:g} s")
    print(f"  (the work alone: {busy_hours:.2f} replica-hours)")
    print(f"  {'policy':20} {'replica-hours':>13} {'in time':>8} {'cold':>5} {'starts':>6}  set to")
    rows = [("this autoscaler", made.ours), *made.peers.items()]
    for policy, each in rows:
        if each is None:
            best = made.best[policy].share or 0.0
            print(f"  {policy:20} {'-':>13} {'-':>8} {'-':>5} {'-':>6}  reaches that with no setting (best {best:.2%})")
        else:
            figures = f"{each.replica_hours:13.2f} {each.share or 0.0:8.2%} {each.cold:5d} {each.starts:6d}"
            print(f"  {policy:20} {figures}  {each.tuned}")
    print(f"  {verdict(made)}", flush=True)


def verdict(made: Comparison) -> str:
    """What a comparison shows, in a line."""
    share = made.ours.share or 0.0
    reached = "reached" if share >= SHARE else f"MISSED ({share:.2%})"
    closed = "no gap" if made.closed is None else f"{made.closed:.0%}"
    at_goal = "" if made.closed_at_goal is None else f", {made.closed_at_goal:.0%} against peers just at the goal"
    return f"goal {reached}; gap between HPA and oracle closed: {closed} at this share{at_goal}"


def line(name: str, how: str, made: Comparison) -> str:
    """A comparison as a row of a table in Markdown; `how` is what was varied."""
    share = made.ours.share or 0.0
    peers = [made.peers[each] for each in ("HPA, in flight", "KEDA, queue length", "fixed", "oracle")]
    hours = [f"{each.replica_hours:.2f}" if each is not None else "never" for each in peers]
    parts = [
        "-" if each is None else f"{each:.0%}" if each > -1 else "worse than the HPA"
        for each in (made.closed, made.closed_at_goal)
    ]
    in_time = f"{share:.2%}" if share >= SHARE else f"**{share:.2%}**"
    cells = (name, how, in_time, f"{made.ours.replica_hours:.2f}", *hours, *parts)
    return f"| {' | '.join(cells)} |"


def is_good(made: Comparison) -> bool:
    """Whether the goal was reached, and the gap closed as far as it should be."""
    oracle = made.peers["oracle"]
    is_near = oracle is not None and made.ours.replica_hours <= NEAR_ORACLE * oracle.replica_hours
    return (made.ours.share or 0.0) >= SHARE and (is_near or (made.closed is not None and made.closed >= CLOSED_GOAL))


def main() -> int:
    """Measure and print; 1 when a limit is exceeded or a goal missed, 2 when a trace is not there."""
    named = sys.argv[1:] or [each for each in os.environ.get("TRACES", "").split(":") if each]
    for each in named:
        if not Path(each).is_file():
            print(f"there is no file {each}", file=sys.stderr)
            return 2
    kept = speed()
    verdicts = []
    for name, trace in cases([Path(each) for each in named]):
        for limit_s in GOALS_S:
            made = case(trace, limit_s)
            show(name, trace, limit_s, made)
            verdicts.append((name, limit_s, made))
    print("\nAll of them, as in docs/autoscaling.md (replica-hours at one share; bold: the goal was missed)\n")
    columns = ("traffic", "goal", *COLUMNS)
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, limit_s, made in verdicts:
        print(line(name, f"{limit_s:g} s", made))
    varied()
    good = sum(is_good(made) for _, _, made in verdicts)
    print(f"\nthe goal reached, and {CLOSED_GOAL:.0%} closed or as good as the oracle: {good} of {len(verdicts)}")
    return 0 if kept and good == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))
