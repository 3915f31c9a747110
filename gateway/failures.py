"""Which versions' requests fail, as clients see it: Envoy's counts of answers, over the last half minute.

Triton's own counter of failures misses what a model answers with an error, and what never got to a server.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from controlplane.core.messages import Failing
from controlplane.core.names import Key

WINDOW_S = 30.0
CLIENTS = frozenset(
    {
        "CANCELED",
        "CANCELLED",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNAUTHENTICATED",
    }
)
"""Codes of gRPC that say what a client did wrong, or that it has gone (which is spelled in two ways)."""


def is_failure(code: str) -> bool:
    """Whether a code (gRPC's name, or HTTP's number) says that serving failed, or that there was too much to do. 0 is
    a client of HTTP that has gone."""
    if code.isdecimal():
        return int(code) >= 500 or int(code) == 429
    return code != "OK" and code not in CLIENTS


class Failures:
    """Takes looks at the counts, and tells what failed between the oldest of the last `WINDOW_S` and the newest."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[Key, int]]] = deque()

    def take(self, counts: Mapping[tuple[Key, str], int], now: float) -> None:
        """Take the counts of one look, at `now` (monotonic seconds)."""
        failed: Counter[Key] = Counter()
        for (key, code), count in counts.items():
            if is_failure(code):
                failed[key] += count
        if self._looks and any(failed[key] < count for key, count in self._looks[-1][1].items()):
            since, _ = self._looks[-1]
            self._looks.clear()
            self._looks.append((since, {}))  # Envoy has begun anew, after that
        self._looks.append((now, failed))
        while len(self._looks) > 2 and now - self._looks[1][0] >= WINDOW_S:
            self._looks.popleft()

    def missed(self, now: float) -> None:
        """There are no counts to be had, at `now`. What is too old says nothing any more."""
        if self._looks and now - self._looks[-1][0] >= WINDOW_S:
            self._looks.clear()

    @property
    def failing(self) -> tuple[Failing, ...]:
        """The versions of which a request failed."""
        if len(self._looks) < 2:
            return ()
        (since, before), (at, after) = self._looks[0], self._looks[-1]
        grown = {key: count - before.get(key, 0) for key, count in after.items()}
        return tuple(
            Failing(model=key.model, version=key.version, errors_per_s=count / max(at - since, 1.0))
            for key, count in sorted(grown.items())
            if count > 0
        )
