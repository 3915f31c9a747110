"""Which fleet an entry belongs to, what a version takes there, and which replicas can be counted on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from controlplane.core.entry import Entry
from controlplane.core.errors import InvalidInput, NotFound
from controlplane.core.models import FleetRecord, Manifest, Quarantine
from controlplane.core.names import Key, Reason, mib
from controlplane.core.snapshot import ReplicaView, Snapshot

BASE_COPY_BYTES = 48 << 20
"""What a copy is taken to need beside its weights while nobody has stated or measured it."""
ANY_LOAD_S = 1.0
"""How long a load is taken to last where none was measured. Then it is the same for all, and how long is no matter."""
DIFFERS = 0.1
"""By how much (as a share) what is stated and what was measured must differ to be told."""


def fleet_of(entry: Entry, fleets: Mapping[str, FleetRecord]) -> str:
    """The fleet that serves an entry: the one it names, the only one, or the default one.

    Raises NotFound for a name that isn't there, InvalidInput where the choice is not clear.
    """
    if entry.fleet is not None:
        if entry.fleet not in fleets:
            raise NotFound(
                f"there is no fleet {entry.fleet!r}; there {_are(fleets)}",
                field="fleet",
                remedy="name one of them, or leave `fleet` out",
            )
        return entry.fleet
    if len(fleets) == 1:
        return next(iter(fleets))
    defaults = sorted(name for name, record in fleets.items() if record.shape.default)
    if len(defaults) == 1:
        return defaults[0]
    raise InvalidInput(
        f"the entry names no fleet and there is no single default; there {_are(fleets)}",
        field="fleet",
        remedy="name a fleet in the entry, or mark one fleet `default: true`",
    )


def _are(fleets: Mapping[str, FleetRecord]) -> str:
    return ("are " if len(fleets) > 1 else "is ") + (", ".join(sorted(fleets)) or "none")


def copy_bytes(manifest: Manifest, digest: str, record: FleetRecord) -> int:
    """The memory one loaded copy takes: the larger of what is stated (a load under traffic may need more than one that
    was only proved) and what was measured on this fleet (its neighbours must not pay for it), else estimated from its
    size."""
    stated, measured = manifest.entry.resources.memory_bytes, _measured(digest, record)
    if stated is None and measured is None:
        return BASE_COPY_BYTES + 2 * manifest.size_bytes
    return max(stated or 0, measured or 0)


def typical_load_s(record: FleetRecord) -> float:
    """How long a version of which that is not known takes to load, in seconds: as long as the one in the middle of
    those that were measured on this fleet."""
    return statistics.median(record.load_s.values()) if record.load_s else ANY_LOAD_S


def memory_told(key: Key, manifest: Manifest, digest: str, record: FleetRecord) -> Reason | None:
    """What is stated and what was measured of a version's memory, where they differ much."""
    stated, measured = manifest.entry.resources.memory_bytes, _measured(digest, record)
    if stated is None or measured is None or abs(measured - stated) <= DIFFERS * stated:
        return None
    text = f"{key} states {mib(stated)} of memory, and {mib(measured)} were measured on fleet {record.shape.name}"
    return Reason(code="MEMORY", text=f"{text}: the larger counts")


def _measured(digest: str, record: FleetRecord) -> int | None:
    """What was measured, and no more than a replica has: it was loaded on one."""
    measured = record.measured_bytes.get(digest)
    return min(measured, record.shape.memory_bytes) if measured is not None else None


def leaked_bytes(replica: ReplicaView) -> int:
    """The memory that a replica has lost to models that were unloaded."""
    return replica.report.leaked_bytes if replica.report is not None else 0


def quarantine_of(record: FleetRecord, key: Key, digest: str | None) -> Quarantine | None:
    """The quarantine that keeps a version off a fleet."""
    return next(
        (each for each in record.quarantines if (each.model, each.version, each.digest) == (*key, digest)), None
    )


def is_lost(replica: ReplicaView, snapshot: Snapshot, now: float) -> bool:
    """Whether a replica has been silent for too long. One never heard of is lost once the controller has settled."""
    if replica.heard_at is None:
        return snapshot.settled
    return now - replica.heard_at > snapshot.settings.replica_lost_s


def is_new(replica: ReplicaView) -> bool:
    """Whether it starts for the first time."""
    return replica.report is None or (replica.report.server == "starting" and not replica.crashed_at)


def is_up(replica: ReplicaView) -> bool:
    """Whether its server answers, as far as is known (a replica known only from a table is taken to)."""
    return replica.endpoint is not None and (replica.report is None or replica.report.server == "ready")
