"""A number that never changes: the least steady capacity that would have been enough for the recent past.

What came is played through a queue at a steady capacity, so that work counts as late where it would have been late, not
wherever more came than that capacity can do. One number is fitted to the whole past, so it is known sooner and more
surely than what follows moments like the present one; where that is no better foreseen, a steady number is cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence

CLOSE = 0.01
"""It is found this closely, as a part of it: far closer than a whole replica."""
CLOSE_BY = (0.5, -0.5, -1.4, 3.0, -3.0, 10.0, -10.0)
"""Where it is looked for first around a guess, in these steps: what is below one that is too little is passed over."""
NOTHING = 1e-9
"""Less than this, in replicas, is not told from nothing."""


def enough(demand: Sequence[float], step_s: float, slack_s: float, share: float, guess: float = 0.0) -> float:
    """The least steady capacity with which `share` of the work of `demand` would not have waited longer than `slack_s`.
    `demand` and the capacity in replicas, a value each `step_s` seconds. A good `guess` saves most of the time."""
    allowed = (1 - share) * sum(demand)
    low, high = 0.0, max(demand, default=0.0)
    close_by = iter([guess * (1 + away * CLOSE) for away in CLOSE_BY])
    while high - low > max(CLOSE * high, NOTHING):
        middle = next((each for each in close_by if low < each < high), (low + high) / 2)
        if late(demand, step_s, slack_s, middle) <= allowed:
            high = middle
        else:
            low = middle
    return high


def late(demand: Sequence[float], step_s: float, slack_s: float, capacity: float) -> float:
    """How much of `demand` would have waited longer than `slack_s`: what came while more waited than is done in that
    time. In the unit of `demand`."""
    limit, queue, found = capacity * slack_s, 0.0, 0.0
    for each in demand:
        before = queue
        queue += (each - capacity) * step_s
        if queue < 0.0:  # noqa: PLR1730, quicker than max(), in a loop of thousands
            queue = 0.0
        if queue > limit or before > limit:
            least, most = min(before, queue), max(before, queue)
            found += each * (1.0 if least >= limit else (most - limit) / (most - least))
    return found
