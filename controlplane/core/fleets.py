"""Which fleet an entry belongs to, what a version takes there, and which replicas can be counted on."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.core.entry import Entry
from controlplane.core.errors import InvalidInput, NotFound
from controlplane.core.models import FleetRecord, Manifest, Quarantine
from controlplane.core.names import Key
from controlplane.core.snapshot import ReplicaView, Snapshot

BASE_COPY_BYTES = 48 << 20
"""What a copy is taken to need beside its weights while nobody has stated or measured it."""


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
    """The memory one loaded copy takes: as stated, else as measured on this fleet, else estimated from its size."""
    stated = manifest.entry.resources.memory_bytes
    if stated is not None:
        return stated
    measured = record.measured_bytes.get(digest)
    return measured if measured is not None else BASE_COPY_BYTES + 2 * manifest.size_bytes


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


def is_up(replica: ReplicaView) -> bool:
    """Whether its server answers, as far as is known (a replica known only from a table is taken to)."""
    return replica.endpoint is not None and (replica.report is None or replica.report.server == "ready")
