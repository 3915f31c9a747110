"""Of which versions more is asked than their copies can do, and how much that is: what a gateway may let wait there."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.core.names import Key
from controlplane.core.routes import Pace
from controlplane.metrics.readings import Interval

CROWDED_S = 2.0
"""Where the queue is longer than what is done in this time, its copies do all that they can: so that is measured."""
OVER = 0.5
"""What share of that the queue must be below before it counts as gone."""
QUIET_S = 60.0
"""It must be gone for so long before all is as before."""
SMOOTH_S = 10.0
"""Over how long what is done is averaged. A copy that takes seconds for a request ends none in many a reading."""
ENOUGH = 20.0
"""So many that ended since the reading before tell of now what an average tells only later."""
CHANGED = 0.25
"""A pace is told anew where it has changed by this share and by more than chance does: every change gives the gateways
a new table."""


@dataclass(slots=True)
class Crowding:
    """What each copy of a version does in the mean; and for how long it has been too little."""

    _at: float = 0.0
    _done: dict[Key, float] = field(default_factory=dict)
    """Requests a second and copy, smoothed."""
    _paces: dict[Key, tuple[float, Pace]] = field(default_factory=dict)
    """Since when such a queue was last seen, and what its copies do."""

    def take(self, told: Iterable[Interval], at_once: Callable[[Key], int], now: float) -> Mapping[Key, Pace]:
        """The pace of each version of which too much is asked, from readings of all servers that have told something.

        `at_once`: how many requests one copy executes at the same time where there is always enough to do.
        """
        done: dict[Key, list[float]] = {}
        waiting: defaultdict[Key, float] = defaultdict(float)
        ended: defaultdict[Key, float] = defaultdict(float)
        for each in told:
            for key in each.after:
                counted = each.counted(key)
                done.setdefault(key, []).append((counted.success + counted.failures) / each.window_s)
                ended[key] += counted.success + counted.failures
                waiting[key] += each.after[key].pending
        kept = math.exp(-max(now - self._at, 0.0) / SMOOTH_S)
        self._at = now
        for key, rates in done.items():
            mean = sum(rates) / len(rates)
            smooth = self._done.get(key, mean) * kept + mean * (1 - kept)
            self._done[key] = smooth
            per_s = max(mean, smooth) if ended[key] >= ENOUGH else smooth
            known = self._paces.get(key)
            queue_s = waiting[key] / len(rates) / per_s if per_s else math.inf
            if waiting[key] and queue_s >= CROWDED_S * (OVER if known else 1.0):
                self._paces[key] = now, _pace(known[1] if known else None, per_s, at_once(key))
        self._done = {key: rate for key, rate in self._done.items() if key in done}
        self._paces = {key: each for key, each in self._paces.items() if now - each[0] < QUIET_S}
        return {key: pace for key, (_, pace) in self._paces.items()}


def _pace(before: Pace | None, per_s: float, at_once: int) -> Pace:
    """The same as before, if it has not changed much. Two digits are enough."""
    if before is not None:
        by_chance = math.sqrt(before.per_s / (2 * SMOOTH_S))
        if abs(per_s - before.per_s) <= CHANGED * before.per_s + 2 * by_chance:
            return before
    return Pace(per_s=float(f"{per_s:.2g}"), at_once=at_once)
