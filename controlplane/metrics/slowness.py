"""Which replicas compute slower than the others: the same version, batches of the same size, at the same time."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from controlplane.core.names import Key
from controlplane.core.scaling.capacity import Executions
from controlplane.metrics.batches import Batches

SLOW = 3.0
"""A replica that takes so many times as long as the others in the middle is slow."""
SLOW_FOR_S = 30.0
"""It is said to be slow after so long: a neighbour's load of a model is soon over. Also how long a judgement holds."""
ENOUGH = 10.0
"""Fewer executions that can be compared say nothing."""


def ratios(executed: Mapping[str, Mapping[Key, Batches]], alike: Collection[Key]) -> Mapping[str, float]:
    """How many times as long as elsewhere each replica's executions took, over all versions that are `alike` on every
    replica; at most 1 for one that did more than the others in the middle, which is a reason to be slow. Replicas with
    too few executions that others had, too, are not in it.
    """
    means: dict[tuple[Key, int], dict[str, float]] = defaultdict(dict)
    for replica, key, each in _each(executed):
        means[key, each.size][replica] = each.total_s / each.count
    count, took_s, elsewhere_s, alone_s = (defaultdict[str, float](float) for _ in range(4))
    for replica, key, each in _each(executed):
        others = [mean_s for name, mean_s in means[key, each.size].items() if name != replica]
        if key in alike and others:
            count[replica] += each.count
            took_s[replica] += each.total_s
            elsewhere_s[replica] += each.count * statistics.median(others)
        else:
            alone_s[replica] += each.total_s
    found = {}
    work_s = {name: elsewhere_s[name] + alone_s[name] for name in executed}
    for replica in [name for name in executed if count[name] >= ENOUGH and elsewhere_s[name] > 0]:
        ratio = took_s[replica] / elsewhere_s[replica]
        most_s = statistics.median(work_s[name] for name in executed if name != replica)
        found[replica] = ratio if work_s[replica] <= most_s else min(ratio, 1.0)
    return found


def _each(executed: Mapping[str, Mapping[Key, Batches]]) -> Iterator[tuple[str, Key, Executions]]:
    for replica, versions in executed.items():
        for key, batches in versions.items():
            yield from ((replica, key, each) for each in batches.values() if each.count > 0)


@dataclass(slots=True)
class _Spell:
    """A replica was slow at every judgement from `since` to `until`, and takes `ratio` times as long."""

    since: float
    until: float
    ratio: float


@dataclass(slots=True)
class Slowness:
    """One fleet's slow replicas, judged at each reading."""

    _spells: dict[str, _Spell] = field(default_factory=dict)

    def take(self, executed: Mapping[str, Mapping[Key, Batches]], alike: Collection[Key], now: float) -> None:
        """Take what each replica has executed since the reading before. Who executed too little is not judged."""
        for name, ratio in ratios(executed, alike).items():
            if ratio < SLOW:
                self._spells.pop(name, None)
            else:
                spell = self._spells.setdefault(name, _Spell(since=now, until=now, ratio=ratio))
                spell.until, spell.ratio = now, ratio

    def slow(self, now: float) -> Mapping[str, float]:
        """The replicas that have been slow for long enough, with how many times as long they take. What was not judged
        for as long is forgotten."""
        self._spells = {name: each for name, each in self._spells.items() if now - each.until <= SLOW_FOR_S}
        return {name: each.ratio for name, each in self._spells.items() if each.until - each.since >= SLOW_FOR_S}
