"""Removes what no document names any more, after a grace period."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from controlplane.core.errors import Conflict, InvalidInput, NotFound
from controlplane.core.models import Manifest, Model
from controlplane.registry.changes import Documents
from controlplane.registry.layout import BLOBS, MODELS, blob_key, name_in
from controlplane.registry.store import Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What was removed (with `dry_run`: would be), and what stays."""

    removed: tuple[str, ...]
    removed_bytes: int
    kept: int
    kept_bytes: int
    uploads_swept: int
    dry_run: bool


def gc(documents: Documents, grace_s: float, *, dry_run: bool) -> GcReport:
    """See Registry.gc."""
    if not grace_s >= 0:
        raise InvalidInput(f"{grace_s} s is no grace period", field="grace_s", remedy="give a number of seconds")
    now = datetime.now(UTC)
    before = now - timedelta(seconds=grace_s)
    # The blobs first: what is written after this listing is not in it, so nothing new can be taken for forgotten.
    blobs = list(documents.store.list(BLOBS))
    live = _live(documents, before)
    removed: list[Stored] = []
    for blob in blobs:
        if blob.key in live or blob.modified >= before:
            continue
        if dry_run or _remove(documents, blob, before):
            removed.append(blob)
    swept = 0 if dry_run else documents.store.sweep(before)
    return GcReport(
        removed=tuple(each.key.removeprefix(BLOBS) for each in removed),
        removed_bytes=sum(each.size_bytes for each in removed),
        kept=len(blobs) - len(removed),
        kept_bytes=sum(each.size_bytes for each in blobs) - sum(each.size_bytes for each in removed),
        uploads_swept=swept,
        dry_run=dry_run,
    )


def _remove(documents: Documents, blob: Stored, before: datetime) -> bool:
    """Remove a blob, unless a registration has just written it again."""
    try:
        if documents.store.head(blob.key).modified >= before:
            return False
    except NotFound:
        return False
    documents.store.delete(blob.key)
    return True


def _live(documents: Documents, before: datetime) -> set[str]:
    """The keys that some document names. What was deleted after `before` counts as named."""
    names = [name for each in documents.store.list(MODELS) if (name := name_in(each.key, MODELS)) is not None]
    models = {model.name: model for model in documents.each(documents.model, names).values()}
    digests = {digest for model in models.values() for digest in _digests(model, before)}
    live: set[str] = set()
    seen: set[str] = set()
    while digests - seen:
        fresh = sorted(digests - seen)
        seen |= digests
        for digest, manifest in documents.each(lambda each: _manifest(documents, each), fresh).items():
            live |= {blob_key(digest), *(blob_key(file.sha256) for file in manifest.files)}
            digests |= set(_steps(manifest, models))
    return live


def _digests(model: Model, before: datetime) -> Iterator[str]:
    for version in model.versions:
        if version.deleted_at is None or version.deleted_at >= before:
            yield version.digest


def _steps(manifest: Manifest, models: dict[str, Model]) -> Iterator[str]:
    """What an ensemble is made of, deleted or not."""
    for step in manifest.entry.ensemble:
        model = models.get(step.model_name)
        version = model.version(step.model_version) if model is not None and step.model_version is not None else None
        if version is not None:
            yield version.digest


def _manifest(documents: Documents, digest: str) -> Manifest:
    try:
        return documents.manifest(digest)
    except (NotFound, InvalidInput) as error:
        raise Conflict(
            f"nothing was removed, since it is not known what a version needs: {error.what}",
            remedy="register that version again, or delete it and wait for the grace period",
        ) from error
