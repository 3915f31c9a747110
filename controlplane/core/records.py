"""What the registry shall remember of fleets: what their servers can do, what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from controlplane.core.actions import RecordFleet
from controlplane.core.census import Census
from controlplane.core.load import Load, Scaler
from controlplane.core.models import Cost, FleetRecord, History
from controlplane.core.snapshot import ReplicaView, Snapshot

MEASURE_AGAIN = 0.25
"""By how much (as a share) what was measured must differ from what is on record to be written down anew."""

LOAD_AGAIN = 2.0
"""How many times as long, or as short, a load must be as the one on record: cold disks and caches differ by less."""
SHORTEST_LOAD_S = 0.5
"""What loads sooner is recorded with so much: the rest of a cold start takes longer, and what differs is noise."""

REMEMBER_SLOTS = 6
"""What was needed is written down when so many slots are new: twice an hour."""


def records(snapshot: Snapshot, census: Census, scalers: Mapping[str, Scaler]) -> Iterator[RecordFleet]:
    """What is to be written down, of each fleet of which something is new. `scalers` are those of this plan."""
    for name, record in snapshot.fleets.items():
        up = [each for each in census.by_fleet.get(name, ()) if each.report is not None]
        load = snapshot.loads.get(name)
        said = [
            each.report.capabilities
            for each in up
            if each.report is not None and each.report.server == "ready" and each.report.capabilities is not None
        ]
        capabilities = said[-1] if said else record.capabilities
        found = RecordFleet(
            fleet=name,
            capabilities=capabilities,
            measured_bytes=_sizes(record, up),
            load_s=_loads(record, up),
            costs=_costs(record, load),
            start_s=_start_s(record, load),
            history=_history(record, load, scalers.get(name)),
        )
        if found != RecordFleet(fleet=name, capabilities=record.capabilities):
            yield found


def _sizes(record: FleetRecord, replicas: list[ReplicaView]) -> Mapping[str, int]:
    measured: dict[str, int] = {}
    for copy in (copy for each in replicas for copy in each.copies.values()):
        if copy.state == "ready" and copy.memory_bytes:
            # The least of all: what else went on during a load can only have made it look larger.
            known = measured.get(copy.digest, record.shape.memory_bytes)
            measured[copy.digest] = min(known, copy.memory_bytes)
    return {
        digest: size for digest, size in measured.items() if _has_changed(size, record.measured_bytes.get(digest, 0))
    }


def _loads(record: FleetRecord, replicas: list[ReplicaView]) -> Mapping[str, float]:
    took_s: dict[str, float] = {}
    for copy in (copy for each in replicas for copy in each.copies.values()):
        if copy.state == "ready" and copy.load_s is not None and copy.load_s > 0:
            # Here, too, the least; and nobody's word counts for more than a load may take.
            known = took_s.get(copy.digest, record.shape.load_timeout_s)
            took_s[copy.digest] = min(known, max(copy.load_s, SHORTEST_LOAD_S))
    news = {}
    for digest, seconds in took_s.items():
        before = record.load_s.get(digest)
        if before is None:
            news[digest] = seconds
        elif not before / LOAD_AGAIN <= seconds <= before * LOAD_AGAIN:
            news[digest] = math.sqrt(before * seconds)  # between both: what swings comes to rest there
    return news


def _costs(record: FleetRecord, load: Load | None) -> Mapping[str, Cost]:
    return {
        digest: cost
        for digest, cost in (load.costs if load is not None else {}).items()
        if digest not in record.costs or _has_changed(cost.of(1), record.costs[digest].of(1))
    }


def _start_s(record: FleetRecord, load: Load | None) -> float | None:
    if load is None or not load.started or not _has_changed(load.start_s, record.start_s or 0.0):
        return None
    return load.start_s


def _history(record: FleetRecord, load: Load | None, scaler: Scaler | None) -> History | None:
    if load is None or load.history is None or scaler is None:
        return None
    if record.history is not None and load.history.last - record.history.last < REMEMBER_SLOTS:
        return None
    # Before enough was judged here, it is what a controller before this one believed, if it did.
    believed = scaler.contest.believed
    if believed is None:
        return load.history
    return replace(load.history, believed=believed.name, moved=round(believed.moved, 3))


def _has_changed(measured: float, recorded: float) -> bool:
    return abs(measured - recorded) > MEASURE_AGAIN * measured
