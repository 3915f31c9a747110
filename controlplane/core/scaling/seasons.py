"""What was needed at this time yesterday and a week ago: the seasonal naive forecast."""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.core.models import History

SLOT_S = 300.0
DAY, WEEK = 288, 7 * 288
"""A day and a week, in slots."""
SEASONS = {"yesterday": DAY, "a week ago": WEEK}


@dataclass(slots=True)
class Seasons:
    """The most that was needed in each slot of five minutes of the last week, by the slot's number since 1970."""

    _most: dict[int, float] = field(default_factory=dict)
    _history: History | None = None

    def add(self, at: float, need: float) -> None:
        """What was needed from `at` on (seconds since 1970), in replicas."""
        slot = int(at // SLOT_S)
        if slot not in self._most:
            self._most = {known: most for known, most in self._most.items() if known >= slot - WEEK}
            self._history = None
        self._most[slot] = max(need, self._most.get(slot, 0.0))

    def learn(self, history: History) -> None:
        """What was needed before anything was measured here."""
        known = {history.first + index: need for index, need in enumerate(history.most) if need is not None}
        self._most, self._history = known | self._most, None

    def history(self) -> History | None:
        """What is known, but for the slot that is going on; None: nothing."""
        if self._history is None and len(self._most) > 1:
            *slots, _ = sorted(self._most)
            most = [self._most.get(slot) for slot in range(slots[0], slots[-1] + 1)]
            told = tuple(None if need is None else round(need, 3) for need in most)
            self._history = History(first=slots[0], most=told)
        return self._history

    def likely(self, now: float, horizon_s: float) -> dict[str, float]:
        """What each season lets expect for the time from now to the horizon; those that are not known are left out."""
        slots = range(int(now // SLOT_S), int((now + horizon_s) // SLOT_S) + 1)
        found = {}
        for name, back in SEASONS.items():
            known = [self._most[slot - back] for slot in slots if slot - back in self._most]
            if len(known) == len(slots):
                found[name] = max(known)
        return found
