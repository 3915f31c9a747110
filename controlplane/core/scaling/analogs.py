"""What may come within a while, told from what came after moments like this one: the method of analogs.

A moment is described by the demand of just now, and of the last half minute and two minutes; the moments of the past
that were most like the present one show what was needed after them. No trend, season or distribution is assumed, so it
is as good for bursts as for slow changes, and what it says can be said in a sentence.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from controlplane.core.load import Features, Moment
from controlplane.core.scaling.steady import enough

SPANS_S = (5.0, 30.0, 120.0)
"""What a moment is described by: the mean demand over these spans before it."""
_SUDDEN, _RECENT, _LASTING = 0, 1, 2
LIKE = 0.1
"""Which share of the past counts as like the present."""
STEADY_FEWEST, STEADY_EVERY = 450, 150
"""After so many steps, a quarter of an hour, the least steady capacity is known; after each so many it is told anew."""
STEADY_KEPT_S = 21600.0
"""It is of the last six hours, as what forecasts are compared by: with less, what comes once an hour is forgotten."""
SHORT = 64
"""In so few steps every stretch of time is looked at."""
FEWEST = 120
"""A past of fewer moments tells nothing: most of it would be unlike the present."""
NEW = 0.2
"""A demand that is higher than any before by so much more (in its logarithm: a fifth) is like no moment of the past."""


def sudden(features: Features) -> float:
    """The mean demand of the last seconds."""
    return math.expm1(features[_SUDDEN])


def recent(features: Features) -> float:
    """The mean demand of the last half minute."""
    return math.expm1(features[_RECENT])


def lasting(features: Features) -> float:
    """The mean demand of the last two minutes."""
    return math.expm1(features[_LASTING])


def needed(demand: Sequence[float], step_s: float, slack_s: float) -> float:
    """The least steady capacity for which nothing of `demand` waits longer than `slack_s`: the work of any stretch of
    time must be done within it and the slack."""
    if len(demand) > SHORT:
        return _needed_of_many(demand, step_s, slack_s)
    most = 0.0
    for begin in range(len(demand)):
        work = 0.0
        for end in range(begin, len(demand)):
            work += demand[end] * step_s
            most = max(most, work / ((end - begin + 1) * step_s + slack_s))
    return most


def _needed_of_many(demand: Sequence[float], step_s: float, slack_s: float) -> float:
    """The same without looking at every stretch. The work so far, drawn over time, is a curve; what is sought is the
    steepest line from a point of it to a later one that is moved to the right by the slack. Such a line begins on the
    lower convex hull of what is before, and along that its slope rises and then falls."""
    hull = [(0.0, 0.0)]
    most = work = 0.0
    for index, each in enumerate(demand):
        work += each * step_s
        at = (index + 1) * step_s
        low, high = 0, len(hull) - 1
        while low < high:
            middle = (low + high) // 2
            (x, y), (next_x, next_y) = hull[middle], hull[middle + 1]
            if (next_y - y) * (at + slack_s - x) < (work - y) * (next_x - x):
                low = middle + 1
            else:
                high = middle
        x, y = hull[low]
        most = max(most, (work - y) / (at + slack_s - x))
        while len(hull) > 1:
            (x, y), (next_x, next_y) = hull[-2:]
            if (next_y - y) * (at - x) < (work - y) * (next_x - x):
                break
            hull.pop()
        hull.append((at, work))
    return most


@dataclass(slots=True)
class Past:
    """The demand so far, a value every `step_s` seconds, and the moments in it whose sequel is known.

    `horizon_s` is how far ahead decisions take effect, `slack_s` how long a request may wait, `share` which share of
    them no longer. `keep_s` of it is kept, and the bare numbers for longer. No more than half of `keep_s` is looked
    ahead, so that there are moments whose sequel is known.
    """

    step_s: float
    horizon_s: float
    slack_s: float
    share: float = 0.99
    keep_s: float = 3600.0
    demand: deque[tuple[float, float]] = field(default_factory=deque)
    """With the time of each."""
    moments: deque[Moment] = field(default_factory=deque)
    _features: deque[tuple[Features, float]] = field(default_factory=deque)
    _course: deque[float] = field(default_factory=deque)
    """The demand for longer: what the steady capacity is of."""
    _steady: float | None = None
    _steady_in: int = 0

    def __post_init__(self) -> None:
        """Everything kept is bounded."""
        steps = max(1, round(self.keep_s / self.step_s))
        self.demand = deque(self.demand, maxlen=steps)
        self.moments = deque(self.moments, maxlen=steps)
        self._course = deque(self._course, maxlen=max(1, round(STEADY_KEPT_S / self.step_s)))

    @property
    def lag(self) -> int:
        """The horizon in steps, as far as it is looked ahead."""
        return max(1, math.ceil(min(self.horizon_s, self.keep_s / 2) / self.step_s)) + 1

    def add(self, demand: float, at: float) -> Moment | None:
        """The demand of one more step, which ended `at`. Returns the moment whose sequel is known now."""
        self._course.append(demand)
        return self._take(demand, at)

    def _take(self, demand: float, at: float) -> Moment | None:
        self.demand.append((demand, at))
        self._features.append((self._describe(), at))
        if len(self._features) <= self.lag:
            return None
        after = [self.demand[index][0] for index in range(-self.lag, 0)]
        features, then = self._features.popleft()
        self.moments.append(Moment(features, needed(after, self.step_s, self.slack_s), sum(after) + 1e-9, then))
        return self.moments[-1]

    def features(self) -> Features:
        """How the present moment is described."""
        return self._features[-1][0] if self._features else self._describe()

    def steady(self) -> float | None:
        """The steady capacity that would have been enough for the last hours, to be asked once a step. None: they are
        too few to tell."""
        if len(self._course) < STEADY_FEWEST:
            return None
        if self._steady_in <= 0:
            course = list(self._course)
            self._steady = enough(course, self.step_s, self.slack_s, self.share, guess=self._steady or 0.0)
            self._steady_in = STEADY_EVERY
        self._steady_in -= 1
        return self._steady

    def _describe(self) -> Features:
        one, some, many = (self._mean(span_s) for span_s in SPANS_S)
        return math.log1p(one), math.log1p(some), math.log1p(many)

    def _mean(self, span_s: float) -> float:
        steps = min(max(1, round(span_s / self.step_s)), len(self.demand))
        return sum(self.demand[index][0] for index in range(-steps, 0)) / steps if steps else 0.0

    def reset(self, horizon_s: float, slack_s: float, share: float) -> None:
        """Tell the past anew for another horizon, slack or share."""
        demand = list(self.demand)
        self.horizon_s, self.slack_s, self.share, self._steady_in = horizon_s, slack_s, share, 0
        self.demand.clear()
        self.moments.clear()
        self._features.clear()
        for each, at in demand:
            self._take(each, at)


def likely_need(moments: Iterable[Moment], features: Features, share: float) -> float | None:
    """The capacity with which `share` of the work after moments like this one would have been in time: the more a
    moment was like it, the more its work counts. None: the past is too short to tell, or knows no demand like this."""
    past = list(moments)
    if len(past) < FEWEST:
        return None
    count = int(LIKE * len(past))
    a, b, c = features
    if a > max(moment.features[_SUDDEN] for moment in past) + NEW:
        return None
    distances = [abs(x - a) + abs(y - b) + abs(z - c) for x, y, z in [moment.features for moment in past]]
    nearest = sorted(range(len(past)), key=distances.__getitem__)[:count]
    like = sorted((past[at].need, past[at].weight * (1 - rank / count) ** 2) for rank, at in enumerate(nearest))
    wanted = share * sum(weight for _, weight in like)
    reached = 0.0
    for need, weight in like:
        reached += weight
        if reached >= wanted:
            return need
    return like[-1][0]
