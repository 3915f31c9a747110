"""What was read of the servers: the counters of each, twice, so that what happened in between is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.core.names import Key
from controlplane.metrics.counters import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A server between two readings of its counters; the later was at `at` (seconds since 1970), `window_s` after the
    earlier. A server that was read once has a window of 0: that tells nothing, not even zero. A version that the
    earlier one did not have, counts from zero. `every_s`: how often somebody else reads the server for the controller;
    0 where nobody does, or it is not known."""

    at: float
    window_s: float
    after: Mapping[Key, Counters]
    before: Mapping[Key, Counters] = field(default_factory=dict)
    every_s: float = 0.0

    def counted(self, key: Key) -> Counters:
        """What a version counted in between."""
        return self.after[key].since(self.before.get(key, Counters()))

    def then(self, at: float, counters: Mapping[Key, Counters], *, every_s: float = 0.0) -> Interval:
        """The interval from here to a new reading."""
        return Interval(at=at, window_s=at - self.at, before=self.after, after=counters, every_s=every_s)
