"""How often versions are asked, the past fading: what memory is worth to each.

The past fades by requests, not by time: a quiet night forgets nothing, and a busy minute tells as much as a quiet hour.
With a half-life of some requests for each version that fits, the least asked leave: close to the best fixed choice
while the traffic is steady, and away from it when it drifts (`python -m benchmarks.density`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.core.names import Key

HALF_LIFE = 16
"""After so many requests for each loaded version, a request counts half."""
LARGEST, NEXT_TO_NOTHING = 1e12, 1e-6


@dataclass(slots=True)
class Popularity:
    """Faded counts of requests by version."""

    _counts: dict[Key, float] = field(default_factory=dict)
    _weight: float = 1.0
    """What a request counts now: it grows, instead of all the past being made smaller at each step."""

    def add(self, asked: Mapping[Key, float], *, loaded: int) -> None:
        """Requests of one step, while `loaded` versions were loaded."""
        total = sum(asked.values())
        if not total:
            return
        self._weight *= 2 ** min(total / (HALF_LIFE * max(loaded, 1)), 30.0)
        for key, count in asked.items():
            if count:
                self._counts[key] = self._counts.get(key, 0.0) + count * self._weight
        if self._weight > LARGEST:
            faded = {key: count / self._weight for key, count in self._counts.items()}
            self._counts = {key: count for key, count in faded.items() if count > NEXT_TO_NOTHING}
            self._weight = 1.0

    def counts(self) -> dict[Key, float]:
        """By version; one that was never asked is absent."""
        return {key: count / self._weight for key, count in self._counts.items()}
