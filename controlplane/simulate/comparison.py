"""Compares policies at one share of requests within the goal: peers are set to the cheapest that reaches it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.simulate.controller import Controller
from controlplane.simulate.oracle import LEAST_FACTOR, MOST_FACTOR, TRIES, concurrency, scheduled, shapes
from controlplane.simulate.outcomes import Outcome, goal_s, outcome
from controlplane.simulate.peers import Fixed, Hpa, Keda, Scheduled
from controlplane.simulate.replay import Setting, replay
from controlplane.simulate.traces import Trace

HPA_TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.84, 0.88, 0.92, 0.96, 1.0, 1.2, 1.5)
"""Requests in flight for each slot of a replica."""
KEDA_TARGETS = (0.25, 1.0, 4.0, 16.0)
"""Waiting requests for each slot of a replica."""
KEDA_LEAST = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""The least number of replicas, for each that the mean demand keeps busy."""
SAME = 1e-9

Peer = Fixed | Hpa | Keda | Scheduled
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`ours`, and of each peer the cheapest outcome with at least `ours.share` (None: none reaches it).

    `closed`: which part of the replica-hours between the HPA and the oracle is saved; None where there is no such gap.
    """

    ours: Outcome
    peers: Mapping[str, Outcome | None]
    best: Mapping[str, Outcome]
    """Of each peer the outcome with the greatest share."""

    @property
    def closed(self) -> float | None:
        """1: as good as the oracle; 0: no better than the HPA; below: worse."""
        return closed(self.ours, self.peers)


def closed(ours: Outcome, peers: Mapping[str, Outcome | None]) -> float | None:
    """Which part of the gap between the HPA and the oracle `ours` closes."""
    hpa, oracle = peers["HPA, in flight"], peers["oracle"]
    if hpa is None or oracle is None or hpa.replica_hours - oracle.replica_hours <= SAME:
        return None
    return (hpa.replica_hours - ours.replica_hours) / (hpa.replica_hours - oracle.replica_hours)


@dataclass(slots=True)
class Bench:
    """Replays one trace on one fleet, with many policies. `told` hears what is being done."""

    trace: Trace
    setting: Setting
    warm_up_s: float = 0.0
    told: Told = lambda text: None

    def ours(self) -> Outcome:
        """The controller's policy."""
        self.told("this autoscaler")
        policy = Controller(self.setting, self.trace.models, self.trace.origin)
        run = replay(self.trace, self.setting, policy)
        goal = self.setting.shape.goal
        return outcome(run, self.trace, goal, warm_up_s=self.warm_up_s, tuned=str(goal))

    def of(self, policy: Peer) -> Outcome:
        """A peer's outcome."""
        self.told(f"{policy.name}: {policy.tuned}")
        run = replay(self.trace, self.setting, policy)
        return outcome(run, self.trace, self.setting.shape.goal, warm_up_s=self.warm_up_s, tuned=policy.tuned)

    def peers(self, share: float) -> dict[str, list[Outcome]]:
        """Outcomes of every peer at many settings; of the fixed number and the oracle, those around `share`."""
        slots = self.setting.slots
        mean = float(self.trace.work_s.sum(dtype=np.float64)) / max(self.trace.length_s, 1.0) / slots
        leasts = sorted({math.ceil(each * mean) for each in KEDA_LEAST})
        return {
            "fixed": list(self._fixed(share)),
            "HPA, in flight": [self.of(Hpa(target * slots)) for target in HPA_TARGETS],
            "KEDA, queue length": [self.of(Keda(target * slots, least)) for target in KEDA_TARGETS for least in leasts],
            "oracle": list(self._oracle(share)),
        }

    def _fixed(self, share: float) -> Iterator[Outcome]:
        """Halving: the least number that reaches the share is among them."""
        low, high = 0, max(math.ceil(concurrency(self.trace).max() / self.setting.slots) + 1, 1)
        while low < high:
            middle = (low + high) // 2
            made = self.of(Fixed(middle))
            yield made
            if (made.share or 0.0) >= share:
                high = middle
            else:
                low = middle + 1
        yield self.of(Fixed(high))

    def _oracle(self, share: float) -> Iterator[Outcome]:
        limit_s = goal_s(self.setting.shape.goal) or 0.0
        for name, demand in shapes(self.trace, self.setting.slots, limit_s):
            low, high = math.log(LEAST_FACTOR), math.log(MOST_FACTOR)
            for _ in range(TRIES):
                middle = (low + high) / 2
                made = self.of(scheduled(demand, math.exp(middle), self.setting, name))
                yield made
                if (made.share or 0.0) >= share:
                    high = middle
                else:
                    low = middle


def cheapest(outcomes: Sequence[Outcome], share: float) -> Outcome | None:
    """The one with the fewest replica-hours that reaches a share."""
    reaching = [each for each in outcomes if (each.share or 0.0) >= share - SAME]
    return min(reaching, key=lambda each: each.replica_hours, default=None)


def compare(bench: Bench) -> Comparison:
    """The controller's policy against its peers, at the share that it reaches."""
    ours = bench.ours()
    made = bench.peers(ours.share or 0.0)
    return Comparison(
        ours=ours,
        peers={name: cheapest(outcomes, ours.share or 0.0) for name, outcomes in made.items()},
        best={name: max(outcomes, key=lambda each: each.share or 0.0) for name, outcomes in made.items()},
    )
