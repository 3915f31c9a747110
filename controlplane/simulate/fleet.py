"""The replicas of a simulated fleet: slots that are busy until some time, in a heap; replicas come, drain and go.

A slot is one integer: the time until which it is busy, in microseconds since the trace began, and in its lowest bits
the replica that it belongs to. So the slot that is free first is the least integer, adding work to it keeps its
replica, and no request costs more than one step of a heap.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

BITS = 12
MOST_REPLICAS = 1 << BITS
MASK = MOST_REPLICAS - 1


def ticks(at_s: float) -> int:
    """Seconds since the trace began, as slots count them."""
    return round(at_s * 1e6) << BITS


def serve(slots: list[int], arrivals: Sequence[int], works: Sequence[int], end: int) -> list[int]:
    """Give requests, first come first served, to the slots that are free first, as long as they begin before `end`.

    `arrivals` (in order, before `end`) and `works` are in ticks, `slots` is a heap. Returns the slots that took them,
    each at the tick at which its request began; fewer than there are requests where the rest has to wait.
    """
    began: list[int] = []
    if not slots:
        return began
    replace, add = heapq.heapreplace, began.append
    for arrived, work in zip(arrivals, works, strict=True):
        slot = slots[0]
        if slot > arrived:
            if slot >= end:
                break
        else:
            slot = arrived | (slot & MASK)
        add(slot)
        replace(slots, slot + work)
    return began


@dataclass(frozen=True, slots=True)
class Leaving:
    """A replica on its way out `since` then: its slots."""

    since: float
    slots: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Replicas:
    """A fleet: each replica works on `slots_each` requests at once, `start_s` after it was ordered.

    Who leaves gets nothing new, ends what it has, and is gone. Times in seconds since the trace began.
    """

    slots_each: int
    start_s: float
    slots: list[int] = field(default_factory=list)
    """A heap: those of all replicas that stay, also of those that start."""
    ordered: dict[int, float] = field(default_factory=dict)
    """When each replica was ordered, also those that leave."""
    ready_at: dict[int, float] = field(default_factory=dict)
    leaving: dict[int, Leaving] = field(default_factory=dict)
    starts: int = 0
    stops: int = 0
    spent_s: float = 0.0
    """Replica-seconds of those that are gone."""

    @property
    def present(self) -> int:
        """How many are there or starting, and not on their way out."""
        return len(self.ordered) - len(self.leaving)

    def begin(self, count: int) -> None:
        """Have `count` replicas ready at the beginning."""
        for _ in range(count):
            self._start(0.0, 0.0)
        self.starts = 0

    def resize(self, desired: int, now: float) -> None:
        """Bring the fleet to `desired` replicas, as the controller does: who is on its way out comes back before a new
        one starts; who has not started yet leaves first, then the highest number."""
        missing = desired - self.present
        for replica in sorted(self.leaving)[: max(missing, 0)]:
            for slot in self.leaving.pop(replica).slots:
                heapq.heappush(self.slots, max(slot, ticks(now) | replica))  # what is over can't be worked in
        for _ in range(desired - self.present):
            self._start(now, now + self.start_s)
            self.starts += 1
        if missing < 0:
            staying = sorted(
                self.ordered.keys() - self.leaving.keys(), key=lambda each: (self.ready_at[each] > now, each)
            )
            self._leave(set(staying[desired:]), now)

    def look(self, now: float) -> None:
        """Let those go that leave and have nothing in flight any more."""
        for replica, each in list(self.leaving.items()):
            done_s = (max(each.slots) >> BITS) / 1e6
            is_starting = self.ready_at[replica] > now
            if done_s <= now or is_starting:
                self.spent_s += (each.since if is_starting else max(done_s, each.since)) - self.ordered[replica]
                self.stops += 1
                for known in (self.leaving, self.ordered, self.ready_at):
                    known.pop(replica)

    def serving(self, now: float) -> list[int]:
        """Those that answer requests and get new ones."""
        return [each for each, at in self.ready_at.items() if at <= now and each not in self.leaving]

    def busy(self, now: float) -> int:
        """How many requests are worked on."""
        tick = (round(now * 1e6) + 1) << BITS
        taken = sum(slot >= tick for slot in self.slots)
        starting = sum(at > now for each, at in self.ready_at.items() if each not in self.leaving)
        return (
            taken
            - starting * self.slots_each
            + sum(slot >= tick for each in self.leaving.values() for slot in each.slots)
        )

    def seconds(self, now: float) -> float:
        """Replica-seconds so far: from the order of each to its end."""
        return self.spent_s + sum(now - at for at in self.ordered.values())

    def _start(self, ordered: float, ready: float) -> None:
        number = next(each for each in range(MOST_REPLICAS) if each not in self.ordered)
        self.ordered[number], self.ready_at[number] = ordered, ready
        for _ in range(self.slots_each):
            heapq.heappush(self.slots, ticks(ready) | number)

    def _leave(self, replicas: set[int], now: float) -> None:
        for each in replicas:
            self.leaving[each] = Leaving(now)
        staying = []
        for slot in self.slots:
            if slot & MASK in replicas:
                self.leaving[slot & MASK].slots.append(slot)
            else:
                staying.append(slot)
        heapq.heapify(staying)
        self.slots[:] = staying
        self.look(now)
