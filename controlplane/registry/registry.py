"""The registry: models, versions, rollouts, aliases, fleets' records and the history, in an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from controlplane.core.entry import Entry
from controlplane.core.errors import NotFound
from controlplane.core.models import FleetRecord, HistoryItem, Manifest, Model, Rollout, Step
from controlplane.registry import claims, rollouts, versions
from controlplane.registry.changes import Documents
from controlplane.registry.documents import CONTROL_PLANE, ControlPlane
from controlplane.registry.gc import GcReport, gc
from controlplane.registry.layout import CONTROL_PLANE as CONTROL_PLANE_KEY
from controlplane.registry.layout import FLEETS, MODELS, blob_key, fleet_key, name_in
from controlplane.registry.store import ObjectStore
from controlplane.registry.versions import GC_GRACE_S, Progress, Registered

PLAIN = (Step(),)
DEADLINE_S = 600.0


class Registry:
    """One registry. Safe to use from several threads and, beside others, from several processes.

    Every call may raise Unavailable and Unauthenticated. A change to a document that a newer release wrote raises
    NewerFormat. With `dry_run` everything is checked and nothing is written.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.documents = Documents(store)

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.url

    # Versions.

    def register(
        self,
        entry: Entry,
        files: Mapping[str, Path],
        *,
        actor: str,
        reason: str = "",
        labels: Mapping[str, str] | None = None,
        dry_run: bool = False,
        progress: Callable[[Progress], None] | None = None,
        check: Callable[[Manifest], None] | None = None,
    ) -> Registered:
        """Make a version of the entry and its files (path inside the version → local file; see `artifact.collect`).

        Files go up several at a time, each once for the whole registry, and before the model's document names them. The
        same bytes and entry are the same version. Steps of an ensemble get the versions that are stable now, or the
        newest where none is. `check` is asked before anything is uploaded, and stops the registration by raising.
        Raises InvalidInput when a file changes meanwhile.
        """
        return versions.register(
            self.documents,
            entry,
            files,
            actor=actor,
            reason=reason,
            labels=labels,
            dry_run=dry_run,
            progress=progress,
            check=check,
        )

    def delete_version(self, name: str, version: int, *, actor: str, reason: str = "", dry_run: bool = False) -> Model:
        """Delete a version; its number stays taken, its files go with the next `gc` after the grace period.

        Raises Conflict while it is stable or was before what is, in a rollout, behind an alias, or an ensemble's step.
        """
        return versions.delete_version(self.documents, name, version, actor=actor, reason=reason, dry_run=dry_run)

    def manifest(self, digest: str) -> Manifest:
        """A version's entry and files, held against its digest. Raises NotFound or InvalidInput."""
        return self.documents.manifest(digest)

    def sources(self, manifest: Manifest, expires_s: int) -> dict[str, str]:
        """For each file's SHA-256 where it can be read without credentials: an absolute path, or a URL."""
        return {file.sha256: self.store.source(blob_key(file.sha256), expires_s) for file in manifest.files}

    def read_blob(self, sha256: str) -> Iterator[bytes]:
        """A file's content, piece by piece. Raises NotFound. Whoever keeps it holds it against the digest."""
        return self.store.chunks(blob_key(sha256))

    # Rollouts.

    def promote(
        self,
        name: str,
        version: int,
        *,
        actor: str,
        reason: str = "",
        steps: tuple[Step, ...] = PLAIN,
        deadline_s: float = DEADLINE_S,
        dry_run: bool = False,
    ) -> Rollout:
        """Begin a rollout of `stable` to a version. The controller carries it out.

        Promoting what is stable already changes nothing. Raises Conflict while a rollout is under way.
        """
        _, after = self.documents.change_model(
            name,
            lambda model: rollouts.promoted(
                _there(model, name),
                version,
                actor=actor,
                reason=reason,
                steps=steps,
                deadline_s=deadline_s,
                action="promote",
            ),
            dry_run=dry_run,
        )
        running = after.running_rollout
        return running if running is not None else rollouts.nothing_to_do(after, actor=actor)

    def rollback(
        self,
        name: str,
        *,
        actor: str,
        reason: str = "",
        steps: tuple[Step, ...] = PLAIN,
        deadline_s: float = DEADLINE_S,
        dry_run: bool = False,
    ) -> Rollout:
        """Abort the rollout that is under way, or else begin one to what was stable before.

        The answer's state tells which: `aborted` or `running`. Raises NotFound when there is nothing to go back to.
        """
        _, after = self.documents.change_model(
            name,
            lambda model: rollouts.rolled_back(
                _there(model, name), actor=actor, reason=reason, steps=steps, deadline_s=deadline_s
            ),
            dry_run=dry_run,
        )
        return after.rollout if after.rollout is not None else rollouts.nothing_to_do(after, actor=actor)

    def retire(self, name: str, *, actor: str, reason: str = "", dry_run: bool = False) -> Model:
        """Let no version be stable any more; `rollback` brings back the one that was.

        Raises Conflict while a rollout is under way, NotFound when nothing is stable.
        """
        _, after = self.documents.change_model(
            name, lambda model: rollouts.retired(_there(model, name), actor=actor, reason=reason), dry_run=dry_run
        )
        return after

    def finish_rollout(
        self, name: str, rollout_id: str, *, state: Literal["succeeded", "failed"], reason: str, actor: str
    ) -> Model:
        """Write how a rollout ended; success moves `stable`. Does nothing when it is not under way any more."""
        _, after = self.documents.change_model(
            name,
            lambda model: rollouts.finished(_there(model, name), rollout_id, state=state, reason=reason, actor=actor),
        )
        return after

    # Aliases.

    def set_alias(
        self, name: str, alias: str, version: int, *, actor: str, reason: str = "", dry_run: bool = False
    ) -> Model:
        """Point an alias other than `stable` at a version."""
        _, after = self.documents.change_model(
            name,
            lambda model: rollouts.aliased(_there(model, name), alias, version, actor=actor, reason=reason),
            dry_run=dry_run,
        )
        return after

    def delete_alias(self, name: str, alias: str, *, actor: str, reason: str = "", dry_run: bool = False) -> Model:
        """Remove an alias other than `stable`. Raises NotFound."""
        _, after = self.documents.change_model(
            name,
            lambda model: rollouts.unaliased(_there(model, name), alias, actor=actor, reason=reason),
            dry_run=dry_run,
        )
        return after

    # Reading.

    def models(self) -> tuple[Model, ...]:
        """Every model's document, in the order of names. One that can't be used raises; `RegistryPoll` reports them."""
        names = [name for each in self.store.list(MODELS) if (name := name_in(each.key, MODELS))]
        return tuple(self.documents.each(self.documents.model, names).values())

    def model(self, name: str) -> Model:
        """One model's document. Raises NotFound."""
        return self.documents.model(name)

    def history(self, name: str, limit: int = 50) -> tuple[HistoryItem, ...]:
        """A model's latest changes, the newest first."""
        return self.documents.history(name, limit)

    # Fleets.

    def fleets(self) -> dict[str, FleetRecord]:
        """Every fleet's record, by name."""
        names = [name for each in self.store.list(FLEETS) if (name := name_in(each.key, FLEETS))]
        return self.documents.each(self.documents.fleet, names)

    def fleet(self, name: str) -> FleetRecord:
        """One fleet's record. Raises NotFound."""
        return self.documents.fleet(name)

    def update_fleet(self, name: str, change: Callable[[FleetRecord | None], FleetRecord]) -> FleetRecord:
        """Change a fleet's record by compare-and-set; `change` may be asked several times."""
        return self.documents.change_fleet(name, change)

    def remove_fleet(self, name: str) -> None:
        """Forget a fleet that is not deployed any more; no error when it is gone already."""
        self.store.delete(fleet_key(name))

    # The whole.

    def claim(self, controller_id: str, installation: str = "") -> int:
        """Take the registry over for a new controller of the control plane `controller_id`; returns its epoch.

        Raises Conflict when the registry belongs to another control plane, or to another installation of it that has
        not been asked (`contend`) or lives.
        """
        _, claimed = self._change_claim(lambda present: claims.raised(present, controller_id, installation, self.url))
        return claimed.epoch

    def contend(self, controller_id: str, installation: str) -> bool:
        """Whether another installation of this control plane has the registry: then it is told that this one wants it.
        It refuses that within seconds, if it lives."""
        if self.control_plane() is None:
            return False

        def wanted(present: ControlPlane | None) -> ControlPlane:
            found = claims.contended(present, controller_id, installation)
            if found is None:
                raise NotFound("the claim has just been removed")
            return found

        try:
            _, present = self._change_claim(wanted)
        except NotFound:
            return False
        return present.contender == installation

    def check_contest(self, installation: str) -> None:
        """Raises Conflict once another installation has refused to give the registry to this one."""
        claims.check_contest(self.control_plane(), installation, self.url)

    def defend(self, epoch: int) -> None:
        """Refuse whoever wants the registry of the controller of this epoch."""

        def refused(present: ControlPlane | None) -> ControlPlane:
            if present is None:
                raise NotFound("the claim has been removed")
            return claims.refused(present, epoch)

        self._change_claim(refused)

    def control_plane(self) -> ControlPlane | None:
        """Whose registry this is; None while it is nobody's."""
        try:
            content, _ = self.store.get(CONTROL_PLANE_KEY)
        except NotFound:
            return None
        return CONTROL_PLANE.read(content, CONTROL_PLANE_KEY)

    def epoch(self) -> int:
        """The epoch of the controller that took over last; 0 when none ever did."""
        present = self.control_plane()
        return present.epoch if present is not None else 0

    def _change_claim(
        self, change: Callable[[ControlPlane | None], ControlPlane]
    ) -> tuple[ControlPlane | None, ControlPlane]:
        return self.documents.change(CONTROL_PLANE_KEY, CONTROL_PLANE, change)

    def gc(self, grace_s: float = GC_GRACE_S, *, dry_run: bool = False) -> GcReport:
        """Remove files that no version needs and that are older than the grace period, and the rests of cut uploads.

        Raises, and removes nothing, when some document can't be read: what it names is not known.
        """
        return gc(self.documents, grace_s, dry_run=dry_run)


def _there(model: Model | None, name: str) -> Model:
    if model is None:
        raise NotFound(f"there is no model {name!r}", remedy="`ctl get models` lists them")
    return model
