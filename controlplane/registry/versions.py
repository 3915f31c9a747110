"""Registering and deleting versions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Literal

from controlplane.core.entry import Entry
from controlplane.core.errors import Conflict, ControlPlaneError, InvalidInput, NotFound
from controlplane.core.models import STABLE, Manifest, Model, Version
from controlplane.registry.artifact import Hashed, hash_files
from controlplane.registry.changes import Documents, history_item
from controlplane.registry.documents import write_manifest
from controlplane.registry.layout import MODELS, blob_key, checked, name_in
from controlplane.registry.rollouts import version_of

GC_GRACE_S = 7 * 86_400
"""How long nothing that was written or deleted is touched by `gc`, unless told otherwise."""

PARALLEL_UPLOADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a registration is, in bytes of this phase."""

    phase: Literal["hash", "upload"]
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What `register` did. `created` False: this very version was there before. `uploaded_bytes`: what was sent."""

    version: int
    digest: str
    created: bool
    uploaded_bytes: int
    manifest: Manifest


def register(
    documents: Documents,
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
    """See Registry.register."""
    checked(entry.name, "model")
    report = _Reporter(progress)
    hashed = hash_files(files, lambda total_bytes: report.phase("hash", total_bytes))
    manifest = Manifest(entry=pinned(documents, entry), files=hashed.files)
    digest, content = write_manifest(manifest)
    if check is not None:
        check(manifest)
    upload = _Upload(documents, hashed, digest, content, named=_is_named(documents, entry.name, digest))
    uploaded_bytes = upload.run(report, dry_run=dry_run)
    before, after = documents.change_model(
        entry.name,
        lambda model: _with_version(model, entry.name, digest, actor=actor, reason=reason, labels=labels or {}),
        dry_run=dry_run,
    )
    number = _number_of(after, digest)
    created = before is None or before.version(number) is None
    if not dry_run:
        uploaded_bytes += upload.run(report, dry_run=False)
    return Registered(version=number, digest=digest, created=created, uploaded_bytes=uploaded_bytes, manifest=manifest)


class _Upload:
    """Brings a version's blobs into the store: those that are missing, and those that `gc` might soon take."""

    def __init__(self, documents: Documents, hashed: Hashed, digest: str, manifest: bytes, *, named: bool) -> None:
        self._store = documents.store
        self._each = documents.each
        self._hashed = hashed
        self._files = {file.sha256: file for file in hashed.files}
        self._digest, self._manifest = digest, manifest
        self._named = named

    def run(self, report: _Reporter, *, dry_run: bool) -> int:
        """Upload what is needed, the manifest last; returns the bytes sent (with `dry_run`, that would be)."""
        needed = [sha256 for sha256, fresh in self._each(self._is_fresh, self._files).items() if not fresh]
        manifest_needed = not self._is_fresh(self._digest)
        total_bytes = sum(self._files[sha256].size_bytes for sha256 in needed)
        sent_bytes = total_bytes + (len(self._manifest) if manifest_needed else 0)
        if dry_run:
            return sent_bytes
        if needed:
            sent = report.phase("upload", total_bytes)
            with ThreadPoolExecutor(PARALLEL_UPLOADS, thread_name_prefix="upload") as pool:
                sending = [pool.submit(self._send, sha256, sent) for sha256 in needed]
                try:
                    for each in sending:
                        each.result()
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            self._hashed.check_unchanged()
        if manifest_needed:
            self._store.put(blob_key(self._digest), self._manifest)
        return sent_bytes

    def _send(self, sha256: str, sent: Callable[[int], None]) -> None:
        file = self._files[sha256]
        path = self._hashed.paths[file.path]
        self._store.put_file(blob_key(sha256), path, sha256=sha256, size_bytes=file.size_bytes, sent=sent)

    def _is_fresh(self, sha256: str) -> bool:
        """Whether the blob is there, whole, and will outlive this registration: it is young, or named by a version."""
        try:
            there = self._store.head(blob_key(sha256))
        except NotFound:
            return False
        size_bytes = self._files[sha256].size_bytes if sha256 in self._files else len(self._manifest)
        age = datetime.now(UTC) - there.modified
        return there.size_bytes == size_bytes and (self._named or age < timedelta(seconds=GC_GRACE_S / 2))


