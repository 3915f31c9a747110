"""Which versions' requests fail, as clients see it, and on which replicas: Envoy's counts, over the last half minute.

Triton's own counter of failures misses what a model answers with an error, and what never got to a server.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from typing import NamedTuple

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
        "UNIMPLEMENTED",
    }
)
"""Codes of gRPC that say what a client did wrong, or that it has gone (which is spelled in two ways)."""
REFUSED = frozenset({"RESOURCE_EXHAUSTED", "429"})
"""Codes of what was refused since there was too much."""


def is_failure(code: str) -> bool:
    """Whether a code (gRPC's name, or HTTP's number) says that serving failed, or that there was too much to do. 0 is
    a client of HTTP that has gone, 501 one that asks a model for one answer that gives several."""
    if code.isdecimal():
        return (int(code) >= 500 and int(code) != 501) or int(code) == 429
    return code != "OK" and code not in CLIENTS


class Failed(NamedTuple):
    """What requests that failed have in common. `code`: gRPC's name, or HTTP's number; `replica`: empty for none."""

    key: Key
    code: str
    replica: str


class Failures:
    """Takes looks at the counts, and tells what failed between the oldest of the last `WINDOW_S` and the newest."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[Failed, int]]] = deque()

    def take(self, counts: Mapping[Failed, int], now: float) -> None:
        """Take the counts of one look, at `now` (monotonic seconds)."""
        failed = {which: count for which, count in counts.items() if is_failure(which.code)}
        if self._looks:
            since, before = self._looks[-1]
            # What has fewer than before began anew, after that: Envoy itself, or it forgot what had not grown for long.
            anew = {which for which, count in before.items() if failed.get(which, 0) < count}
            if anew and len(anew) == len(before):
                self._looks.clear()
                self._looks.append((since, {}))
            elif anew:
                self._looks = deque(
                    (at, {which: count for which, count in look.items() if which not in anew})
                    for at, look in self._looks
                )
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
        within_s = max(at - since, 1.0)
        grown: dict[Key, Counter[str]] = defaultdict(Counter)
        refused: Counter[Key] = Counter()
        for which, count in after.items():
            grown[which.key][which.replica] += count - before.get(which, 0)
            if not which.replica and which.code in REFUSED:
                refused[which.key] += count - before.get(which, 0)
        return tuple(
            Failing(
                model=key.model,
                version=key.version,
                errors_per_s=found.total() / within_s,
                replicas={name: count / within_s for name, count in sorted(found.items()) if name and count},
                refused_per_s=refused[key] / within_s,
            )
            for key, found in sorted(grown.items())
            if found.total()
        )
