"""Policies to compare with: a fixed number, the formula of Kubernetes' HPA, queue length as with KEDA, a schedule."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from controlplane.simulate.policies import STEP_S, Seen

SYNC_S = 15.0
"""How often the HPA decides."""
METRIC_S = 30.0
"""Over which time its metric is averaged, as a rate query on scraped metrics is."""
TOLERANCE = 0.1
STABILISATION_S = 300.0
"""Before there are fewer replicas, no more may have been asked for in this time."""
POLL_S, COOLDOWN_S = 30.0, 300.0
"""KEDA: how often the queue is looked at, and for how long it must have been empty before there is the least."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always so many replicas."""

    name: ClassVar[str] = "fixed"
    count: int

    @property
    def tuned(self) -> str:
        """What it is set to."""
        return f"{self.count} replica{'' if self.count == 1 else 's'}"

    def desired(self, seen: Seen) -> int:
        """The same at each step."""
        return self.count


@dataclass(slots=True)
class _Hpa:
    """What a horizontal pod autoscaler makes of a wanted number: tolerance, its limits on growth, stabilisation."""

    _decided: deque[tuple[float, int]] = field(default_factory=deque)

    def limited(self, now: float, present: int, wanted: float) -> int:
        """How many replicas it sets. `wanted`: the metric's sum, over the target of one replica."""
        if not self._decided:
            self._decided.append((now, present))  # as the HPA does: what it finds counts as asked for
        kept = present and abs(wanted / present - 1) <= TOLERANCE
        desired = present if kept else max(math.ceil(wanted), 1)
        desired = min(desired, max(2 * present, present + 4))
        self._decided.append((now, desired))
        while self._decided[0][0] <= now - STABILISATION_S:
            self._decided.popleft()
        return max(desired, min(present, max(count for _, count in self._decided)))


@dataclass(slots=True)
class Hpa:
    """The HPA on requests in flight: every 15 s ``ceil(in flight / target)``, `target` of them for each replica."""

    name: ClassVar[str] = "HPA, in flight"
    target: float
    _flights: deque[int] = field(default_factory=lambda: deque(maxlen=round(METRIC_S / STEP_S)))
    _hpa: _Hpa = field(default_factory=_Hpa)
    _next: float = 0.0

    @property
    def tuned(self) -> str:
        """What it is set to."""
        return f"{self.target:.3g} in flight a replica"

    def desired(self, seen: Seen) -> int:
        """As the formula says, where it is time."""
        self._flights.append(seen.in_flight)
        if seen.now < self._next:
            return seen.present
        self._next = seen.now + SYNC_S - STEP_S / 2
        return self._hpa.limited(seen.now, seen.present, sum(self._flights) / len(self._flights) / self.target)


@dataclass(slots=True)
class Keda:
    """KEDA on the queue's length: polled every 30 s, `target` waiting requests for each replica; `least` replicas at
    any time (a queue that is empty asks for none), and no fewer before the cooldown is over."""

    name: ClassVar[str] = "KEDA, queue length"
    target: float
    least: int
    _hpa: _Hpa = field(default_factory=_Hpa)
    _length: int = 0
    _polled: float = -math.inf
    _next: float = 0.0
    _active: float = -math.inf

    @property
    def tuned(self) -> str:
        """What it is set to."""
        return f"{self.target:.3g} waiting a replica, {self.least} at least"

    def desired(self, seen: Seen) -> int:
        """As the formula says of the last poll, where it is time."""
        if seen.now - self._polled >= POLL_S:
            self._polled, self._length = seen.now, seen.queue
        if self._length:
            self._active = seen.now
        if self.least == 0 and seen.now - self._active > COOLDOWN_S:
            return 0
        if seen.now < self._next:
            return seen.present
        self._next = seen.now + SYNC_S - STEP_S / 2
        return max(self._hpa.limited(seen.now, seen.present, self._length / self.target), self.least)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """So many replicas as a plan says for each step; `oracle.scheduled` makes plans that order a start-up ahead."""

    name: ClassVar[str] = "oracle"
    plan: Sequence[int]
    tuned: str

    def desired(self, seen: Seen) -> int:
        """What the plan says of this step; its end holds on after it."""
        return int(self.plan[min(round(seen.now / STEP_S), len(self.plan) - 1)])
