"""What was needed at this time yesterday and a week ago: the seasonal naive forecast."""

from __future__ import annotations

from dataclasses import dataclass, field

SLOT_S = 300.0
DAY, WEEK = 288, 7 * 288
"""A day and a week, in slots."""
SEASONS = {"yesterday": DAY, "a week ago": WEEK}


@dataclass(slots=True)
class Seasons:
    """The most that was needed in each slot of five minutes of the last week, by the slot's number since 1970."""

    _most: dict[int, float] = field(default_factory=dict)

    def add(self, at: float, need: float) -> None:
        """What was needed from `at` on (seconds since 1970), in replicas."""
        slot = int(at // SLOT_S)
        if slot not in self._most:
            self._most.pop(slot - WEEK - 1, None)
        self._most[slot] = max(need, self._most.get(slot, 0.0))

    def likely(self, now: float, horizon_s: float) -> dict[str, float]:
        """What each season lets expect for the time from now to the horizon; those that are not known are left out."""
        slots = range(int(now // SLOT_S), int((now + horizon_s) // SLOT_S) + 1)
        found = {}
        for name, back in SEASONS.items():
            known = [self._most[slot - back] for slot in slots if slot - back in self._most]
            if len(known) == len(slots):
                found[name] = max(known)
        return found
