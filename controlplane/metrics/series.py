"""From a Prometheus' series with the times of their samples to readings of replicas."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from annotated_types import MinLen
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from controlplane.core.names import Key
from controlplane.metrics.counters import Counters, field_of

REPLICA_LABEL = "replica"
UP = "up"
"""Prometheus' own series of each scrape: 1 where it went well. A server without models has no other."""


@validated(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its samples (seconds since 1970, value), oldest first."""

    metric: dict[str, str]
    values: Annotated[list[tuple[float, float]], MinLen(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The oldest and the latest reading of one replica in what was asked for, with the times of their scrapes in
    seconds since 1970; the same one twice where there is no second. `apart_s`: how far scrapes are apart, the least of
    what was seen; None where there was one."""

    first_at: float
    first: Mapping[Key, Counters]
    at: float
    latest: Mapping[Key, Counters]
    apart_s: float | None


_ANSWER = TypeAdapter(list[Series])


def read_answer(answer: object, addresses: Mapping[str, str]) -> dict[str, Readings]:
    """The readings of those replicas whose `addresses` (host:port) are given, from the result of a range query. Raises
    ValueError for an answer that is none."""
    try:
        series = _ANSWER.validate_python(answer)
    except ValidationError as error:
        raise ValueError(error.errors(include_url=False)[0]["msg"]) from error
    by_replica: dict[str, list[Series]] = defaultdict(list)
    for each in series:
        if each.metric.get(REPLICA_LABEL) in addresses:
            by_replica[each.metric[REPLICA_LABEL]].append(each)
    readings = {name: readings_of(found, address=addresses[name]) for name, found in by_replica.items()}
    return {name: each for name, each in readings.items() if each is not None}


def readings_of(series: Iterable[Series], *, address: str) -> Readings | None:
    """The readings of one replica, from its series; None where no scrape went well.

    A replica that was started again elsewhere leaves series of its earlier address, and two jobs may scrape it: one
    target alone is read, at best the one at `address`, else the one that was scraped last. Series that stopped before
    the others have vanished from the page.
    """
    targets: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for each in series:
        targets[each.metric.get("job", ""), each.metric.get("instance", "")].append(each)

    times = {target: _times(found) for target, found in targets.items()}

    def worth(target: tuple[str, str]) -> tuple[bool, float, tuple[str, str]]:
        return target[1] == address, times[target][-1], target

    best = max((target for target in targets if times[target]), key=worth, default=None)
    if best is None:
        return None
    first_at, at = times[best][0], times[best][-1]
    latest = _counters(targets[best], at)
    return Readings(
        first_at=first_at,
        first=_counters(targets[best], first_at) if first_at < at else latest,
        at=at,
        latest=latest,
        apart_s=_apart_s(targets[best]),
    )


def _scrapes(series: Sequence[Series]) -> list[list[float]]:
    """When one target was scraped, oldest first, in each copy of the series that tell it: `up`, or, where that is not
    kept, all."""
    up = [each for each in series if each.metric.get("__name__") == UP]
    return [[when for when, value in each.values if not up or value == 1] for each in up or series]


def _times(series: Sequence[Series]) -> list[float]:
    """When one target was scraped, oldest first."""
    return sorted({when for each in _scrapes(series) for when in each})


def _apart_s(series: Sequence[Series]) -> float | None:
    """Each copy for itself: two Prometheuses that scrape every 15 s do so at different times."""
    return min((after - before for each in _scrapes(series) for before, after in pairwise(each)), default=None)


def _counters(series: Sequence[Series], at: float) -> Mapping[Key, Counters]:
    """What was scraped at that time. Series that differ only in labels that are not Triton's are copies of one. Of a
    version whose requests are not kept, nothing is known."""
    values: dict[tuple[str, Key, tuple[str, str, str]], float] = {}
    for each in series:
        name, reason = each.metric.get("__name__", ""), each.metric.get("reason", "")
        field, model = field_of(name, reason), each.metric.get("model")
        version = each.metric.get("version", "")
        value = next((number for when, number in each.values if when == at), math.nan)
        if field is not None and model is not None and version.isdecimal() and math.isfinite(value):
            part = name.removesuffix("_total"), each.metric.get("gpu_uuid", ""), reason
            values[field, Key(model, int(version)), part] = value
    found: dict[Key, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (field, key, _), value in values.items():
        found[key][field] += value
    return {key: Counters(**fields) for key, fields in found.items() if "success" in fields}
