"""Which sets of replicas hold some version together: each is a pool, and costs every gateway memory and checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

MOST = 16
"""Larger sets are not looked for: hardly any version has so many copies unless it is on all replicas, which is one."""


class Pools:
    """Counts the sets, as versions come to replicas and leave them."""

    def __init__(self, sets: Collection[Collection[str]]) -> None:
        self._counts: Counter[frozenset[str]] = Counter()
        self._of: dict[str, set[frozenset[str]]] = {}
        for each in sets:
            self._count(frozenset(each))

    def change(self, before: Collection[str], after: Collection[str]) -> None:
        """A version that was on the replicas `before` is on `after` now."""
        self._forget(frozenset(before))
        self._count(frozenset(after))

    def around(self, replicas: frozenset[str], size: int) -> Iterator[frozenset[str]]:
        """The sets of so many replicas that have these, of which there is at least one, among them."""
        for each in self._of.get(min(replicas), ()):
            if len(each) == size and replicas < each:
                yield each

    def _count(self, replicas: frozenset[str]) -> None:
        if 1 < len(replicas) <= MOST:
            self._counts[replicas] += 1
            if self._counts[replicas] == 1:
                for each in replicas:
                    self._of.setdefault(each, set()).add(replicas)

    def _forget(self, replicas: frozenset[str]) -> None:
        if replicas in self._counts:
            self._counts[replicas] -= 1
            if not self._counts[replicas]:
                del self._counts[replicas]
                for each in replicas:
                    self._of[each].discard(replicas)