class _Reporter:
    """Adds up progress that comes from several threads."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self._progress = progress
        self._lock = Lock()

    def phase(self, phase: Literal["hash", "upload"], total_bytes: int) -> Callable[[int], None]:
        done_bytes = 0

        def more(size_bytes: int) -> None:
            nonlocal done_bytes
            with self._lock:
                done_bytes += size_bytes
                if self._progress is not None:
                    self._progress(Progress(phase=phase, done_bytes=done_bytes, total_bytes=total_bytes))

        return more


def _is_named(documents: Documents, name: str, digest: str) -> bool:
    try:
        versions = documents.model(name).versions
    except NotFound:
        return False
    return any(each.digest == digest and each.deleted_at is None for each in versions)


def _with_version(
    model: Model | None, name: str, digest: str, *, actor: str, reason: str, labels: Mapping[str, str]
) -> Model:
    model = model if model is not None else Model(name=name)
    known = next((each for each in model.versions if each.digest == digest and each.deleted_at is None), None)
    if known is None:
        number = 1 + max((each.number for each in model.versions), default=0)
        made = Version(number=number, digest=digest, created_at=datetime.now(UTC), actor=actor, labels=dict(labels))
        item = history_item("register", actor=actor, reason=reason, version=number)
        return replace(model, versions=(*model.versions, made), history=(*model.history, item))
    merged = {**known.labels, **labels}
    if merged == dict(known.labels):
        return model
    versions = tuple(replace(each, labels=merged) if each is known else each for each in model.versions)
    item = history_item("label", actor=actor, reason=reason, version=known.number)
    return replace(model, versions=versions, history=(*model.history, item))


def _number_of(model: Model, digest: str) -> int:
    return next(each.number for each in model.versions if each.digest == digest and each.deleted_at is None)


def pinned(documents: Documents, entry: Entry) -> Entry:
    """An ensemble with every step's version in it: what is stable now, or was last; where nothing ever was, the newest.

    Raises InvalidInput for a step whose model or version isn't there.
    """
    if not entry.ensemble:
        return entry
    steps = []
    for index, step in enumerate(entry.ensemble):
        where = f"ensemble[{index}]"
        try:
            model = documents.model(step.model_name)
            number = step.model_version or model.stable or model.previous_stable or _newest_version(model)
            version_of(model, number)
        except NotFound as error:
            raise InvalidInput(error.what, field=where, remedy="register the ensemble's steps first") from error
        steps.append(dataclasses.replace(step, model_version=number))
    return dataclasses.replace(entry, ensemble=tuple(steps))


def _newest_version(model: Model) -> int:
    """Raises NotFound when all have been deleted."""
    numbers = [each.number for each in model.versions if each.deleted_at is None]
    if not numbers:
        raise NotFound(f"{model.name} has no version")
    return max(numbers)


# Deleting.


def delete_version(documents: Documents, name: str, number: int, *, actor: str, reason: str, dry_run: bool) -> Model:
    """See Registry.delete_version."""
    checked(name, "model")

    def without(model: Model | None) -> Model:
        if model is None:
            raise NotFound(f"there is no model {name!r}", remedy="`ctl get models` lists them")
        refuse_while_pointed_at(model, number)
        now = datetime.now(UTC)
        versions = tuple(replace(each, deleted_at=now) if each.number == number else each for each in model.versions)
        item = history_item("delete", actor=actor, reason=reason, version=number)
        previous = model.previous_stable if model.previous_stable != number else None
        return replace(model, versions=versions, previous_stable=previous, history=(*model.history, item))

    refuse_while_pointed_at(documents.model(name), number)
    _refuse_while_a_step(documents, name, number)
    _, after = documents.change_model(name, without, dry_run=dry_run)
    return after


def refuse_while_pointed_at(model: Model, number: int) -> None:
    """Raise Conflict while something in the model's own document points at the version."""
    version_of(model, number)
    name = model.name
    if model.stable == number:
        raise Conflict(
            f"{name}@{number} is stable",
            remedy=f"promote another version first, or `ctl retire {name}`, if none is left",
        )
    running = model.running_rollout
    if running is not None and number in (running.source, running.target):
        raise Conflict(f"{name}@{number} takes part in a rollout", remedy=f"wait for its end, or `ctl rollback {name}`")
    aliases = sorted(alias for alias, to in model.aliases.items() if to == number and alias != STABLE)
    if aliases:
        raise Conflict(
            f"{name}@{number} is what {', '.join(aliases)} points at",
            remedy=f"`ctl alias {name} {aliases[0]} --delete`",
        )
    if model.previous_stable == number and model.stable is not None:
        raise Conflict(
            f"{name}@{number} is where `ctl rollback` would go", remedy="promote something else first, then delete it"
        )


def _refuse_while_a_step(documents: Documents, name: str, number: int) -> None:
    """Raise Conflict while a version of an ensemble names this one as a step."""
    names = [found for each in documents.store.list(MODELS) if (found := name_in(each.key, MODELS)) not in (None, name)]
    references: list[tuple[str, int, str]] = []
    for model in documents.each(documents.model, [each for each in names if each is not None]).values():
        references += [(model.name, each.number, each.digest) for each in model.versions if each.deleted_at is None]

    def uses(reference: tuple[str, int, str]) -> str | None:
        user, version, digest = reference
        try:
            manifest = documents.manifest(digest)
        except ControlPlaneError:
            return None  # what can't be read is served nowhere
        named = any(step.model_name == name and step.model_version == number for step in manifest.entry.ensemble)
        return f"{user}@{version}" if named else None

    users = [user for user in documents.each(uses, references).values() if user is not None]
    if users:
        raise Conflict(
            f"{name}@{number} is a step of {', '.join(users)}",
            remedy=f"delete {'that' if len(users) == 1 else 'those'} first",
        )
