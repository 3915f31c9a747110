"""Of which versions more is asked than their copies can do, and how much that is: what a gateway may let wait there."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.core.names import Key
from controlplane.core.routes import Pace
from controlplane.metrics.readings import Interval

CROWDED_S = 2.0
"""A queue is too long where its copies have to work on it for so long."""
OVER = 0.5
"""What share of that it must be below before it counts as short."""
QUIET_S = 60.0
"""It must be short for so long before all is as before."""
SMOOTH_S = 10.0
"""Over how long what is done is averaged. A copy that takes seconds for a request ends none in many a reading."""
ENOUGH = 20.0
"""So many executions that ended since the reading before tell of now what an average tells only later."""
CHANGED = 0.25
"""A pace is told anew where it has changed by this share and by more than chance does: every change gives the gateways
a new table."""
MOST = 20
"""So many versions at most: each gets clusters of its own in Envoy, whose health is checked apart."""


@dataclass(slots=True)
class _Busy:
    """What a copy does that has had enough to do since a time, as last seen at another."""

    since: float
    at: float
    per_s: float


@dataclass(slots=True)
class Crowding:
    """What the copies of versions do, measured while they have always enough to do: so long as some requests wait both
    at a reading and at the one before. What they do while they have less to do is only what they are asked."""

    _busy: dict[Key, _Busy] = field(default_factory=dict)
    _paces: dict[Key, tuple[float, Pace]] = field(default_factory=dict)
    """With when the queue was last seen to be too long."""
    _told: frozenset[Key] = frozenset()

    def take(self, told: Iterable[Interval], usual: Callable[[Key], Pace], now: float) -> Mapping[Key, Pace]:
        """The pace of each version whose queue is too long, from readings of all servers that have told something.

        `usual`: what a copy can do, given what its executions have cost; 0 where that is not known. It is believed
        until something else has been measured for a while: of a short burst few executions tell little.
        """
        copies: Counter[Key] = Counter()
        waiting: dict[Key, float] = defaultdict(float)
        done: dict[Key, list[tuple[float, float]]] = defaultdict(list)
        others: dict[Key, float] = defaultdict(float)
        for each in told:
            for key, after in each.after.items():
                counted = each.counted(key)
                copies[key] += 1
                waiting[key] += after.pending
                if after.pending and key in each.before and each.before[key].pending:
                    done[key].append((counted.ended, each.window_s))
                else:
                    others[key] += counted.ended / each.window_s
        for key in [key for key, busy in self._busy.items() if busy.at > now]:
            del self._busy[key]
        for key in copies.keys() & (done.keys() | self._paces.keys()):
            can = usual(key)
            known_at, known = self._paces.get(key, (now, None))
            if key in done:
                busy = self._measure(key, done[key], can.at_once, now)
                per_s = busy.per_s if now - busy.since >= SMOOTH_S else max(busy.per_s, can.per_s)
                if others[key]:  # one that hangs does not tell what those do that answer
                    per_s = max(per_s, (busy.per_s * len(done[key]) + others[key]) / copies[key])
            else:
                self._busy.pop(key, None)
                per_s = max(known.per_s if known is not None else 0.0, can.per_s)
            queue_s = waiting[key] / copies[key] / per_s if per_s else math.inf
            is_long = waiting[key] > 0 and queue_s >= CROWDED_S * (OVER if known is not None else 1.0)
            if is_long or known is not None:
                self._paces[key] = now if is_long else known_at, _pace(known, per_s, can.at_once)
        self._busy = {key: busy for key, busy in self._busy.items() if key in done}
        # Of a clock that was set back nothing is left to go by.
        paces = {key: each for key, each in self._paces.items() if 0 <= now - each[0] < QUIET_S}
        if len(paces) > MOST:
            worst = sorted(paces, key=lambda key: (key not in self._told, -waiting[key], key))[:MOST]
            paces = {key: paces[key] for key in worst}
        self._paces, self._told = paces, frozenset(paces)
        return {key: pace for key, (_, pace) in paces.items()}

    def _measure(self, key: Key, done: list[tuple[float, float]], at_once: int, now: float) -> _Busy:
        """What one copy does, in the mean of those that had enough to do."""
        mean = sum(ended / window_s for ended, window_s in done) / len(done)
        busy = self._busy.setdefault(key, _Busy(since=now, at=now, per_s=mean))
        kept = math.exp(-max(now - busy.at, 0.0) / SMOOTH_S)
        is_telling = sum(ended for ended, _ in done) >= ENOUGH * at_once
        busy.at, busy.per_s = now, mean if is_telling else busy.per_s * kept + mean * (1 - kept)
        return busy


def _pace(before: Pace | None, per_s: float, at_once: int) -> Pace:
    """The same as before, if it has not changed much. Two digits are enough."""
    if before is not None:
        # As many end together as are executed at once.
        by_chance = min(2 * math.sqrt(at_once * before.per_s / (2 * SMOOTH_S)), before.per_s / 2)
        if abs(per_s - before.per_s) <= CHANGED * before.per_s + by_chance:
            return before
    return Pace(per_s=float(f"{per_s:.2g}"), at_once=at_once)
