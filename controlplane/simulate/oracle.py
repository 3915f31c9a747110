"""A clairvoyant: plans of replicas made from the requests that will come. What could be had with perfect knowledge.

The true optimum can't be computed; these plans are what a good plan costs. A plan follows the number of requests that
would be worked on at once if none had to wait, smoothed over a time in which some may wait, times a factor below or
above one, and cut off at the top. The cheapest of them that reaches a share is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.simulate.peers import Scheduled
from controlplane.simulate.policies import STEP_S
from controlplane.simulate.replay import Setting
from controlplane.simulate.traces import Floats, Trace

SMOOTHED = (1.0, 3.0)
"""Over how many times the goal's time the plan is smoothed, besides not at all."""
CUTS = (1.0, 0.97)
"""At which quantile of itself it is cut off."""
LEAST_FACTOR, MOST_FACTOR = 0.3, 3.0
TRIES = 7
"""Halvings in the search for each plan's factor."""


def concurrency(trace: Trace) -> Floats:
    """How many requests would be worked on at once, in the mean of each step, if none had to wait: float64[steps]."""
    steps = int(trace.length_s // STEP_S) + 1
    # What is worked on until a time, in seconds of work: a sum of ramps, one up at each begin, one down at each end.
    edges = np.arange(steps + 1) * STEP_S
    worked = _ramps(trace.arrival_s, edges) - _ramps(np.sort(trace.arrival_s + trace.work_s), edges)
    return np.diff(worked) / STEP_S


def _ramps(begins: Floats, at: Floats) -> Floats:
    """The sum over all `begins` (sorted) of how long ago each was, at these times."""
    passed = np.searchsorted(begins, at)
    ago: Floats = passed * at - np.concatenate(([0.0], np.cumsum(begins)))[passed]
    return ago


def shapes(trace: Trace, slots: int, goal_s: float) -> Iterator[tuple[str, Floats]]:
    """Demands in replicas that plans may follow, each with its name."""
    busy = concurrency(trace) / slots
    for smoothed in (0.0, *SMOOTHED):
        width = max(1, round(smoothed * goal_s / STEP_S))
        if smoothed and width == 1:
            continue
        # Work may be done later than it came, never earlier: the mean reaches back.
        even = np.convolve(busy, np.full(width, 1 / width))[: len(busy)]
        for cut in CUTS:
            yield f"over {width * STEP_S:g} s, cut at {cut:.0%}", np.minimum(even, np.quantile(even, cut))


def scheduled(demand: Floats, factor: float, setting: Setting, name: str) -> Scheduled:
    """The plan that follows a demand: in whole replicas, ordered a start-up time ahead."""
    wanted = np.ceil(demand * factor - 1e-9).astype(np.int64)
    ahead = math.ceil(setting.start_s / STEP_S)
    return Scheduled(ahead_max(wanted, ahead + 1), f"{factor:.2f} × the demand {name}")


def ahead_max(values: NDArray[np.int64], width: int) -> Sequence[int]:
    """The greatest of each value and the `width` − 1 after it."""
    padded = np.concatenate([values, np.full(width - 1, values[-1])])
    most = np.lib.stride_tricks.sliding_window_view(padded, width).max(axis=1)
    return [int(each) for each in most]
