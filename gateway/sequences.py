"""Which replica a sequence of unary requests is on. State of one gateway; several agree by hashing alike."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from gateway.resolving import Resolved, by_rendezvous


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceMark:
    """What a request says of its sequence. `key` is the correlation id as text; empty: it belongs to none."""

    key: str = ""
    start: bool = False
    end: bool = False


NO_SEQUENCE = SequenceMark()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a sequence is. `until` is the clock's time at which it is forgotten."""

    replica: str
    version: int
    until: float


class Sequences:
    """The table of (model, correlation id) → (replica, version), bounded: the longest unused one is forgotten first.

    `now` is always the caller's clock, in seconds.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seats: OrderedDict[tuple[str, str], Seat] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seats)

    def seat(self, model: str, mark: SequenceMark, now: float) -> Seat | None:
        """Where this request's sequence is; None for a new one or one that is not known."""
        seat = self._seats.get((model, mark.key))
        if seat is None or mark.start or seat.until <= now:
            return None
        return seat

    def choose(self, resolved: Resolved, mark: SequenceMark) -> str | None:
        """The replica for a sequence without a seat; None when no replica may take it.

        A draining replica gets no new sequence. One that goes on, but is not known here (another gateway began it,
        or this one has been started again), is looked for among all members.
        """
        members = [each for each in resolved.members if not each.draining] if mark.start else resolved.members
        ranked = by_rendezvous(members, f"{resolved.model}\n{mark.key}")
        return ranked[0].replica if ranked else None

    def keep(self, model: str, mark: SequenceMark, seat: Seat) -> None:
        """Remember the seat until its time, or forget it when this request ends the sequence."""
        key = (model, mark.key)
        self._seats.pop(key, None)
        if not mark.end:
            self._seats[key] = seat
            while len(self._seats) > self._limit:
                self._seats.popitem(last=False)

    def forget_idle(self, now: float) -> None:
        """Drop the sequences whose time is over."""
        for key in [key for key, seat in self._seats.items() if seat.until <= now]:
            del self._seats[key]
