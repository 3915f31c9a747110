"""Who has what at one instant: the questions that every part of a plan asks of a snapshot, answered once."""

from __future__ import annotations

from collections import defaultdict

from controlplane.core.actions import QuarantineVersion
from controlplane.core.errors import ControlPlaneError
from controlplane.core.fleets import copy_bytes, fleet_of, is_lost, is_up, typical_load_s
from controlplane.core.names import Key, Reason
from controlplane.core.snapshot import ReplicaView, Snapshot


class Census:
    """An index over a snapshot.

    `lost`: replicas that have been silent too long. `copies`: who has a version in whatever state, `ready`: who has
    proved it, by name. `blocked`: versions that have no fleet, with the reason.
    `quarantined`: by fleet, what may not be loaded there; `crashed` of these have just taken a server down.
    """

    def __init__(self, snapshot: Snapshot, now: float) -> None:
        self.snapshot = snapshot
        self.now = now
        self.lost = frozenset(name for name, each in snapshot.replicas.items() if is_lost(each, snapshot, now))
        self.by_fleet: dict[str, list[ReplicaView]] = defaultdict(list)
        for replica in snapshot.replicas.values():
            self.by_fleet[replica.fleet].append(replica)
        self.copies: dict[Key, list[ReplicaView]] = defaultdict(list)
        self.ready: dict[Key, list[str]] = defaultdict(list)
        self.blocked: dict[Key, Reason] = {}
        self.quarantined: dict[str, set[Key]] = defaultdict(set)
        self.crashed: list[QuarantineVersion] = []
        self._fleets: dict[Key, str] = {}
        self._typical_load_s: dict[str, float] = {}
        self._index_copies()
        self._index_quarantines()

    def _index_copies(self) -> None:
        for replica in sorted(self.snapshot.replicas.values(), key=lambda each: each.name):
            up = is_up(replica)
            for key, copy in replica.copies.items():
                self.copies[key].append(replica)
                known = key.model in self.snapshot.unread or copy.digest == self.snapshot.digest(key)
                if copy.state == "ready" and up and known:
                    self.ready[key].append(replica.name)

    def _index_quarantines(self) -> None:
        for name, record in self.snapshot.fleets.items():
            for each in record.quarantines:
                key = Key(each.model, each.version)
                if self.snapshot.digest(key) == each.digest:
                    self.quarantined[name].add(key)
        for replica in self.snapshot.replicas.values():
            for key, copy in replica.copies.items():
                if copy.blames == "crash" and key not in self.quarantined[replica.fleet]:
                    self.quarantined[replica.fleet].add(key)
                    reason = f"{copy.reason} (on {replica.name})"
                    self.crashed.append(
                        QuarantineVersion(fleet=replica.fleet, key=key, digest=copy.digest, reason=reason)
                    )

    def fleet(self, key: Key) -> str | None:
        """The fleet of a version; None (with the reason kept) when it has none."""
        if key in self._fleets:
            return self._fleets[key]
        if key in self.blocked:
            return None
        manifest = self.snapshot.manifest(key)
        try:
            if manifest is None:
                self.blocked[key] = (
                    Reason(code="UNREAD", text=f"the manifest of {key} has not been read from the registry yet")
                    if self.snapshot.is_registered(key)
                    else Reason(code="MISSING", text=f"{key} is not in the registry any more")
                )
                return None
            if manifest.entry.name != key.model:
                text = f"the manifest of {key} is one of the model {manifest.entry.name}"
                self.blocked[key] = Reason(code="INVALID", text=text)
                return None
            self._fleets[key] = fleet_of(manifest.entry, self.snapshot.fleets)
        except ControlPlaneError as error:
            self.blocked[key] = Reason(code=error.code, text=str(error))
            return None
        return self._fleets[key]

    def is_unread(self, key: Key) -> bool:
        """Whether what the registry says of a version can't be read at present. Unknown is not gone: it stays."""
        if key.model in self.snapshot.unread:
            return True
        return self.snapshot.is_registered(key) and self.snapshot.manifest(key) is None

    def size_bytes(self, key: Key, fleet: str) -> int:
        """The memory that a copy takes there, of a deleted version too: it takes it until it has left; 0 for a version
        that is not known any more."""
        digest = self.snapshot.digest(key)
        manifest = self.snapshot.manifests.get(digest) if digest is not None else None
        if manifest is None or digest is None:
            return 0
        return copy_bytes(manifest, digest, self.snapshot.fleets[fleet])

    def reload_s(self, key: Key, fleet: str) -> float:
        """How long loading a copy there takes, in seconds: as it was measured, or what is usual on that fleet."""
        record = self.snapshot.fleets[fleet]
        measured = record.load_s.get(self.snapshot.digest(key) or "")
        if measured is not None:
            return measured
        if fleet not in self._typical_load_s:
            self._typical_load_s[fleet] = typical_load_s(record)
        return self._typical_load_s[fleet]

    def requires(self, key: Key) -> tuple[Key, ...]:
        """What must be on the same replica: an ensemble's steps."""
        manifest = self.snapshot.manifest(key)
        steps = manifest.entry.ensemble if manifest else ()
        return tuple(Key(step.model_name, step.model_version) for step in steps if step.model_version is not None)

    def is_bad(self, key: Key) -> bool:
        """Whether the version itself was found wanting somewhere: trying it elsewhere is no use."""
        found = (replica.copies[key] for replica in self.copies.get(key, ()))
        return any(copy.state == "failed" and copy.blames in ("model", "crash") for copy in found)

    def has_failed(self, key: Key, replica: str) -> bool:
        """Whether the version could not be loaded there."""
        copy = self.snapshot.replicas[replica].copies.get(key)
        return copy is not None and copy.state == "failed"
