"""Which sets of replicas hold some version together: each is a pool, and costs every gateway memory and checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

MOST = 16
"""Larger sets are not looked for: hardly any version has so many copies unless it is on all replicas, which is one."""


class Pools:
    """Counts the sets of 2 to MOST replicas, as versions come to replicas and leave them."""

    def __init__(self, sets: Collection[Collection[str]]) -> None:
        self._counts: Counter[frozenset[str]] = Counter()
        self._of: dict[str, set[frozenset[str]]] = {}
        for each in sets:
            self.count(each)

    def around(self, replicas: frozenset[str], size: int) -> Iterator[frozenset[str]]:
        """The sets of so many replicas that have these, of which there is at least one, among them."""
        for each in self._of.get(min(replicas), ()):
            if len(each) == size and replicas < each:
                yield each

    def count(self, replicas: Collection[str]) -> None:
        """A version is on just these replicas."""
        if 1 < len(replicas) <= MOST:
            known = frozenset(replicas)
            self._counts[known] += 1
            if self._counts[known] == 1:
                for each in known:
                    self._of.setdefault(each, set()).add(known)

    def forget(self, replicas: Collection[str]) -> None:
        """A version that was counted is not on just these any more."""
        if 1 < len(replicas) <= MOST:
            known = frozenset(replicas)
            self._counts[known] -= 1
            if not self._counts[known]:
                del self._counts[known]
                for each in known:
                    self._of[each].discard(known)
