"""Replays a trace against a fleet and a policy: requests queue for slots, first come first served, one by one.

Between two steps nothing changes but what requests do, so each step serves its requests in one go. A fleet is one
queue: as if a request always went to the replica that is free first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from controlplane.core.errors import InvalidInput
from controlplane.core.models import FleetRecord, FleetShape
from controlplane.core.scaling.limits import limits_of
from controlplane.simulate.fleet import BITS, MASK, MOST_REPLICAS, Replicas, ticks
from controlplane.simulate.fleet import serve as serve_in
from controlplane.simulate.policies import STEP_S, Begun, Integers, Policy, Seen
from controlplane.simulate.traces import Floats, Singles, Trace

BLOCK = 8192
"""So many requests are handed over at once; those that can't begin yet are handed over again."""
PATIENCE_S = 3600.0
"""So long after the trace's end what still waits is served; what waits then is never answered."""
MOST_SLOTS, MOST_START_S = 4096, 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A simulated fleet: its shape (limits, goal), how many requests a replica works on at once, how long one takes to
    start, how many are ready at the beginning (None: as many as the limits ask for)."""

    shape: FleetShape
    slots: int = 4
    start_s: float = 30.0
    initial: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidInput for what can't be simulated."""
        if not 1 <= self.slots <= MOST_SLOTS:
            what = f"a replica can't work on {self.slots} requests at once"
            raise InvalidInput(what, field="--slots", remedy=f"give 1 to {MOST_SLOTS}")
        if not 0 <= self.start_s <= MOST_START_S:
            what = f"a start can't take {self.start_s:g} s"
            raise InvalidInput(what, field="--start-s", remedy=f"give 0 to {MOST_START_S:g}, a day")
        if self.shape.max_replicas >= MOST_REPLICAS:
            what = f"{self.shape.max_replicas} replicas are more than can be simulated"
            raise InvalidInput(what, field="replicas.max", remedy=f"give less than {MOST_REPLICAS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What happened. By request: `wait_s`, float32[requests], infinite for who was never served.

    By step (the end of each, STEP_S apart), int64[steps]: `present` and `ready` replicas, `queue`; until then
    `started` and `stopped` replicas, and `came_cold`, the requests that came while none was ready. `replica_s`:
    replica-seconds until each step's end, float64[steps].
    """

    policy: str
    wait_s: Singles
    present: Integers
    ready: Integers
    queue: Integers
    started: Integers
    stopped: Integers
    came_cold: Integers
    replica_s: Floats

    @property
    def starts(self) -> int:
        """Replicas ordered, before the trace ended."""
        return int(self.started[-1])

    @property
    def stops(self) -> int:
        """Replicas ended, before the trace did."""
        return int(self.stopped[-1])

    @property
    def cold(self) -> int:
        """Requests in all that came while no replica was ready."""
        return int(self.came_cold[-1])


def replay(trace: Trace, setting: Setting, policy: Policy, told: Callable[[float], None] = lambda share: None) -> Run:
    """Replay a trace. `told` hears the share that is done, now and then."""
    return _Replay(trace, setting, policy).run(told)


class _Replay:
    def __init__(self, trace: Trace, setting: Setting, policy: Policy) -> None:
        self.trace, self.setting, self.policy = trace, setting, policy
        self.steps = int(trace.length_s // STEP_S) + 1
        # The requests of step k are those from bounds[k] to bounds[k + 1].
        edges = np.arange(self.steps + 1) * STEP_S
        self.bounds = np.searchsorted(trace.arrival_s, edges)
        self.record = FleetRecord(shape=setting.shape, start_s=setting.start_s)
        self.replicas = Replicas(setting.slots, setting.start_s)
        self.wait_s = np.full(len(trace), np.inf, np.float32)
        self.waiting = np.zeros(len(trace.models), np.int64)
        self.head = 0
        self.cold = 0

    def run(self, told: Callable[[float], None]) -> Run:
        replicas, trace = self.replicas, self.trace
        limits = limits_of(self.record, trace.origin)
        initial = self.setting.initial
        replicas.begin(limits.least if initial is None else initial)
        present, ready, queue, started, stopped, came_cold = np.zeros((6, self.steps), np.int64)
        replica_s = np.zeros(self.steps)
        for step in range(self.steps):
            seen = self._step(step)
            replica_s[step] = replicas.seconds(seen.now)
            present[step], ready[step], queue[step] = seen.present, len(seen.serving), seen.queue
            started[step], stopped[step], came_cold[step] = replicas.starts, replicas.stops, self.cold
            self._decide(seen)
            if step % 1000 == 0:
                told(step / self.steps)
        after = self.steps
        while self.head < len(trace) and after < self.steps + PATIENCE_S / STEP_S:
            self._decide(self._step(after))
            after += 1
        told(1.0)
        return Run(
            policy=self.policy.name,
            wait_s=self.wait_s,
            present=present,
            ready=ready,
            queue=queue,
            started=started,
            stopped=stopped,
            came_cold=came_cold,
            replica_s=replica_s,
        )

    def _step(self, step: int) -> Seen:
        """Serve until the end of a step."""
        now = (step + 1) * STEP_S
        low, high = (int(self.bounds[min(each, self.steps)]) for each in (step, step + 1))
        replicas = self.replicas
        self._count_cold(low, high, now)
        begun = self._serve(high, now)
        if len(self.waiting) == 1:
            self.waiting[0] = high - self.head
        else:
            self.waiting += np.bincount(self.trace.model[low:high], minlength=len(self.waiting))
            self.waiting -= np.bincount(begun.model, minlength=len(self.waiting))
        replicas.look(now)
        queue = high - self.head
        return Seen(
            now=now,
            present=replicas.present,
            serving=tuple(replicas.serving(now)),
            queue=queue,
            in_flight=queue + replicas.busy(now),
            waiting=self.waiting,
            begun=begun,
        )

    def _decide(self, seen: Seen) -> None:
        """Ask the policy. What it says holds from the next step on: at the last one, it comes after the trace."""
        limits = limits_of(self.record, self.trace.origin + seen.now)
        self.replicas.resize(min(max(self.policy.desired(seen), limits.least), limits.most), seen.now)

    def _count_cold(self, low: int, high: int, now: float) -> None:
        """Those that came before any replica was ready."""
        begun = now - STEP_S
        if not self.replicas.serving(begun):
            first = min((at for each, at in self.replicas.ready_at.items() if at > begun), default=now)
            self.cold += int(np.searchsorted(self.trace.arrival_s[low:high], first))

    def _serve(self, high: int, now: float) -> Begun:
        trace, end, first = self.trace, ticks(now), self.head
        slots: list[int] = []
        while self.head < high:
            block = slice(self.head, min(self.head + BLOCK, high))
            arrivals = _microseconds(trace.arrival_s[block]) << BITS
            works = _microseconds(trace.work_s[block]) << BITS
            began = serve_in(self.replicas.slots, arrivals.tolist(), works.tolist(), end)
            slots += began
            self.head += len(began)
            if self.head < block.stop:
                break
        taken = np.array(slots, np.int64)
        chosen = slice(first, self.head)
        wait_us = (taken >> BITS) - _microseconds(trace.arrival_s[chosen])
        self.wait_s[chosen] = wait_us / 1e6
        return Begun(
            replica=taken & MASK,
            wait_s=self.wait_s[chosen],
            work_s=trace.work_s[chosen],
            model=trace.model[chosen],
            end_us=(taken >> BITS) + _microseconds(trace.work_s[chosen]),
        )


def _microseconds(seconds: Floats | Singles) -> Integers:
    whole: Integers = np.rint(np.asarray(seconds, np.float64) * 1e6).astype(np.int64)
    return whole
