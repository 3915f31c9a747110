"""What the answers of a Prometheus have told of each replica so far, and how far back the next question has to reach.

Nothing here asks anybody or looks at a clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from controlplane.metrics.readings import Interval
from controlplane.metrics.series import Readings

WINDOW_S = 30.0
"""How far back samples are asked for at most, where two scrapes are known to fit in."""
LONGEST_S = 130.0
"""The same, where they don't, or where it is not known."""
MOST_EVERY_S = 61.0
"""Scrapes that are further apart than this are too seldom to scale by. A minute is Prometheus' own default."""
SURE = 3
"""So many times in a row scrapes are too far apart before it is said: one may have been missed."""
MIN_WINDOW_S, MARGIN_S = 5, 2
MAX_AHEAD_S = 5.0
"""How much later than now a sample may be: a clock that goes further ahead would make what is old look new."""


class Sampled:
    """Remembers each replica's last reading. All times are in seconds since 1970."""

    def __init__(self) -> None:
        self.intervals: dict[str, Interval] = {}
        """By replica."""
        self._heard: dict[str, float] = {}
        """When there was last something new of each replica, or when it was first asked for."""
        self._alone: dict[str, Interval] = {}
        """The first scrape after a long silence, until there is a second."""
        self._seldom = 0
        """So many times in a row all scrapes were too far apart."""

    def expect(self, names: Iterable[str], now: float) -> None:
        """Only these replicas are asked for from now on."""
        self._heard = {name: min(self._heard.get(name, now), now) for name in names}
        self.intervals = {name: each for name, each in self.intervals.items() if name in self._heard}
        self._alone = {name: each for name, each in self._alone.items() if name in self._heard}

    def window_s(self, now: float) -> int:
        """How far back to ask: to the last reading of each that still tells something, since each sample costs time."""
        furthest_s = self._furthest_s()
        ages = (now - each.at for each in self.intervals.values())
        longest_s = max((age_s for age_s in ages if age_s < furthest_s), default=furthest_s)
        return math.ceil(min(max(longest_s + MARGIN_S, MIN_WINDOW_S), furthest_s))

    def take(self, readings: Mapping[str, Readings], now: float) -> str:
        """Take in an answer. Returns what is wrong with it; empty: nothing is."""
        furthest_s = self._furthest_s()
        for name in readings.keys() & self._heard:  # others were asked for before, and are not any more
            each, known = readings[name], self.intervals.get(name)
            if each.at - now > MAX_AHEAD_S:
                continue
            if known is None or known.at - now > MAX_AHEAD_S:  # the clock was set back
                self._keep(name, _start(each), each, now)
            elif each.at - known.at > furthest_s:
                # What happened in all the time before says little of now, and one reading alone nothing: not even zero.
                alone = self._alone.setdefault(name, _start(each))
                if each.at > each.first_at:
                    self._keep(name, _start(each), each, now)
                elif 0 < each.at - alone.at <= LONGEST_S:
                    self._keep(name, alone, each, now)
                else:
                    self._alone[name] = _start(each)
            elif each.at > known.at:
                self._keep(name, known, each, now)
        return self._problem(readings, now, furthest_s)

    def _problem(self, readings: Mapping[str, Readings], now: float, furthest_s: float) -> str:
        ahead_s = max((each.at - now for each in readings.values()), default=0.0)
        apart_s = min((each.apart_s for each in readings.values() if each.apart_s is not None), default=None)
        if apart_s is not None:
            self._seldom = self._seldom + 1 if apart_s > MOST_EVERY_S else 0
        silent = sorted(name for name, at in self._heard.items() if now - at > furthest_s)
        if ahead_s > MAX_AHEAD_S:
            return f"its clock is {ahead_s:.0f} s ahead of this machine's: not believed"
        if silent:
            return (
                f"it has nothing new of {', '.join(silent[:3])}{', …' if len(silent) > 3 else ''}, which run: does it "
                "scrape what /v1/targets lists, once a minute at least? (docs/metrics.md)"
            )
        if self._seldom >= SURE:
            return (
                "it scrapes too seldom for replicas to follow the load: let it scrape every 2 s, or once a minute at "
                "least (docs/metrics.md)"
            )
        return ""

    def _furthest_s(self) -> float:
        """Two scrapes fit in, and one that was missed. While nothing was read, most are taken to scrape often."""
        every = [each.every_s for each in self.intervals.values()]
        if not all(every):
            return LONGEST_S
        return min(max(2 * max(every, default=0.0) + MARGIN_S, WINDOW_S), LONGEST_S)

    def _keep(self, name: str, before: Interval, news: Readings, now: float) -> None:
        self._heard[name] = now
        self._alone.pop(name, None)
        if news.at <= before.at:
            self.intervals[name] = before
            return
        every_s = news.apart_s or before.every_s or news.at - before.at
        known_s = every_s if every_s <= MOST_EVERY_S else 0.0
        self.intervals[name] = before.then(news.at, news.latest, every_s=known_s)


def _start(readings: Readings) -> Interval:
    return Interval(at=readings.first_at, window_s=0.0, after=readings.first)
