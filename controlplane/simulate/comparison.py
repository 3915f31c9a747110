"""Compares policies at one share of requests within the goal: each is set to the cheapest that reaches it.

Twice: at the share that the controller's policy reaches as it is, and at the goal, for which it is set with hindsight
as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controlplane.core.models import Goal
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
LATE_FACTORS = (50.0, 30.0, 20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5)
"""How much the controller's policy is told may come late, for what the goal allows."""
LEAST_SHARE = 0.5
"""No fleet can be given a lower one."""
TIME_FACTORS = (1.0, 0.5)
"""What time it is told, for that of the goal."""
OURS, FIXED, HPA, KEDA, ORACLE = (each.name for each in (Controller, Fixed, Hpa, Keda, Scheduled))
SAME = 1e-9

Peer = Fixed | Hpa | Keda | Scheduled
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`ours`, and of each peer the cheapest outcome with at least `ours.share` (None: none reaches it).

    `best`: of each peer the outcome with the greatest share. `at_goal`: of each policy, ours too, the cheapest outcome
    that reaches the goal.
    """

    ours: Outcome
    peers: Mapping[str, Outcome | None]
    best: Mapping[str, Outcome]
    at_goal: Mapping[str, Outcome | None]

    @property
    def with_hindsight(self) -> Outcome | None:
        """Our cheapest that reaches the goal; `ours` itself where no other goal that it might be told is cheaper."""
        return self.at_goal[OURS]

    @property
    def closed(self) -> float | None:
        """Which part of the gap between the HPA and the oracle is closed, at the share that `ours` reaches."""
        return closed(self.ours, self.peers[HPA], self.peers[ORACLE])

    @property
    def closed_at_goal(self) -> float | None:
        """The same with each policy set to reach the goal."""
        return closed(self.with_hindsight, self.at_goal[HPA], self.at_goal[ORACLE])


def closed(ours: Outcome | None, hpa: Outcome | None, oracle: Outcome | None) -> float | None:
    """Which part of the replica-hours between the HPA and the oracle `ours` saves: 1 is as much as the oracle does,
    below 0 worse than the HPA; None where there is no such gap."""
    if ours is None or hpa is None or oracle is None or hpa.replica_hours - oracle.replica_hours <= SAME:
        return None
    return (hpa.replica_hours - ours.replica_hours) / (hpa.replica_hours - oracle.replica_hours)


@dataclass(slots=True)
class Bench:
    """Replays one trace on one fleet, with many policies. `told` hears what is being done."""

    trace: Trace
    setting: Setting
    warm_up_s: float = 0.0
    told: Told = lambda text: None

    def ours(self, other: Goal | None = None) -> Outcome:
        """The controller's policy, as it is; or told another goal than the fleet's, by which requests are in time."""
        shape = self.setting.shape
        setting = replace(self.setting, shape=replace(shape, goal=other or shape.goal))
        policy = Controller(setting, self.trace.models, self.trace.origin)
        name = policy.name if other is None else f"{policy.name}, {other}"
        run = replay(self.trace, setting, policy, lambda share: self.told(f"{name}: {share:.0%}"))
        return outcome(run, self.trace, shape.goal, warm_up_s=self.warm_up_s, tuned=str(setting.shape.goal))

    def told_otherwise(self, as_it_is: Outcome) -> list[Outcome]:
        """Outcomes of the controller's policy when it is told many goals around the fleet's own; the one `as_it_is` is
        among them."""
        goal = self.setting.shape.goal
        lates = [each for each in LATE_FACTORS if each * (1 - goal.share) <= 1 - LEAST_SHARE + SAME]
        goals = [_changed(goal, late=late, time=time) for time in TIME_FACTORS for late in lates]
        return [as_it_is, *(self.ours(each) for each in goals if each != goal and each.share < 1)]

    def of(self, policy: Peer) -> Outcome:
        """A peer's outcome."""
        self.told(f"{policy.name}: {policy.tuned}")
        run = replay(self.trace, self.setting, policy)
        return outcome(run, self.trace, self.setting.shape.goal, warm_up_s=self.warm_up_s, tuned=policy.tuned)

    def hpa(self) -> list[Outcome]:
        """Outcomes of the HPA at many targets."""
        return [self.of(Hpa(target * self.setting.slots)) for target in HPA_TARGETS]

    def keda(self) -> list[Outcome]:
        """Outcomes of KEDA at many targets, each with several least numbers of replicas."""
        slots = self.setting.slots
        mean = float(self.trace.work_s.sum(dtype=np.float64)) / max(self.trace.length_s, 1.0) / slots
        leasts = sorted({math.ceil(each * mean) for each in KEDA_LEAST})
        return [self.of(Keda(target * slots, least)) for target in KEDA_TARGETS for least in leasts]

    def fixed(self, share: float) -> list[Outcome]:
        """Outcomes of fixed numbers between the fleet's limits; the least that reaches a share is among them."""
        found: dict[int, Outcome] = {}
        shape = self.setting.shape
        least, most = ([each.min_replicas for each in shape.schedule], [each.max_replicas for each in shape.schedule])
        low = min(each for each in (shape.min_replicas, *least) if each is not None)
        high = max(each for each in (shape.max_replicas, *most) if each is not None)
        middle = min(max(math.ceil(concurrency(self.trace).max() / self.setting.slots), low), high)
        while True:  # first the number at which hardly anything waits: the limit may be far above it
            found[middle] = self.of(Fixed(middle))
            if (found[middle].share or 0.0) >= share - SAME:
                high = middle
            else:
                low = min(middle + 1, high)
            middle = (low + high) // 2
            if middle in found:
                return list(found.values())

    def oracle(self, share: float) -> list[Outcome]:
        """Outcomes of plans that know the future, around a share."""
        found = []
        limit_s = goal_s(self.setting.shape.goal) or 0.0
        for name, demand in shapes(self.trace, self.setting.slots, limit_s):
            low, high = math.log(LEAST_FACTOR), math.log(MOST_FACTOR)
            for _ in range(TRIES):
                middle = (low + high) / 2
                found.append(self.of(scheduled(demand, math.exp(middle), self.setting, name)))
                if (found[-1].share or 0.0) >= share:
                    high = middle
                else:
                    low = middle
        return found


