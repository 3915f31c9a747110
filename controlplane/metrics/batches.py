"""Batch sizes: how often batches of each size were executed, and how long that took, from Triton's statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as validated

from controlplane.core.names import Key
from controlplane.core.scaling.capacity import Executions
from controlplane.metrics.scrape import read_pages

FORGET = 0.9
"""What is kept of the past at each reading: costs change with what else runs on a machine."""
LEAST = 50.0
"""So many executions are kept, however old they are: else what is asked seldom would never be known."""
Batches = Mapping[int, Executions]
"""By batch size."""


@validated(frozen=True, slots=True)
class _Duration:
    count: Annotated[int, Ge(0)] = 0
    ns: Annotated[int, Ge(0)] = 0


@validated(frozen=True, slots=True)
class _Batch:
    batch_size: int
    compute_input: _Duration = _Duration()
    compute_infer: _Duration = _Duration()
    compute_output: _Duration = _Duration()


@validated(frozen=True, slots=True)
class _Model:
    name: str
    version: str
    batch_stats: list[_Batch]


@validated(frozen=True, slots=True)
class _Page:
    model_stats: list[_Model]


_PAGE = TypeAdapter(_Page)


def parse_batches(text: str) -> Mapping[Key, Batches]:
    """The batch statistics of each version on a statistics page (`GET v2/models/stats`). Raises ValueError for what is
    none."""
    return {
        Key(each.name, int(each.version)): {
            batch.batch_size: Executions(
                size=batch.batch_size,
                count=batch.compute_infer.count,
                total_s=(batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns) / 1e9,
            )
            for batch in each.batch_stats
        }
        for each in _PAGE.validate_json(text).model_stats
        if each.version.isdecimal()
    }


def since(after: Batches, before: Batches) -> Batches:
    """What was executed between two readings; all of the later one where the version was loaded anew in between."""
    if any(each.count < before[size].count for size, each in after.items() if size in before) or before.keys() - after:
        return after
    return {
        size: Executions(
            size=size,
            count=each.count - (before[size].count if size in before else 0),
            total_s=each.total_s - (before[size].total_s if size in before else 0.0),
        )
        for size, each in after.items()
    }


@dataclass(slots=True)
class BatchMeter:
    """Adds up, over all servers of a fleet, what was executed of each version; the past counts ever less."""

    totals: dict[Key, dict[int, Executions]] = field(default_factory=dict)
    executed_at: dict[Key, float] = field(default_factory=dict)
    """When more was counted than at the reading before, in seconds since 1970. Not known until then."""
    _last: dict[str, Mapping[Key, Batches]] = field(default_factory=dict)
    _executed: Mapping[str, Mapping[Key, Batches]] = field(default_factory=dict)

    async def read(self, urls: Mapping[str, str]) -> None:
        """Read each server's statistics. `urls` is by replica; others are forgotten. Who is silent adds nothing."""
        self._last = {name: each for name, each in self._last.items() if name in urls}
        pages = await read_pages(urls, parse_batches)
        self.take({name: page for name, (_, page) in pages.items()}, max((at for at, _ in pages.values()), default=0.0))

    def take(self, pages: Mapping[str, Mapping[Key, Batches]], at: float) -> None:
        """Count what is new on these pages, by replica, which were read `at` a time (seconds since 1970)."""
        news: dict[Key, list[Executions]] = {}
        executed: dict[str, dict[Key, Batches]] = {}
        for name, page in pages.items():
            before = self._last.get(name, {})
            is_known = name in self._last
            executed[name] = {key: since(batches, before.get(key, {})) for key, batches in page.items()}
            for key, batches in executed[name].items():
                news.setdefault(key, []).extend(batches.values())
                if is_known and any(each.count for each in batches.values()):
                    self.executed_at[key] = at
            self._last[name] = page
        self._executed = executed
        for key, executions in news.items():
            if any(each.count for each in executions):
                self._add(key, executions)

    def executed(self) -> Mapping[str, Mapping[Key, Batches]]:
        """What was new in the last reading, by replica; nothing until there is another one."""
        executed, self._executed = self._executed, {}
        return executed

    def _add(self, key: Key, executions: Iterable[Executions]) -> None:
        known = self.totals.get(key, {})
        kept = FORGET if FORGET * sum(each.count for each in known.values()) >= LEAST else 1.0
        total = {
            size: Executions(size=size, count=each.count * kept, total_s=each.total_s * kept)
            for size, each in known.items()
        }
        for each in executions:
            before = total.get(each.size, Executions(size=each.size, count=0.0, total_s=0.0))
            total[each.size] = Executions(
                size=each.size, count=before.count + each.count, total_s=before.total_s + each.total_s
            )
        self.totals[key] = total

    def forget_others(self, keys: Iterable[Key]) -> None:
        """Keep only what concerns these versions."""
        kept = set(keys)
        self.totals = {key: each for key, each in self.totals.items() if key in kept}
        self.executed_at = {key: at for key, at in self.executed_at.items() if key in kept}
