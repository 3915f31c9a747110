"""The registry: can it be read, and does it keep the conditions of writes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from controlplane.cli.checks.finding import Finding
from controlplane.core.errors import Conflict, ControlPlaneError, Unauthenticated
from controlplane.registry.layout import CONTROL_PLANE as KEY
from controlplane.registry.layout import MODELS
from controlplane.registry.open import open_registry, open_store
from controlplane.registry.store import ObjectStore

NO_SUCH_ETAG = '"00000000000000000000000000000000"'


def readable(url: str) -> Iterator[Finding]:
    """Whether whoever asks can read it. The controller has credentials of its own."""
    try:
        next(iter(open_store(url).list(MODELS)), None)
    except Unauthenticated as error:
        yield Finding("registry", "problem", error.what, error.remedy)
        return
    yield Finding("registry", "ok", f"{url} can be read with your credentials")


def claimed(url: str, *, name: str, installation: str | None) -> Iterator[Finding]:
    """Whose it is: ours, by the control plane's `name` and, where they are known, by the uid of its Deployment."""
    present = open_registry(url).control_plane()
    if present is None:
        yield Finding("claim", "warning", f"nobody has claimed {url} yet", "see why no controller leads (above)")
    elif present.id != name:
        yield Finding(
            "claim",
            "problem",
            f"{url} belongs to another control plane ({present.id}); this one is {name}",
            f"use another prefix (registry); if that one is gone for good, remove {KEY} there",
        )
    elif installation is not None and present.installation not in ("", installation):
        yield Finding(
            "claim",
            "problem",
            f"{url} is claimed by another installation of {name} (its controllers' Deployment has the uid "
            f"{present.installation}), perhaps on another cluster",
            "give each a prefix of its own; to move here, end that one: half a minute later this one takes over",
        )
    else:
        yield Finding("claim", "ok", f"{url} is claimed by {name} (epoch {present.epoch})")


def conditional_writes(url: str, *, write: bool) -> Iterator[Finding]:
    """Whether a write whose condition fails is refused: without that, two promotions at once overwrite each other."""
    if not write:
        yield Finding(
            "registry writes",
            "unchecked",
            "nothing was written",
            "`ctl doctor --write` tries it, with an object below doctor/ that it removes",
        )
        return
    try:
        wrong = list(_wrong(open_store(url)))
    except ControlPlaneError as error:
        yield Finding("registry writes", "problem", f"it can't be written: {error.what}", error.remedy)
        return
    if wrong:
        yield Finding(
            "registry writes",
            "problem",
            f"{url} {' and '.join(wrong)}: two promotions at once could overwrite each other",
            "use a store with conditional writes (If-None-Match and If-Match on PutObject); newer ones have them",
        )
        return
    yield Finding("registry writes", "ok", f"{url} takes writes, and refuses those whose condition fails")


def _wrong(store: ObjectStore) -> Iterator[str]:
    """What the store does that it must not."""
    key = f"doctor/{uuid.uuid4().hex}"
    etag = store.put(key, b"first", if_absent=True)
    try:
        if _taken(store, key, b"second", if_absent=True):
            yield "overwrites an object that was to be made anew"
            etag = store.head(key).etag
        if _taken(store, key, b"third", if_match=NO_SUCH_ETAG):
            yield "overwrites an object that was changed meanwhile"
            etag = store.head(key).etag
        if not _taken(store, key, b"fourth", if_match=etag):
            yield "refuses a write whose condition holds"
    finally:
        store.delete(key)


def _taken(
    store: ObjectStore, key: str, content: bytes, *, if_match: str | None = None, if_absent: bool = False
) -> bool:
    try:
        store.put(key, content, if_match=if_match, if_absent=if_absent)
    except Conflict:
        return False
    return True