def cheapest(outcomes: Sequence[Outcome], share: float) -> Outcome | None:
    """The one with the fewest replica-hours that reaches a share."""
    reaching = [each for each in outcomes if (each.share or 0.0) >= share - SAME]
    return min(reaching, key=lambda each: each.replica_hours, default=None)


def compare(bench: Bench) -> Comparison:
    """The controller's policy against its peers, at the share that it reaches and at the goal."""
    ours = bench.ours()
    share, goal = ours.share or 0.0, bench.setting.shape.goal.share
    fixed = [*bench.fixed(share), *bench.fixed(goal)]
    # Who knows the future may as well choose a number that never changes.
    steady = [replace(each, policy=ORACLE, tuned=f"always {each.tuned}") for each in fixed]
    made: dict[str, Sequence[Outcome]] = {
        FIXED: fixed,
        HPA: bench.hpa(),
        KEDA: bench.keda(),
        ORACLE: [*bench.oracle(share), *bench.oracle(goal), *steady],
    }
    told = {OURS: bench.told_otherwise(ours), **made}
    return Comparison(
        ours=ours,
        peers={name: cheapest(outcomes, share) for name, outcomes in made.items()},
        best={name: max(outcomes, key=lambda each: each.share or 0.0) for name, outcomes in made.items()},
        at_goal={name: cheapest(outcomes, goal) for name, outcomes in told.items()},
    )


def _changed(goal: Goal, *, late: float, time: float) -> Goal:
    """A goal by which so many times as much may come late, after so many times its time."""

    def changed(time_ms: float | None) -> float | None:
        return None if time_ms is None else time * time_ms

    share = round(1 - late * (1 - goal.share), 9)
    return replace(goal, share=share, queue_ms=changed(goal.queue_ms), latency_ms=changed(goal.latency_ms))
