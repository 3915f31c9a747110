"""Reading documents, and changing them by compare-and-set: no change is lost, none is half seen."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import TypeVar

from controlplane.core.errors import Conflict, InvalidInput, NotFound
from controlplane.core.models import HISTORY_IN_DOCUMENT, FleetRecord, HistoryItem, Manifest, Model
from controlplane.registry.documents import FLEET, HISTORY_ITEM, MANIFEST, MODEL, Codec
from controlplane.registry.layout import blob_key, fleet_key, history_key, history_prefix, model_key
from controlplane.registry.store import ObjectStore

Document = TypeVar("Document")
Key = TypeVar("Key")
Result = TypeVar("Result")

CAS_ATTEMPTS, CAS_TOTAL_S = 60, 60.0
PARALLEL_CALLS = 16
CACHED_MANIFESTS = 65_536


class Documents:
    """The documents of one registry."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.manifest = lru_cache(maxsize=CACHED_MANIFESTS)(self._manifest)

    def model(self, name: str) -> Model:
        """A model's document. Raises NotFound, NewerFormat or InvalidInput."""
        try:
            content, _ = self.store.get(model_key(name))
        except NotFound as error:
            raise NotFound(f"there is no model {name!r}", remedy="`ctl get models` lists them") from error
        return self.read_model(name, content)

    def read_model(self, name: str, content: bytes) -> Model:
        """The document of the model `name` in `content`."""
        model = MODEL.read(content, model_key(name))
        return _named(model, model.name, name, model_key(name))

    def fleet(self, name: str) -> FleetRecord:
        """A fleet's record. Raises NotFound, NewerFormat or InvalidInput."""
        try:
            content, _ = self.store.get(fleet_key(name))
        except NotFound as error:
            raise NotFound(f"there is no fleet {name!r}", remedy="`ctl get fleets` lists them") from error
        return self.read_fleet(name, content)

    def read_fleet(self, name: str, content: bytes) -> FleetRecord:
        """The record of the fleet `name` in `content`."""
        record = FLEET.read(content, fleet_key(name))
        return _named(record, record.shape.name, name, fleet_key(name))

    def change_model(
        self, name: str, change: Callable[[Model | None], Model], *, dry_run: bool = False
    ) -> tuple[Model | None, Model]:
        """Change a model's document, making it if need be; returns what it was and what it is.

        `change` gets the present document, is asked again when somebody else's change came first, and makes nothing
        happen by returning what it got. What it raises is raised.
        """
        before, after = self._change(
            model_key(name),
            lambda content: self.read_model(name, content),
            MODEL,
            lambda present: self._with_history(present, change(present), dry_run=dry_run),
            dry_run=dry_run,
        )
        known = {item.id for item in before.history} if before is not None else set()
        if not dry_run:
            for item in after.history:
                if item.id not in known:
                    self._keep(name, item)
        return before, after

    def change_fleet(self, name: str, change: Callable[[FleetRecord | None], FleetRecord]) -> FleetRecord:
        """Change a fleet's record as `change_model` does a model's document."""

        def checked(present: FleetRecord | None) -> FleetRecord:
            return _named(record := change(present), record.shape.name, name, fleet_key(name))

        _, after = self._change(fleet_key(name), lambda content: self.read_fleet(name, content), FLEET, checked)
        return after

    def change(
        self, key: str, codec: Codec[Document], change: Callable[[Document | None], Document]
    ) -> tuple[Document | None, Document]:
        """Change any other document."""
        return self._change(key, lambda content: codec.read(content, key), codec, change)

    def _change(
        self,
        key: str,
        read: Callable[[bytes], Document],
        codec: Codec[Document],
        change: Callable[[Document | None], Document],
        *,
        dry_run: bool = False,
    ) -> tuple[Document | None, Document]:
        deadline = time.monotonic() + CAS_TOTAL_S
        for attempt in range(CAS_ATTEMPTS):
            present, etag = self._present(key, read)
            changed = change(present)
            if changed == present or dry_run:
                return present, changed
            try:
                self.store.put(key, codec.write(changed), if_match=etag, if_absent=etag is None)
            except Conflict:
                if time.monotonic() > deadline:
                    break
                time.sleep(random.uniform(0, min(0.005 * 2**attempt, 1.0)))  # noqa: S311 - jitter, not a secret
            else:
                return present, changed
        raise Conflict(f"{key} keeps being changed by others", remedy="try again in a moment")

    def _present(self, key: str, read: Callable[[bytes], Document]) -> tuple[Document | None, str | None]:
        try:
            content, etag = self.store.get(key)
        except NotFound:
            return None, None
        return read(content), etag

    # History.

    def _with_history(self, before: Model | None, after: Model, *, dry_run: bool) -> Model:
        """`after` with its latest entries only. One leaves the document when it is known to be an object."""
        leaving = after.history[:-HISTORY_IN_DOCUMENT]
        if not leaving or after == before:
            return after
        if not dry_run:
            for item in leaving:
                self._keep(after.name, item)
        return replace(after, history=after.history[-HISTORY_IN_DOCUMENT:])

    def _keep(self, name: str, item: HistoryItem) -> None:
        self.store.put(history_key(name, item), HISTORY_ITEM.write(item))

    def history(self, name: str, limit: int) -> tuple[HistoryItem, ...]:
        """A model's latest changes, the newest first."""
        recent = tuple(reversed(self.model(name).history))
        if limit <= len(recent) or len(recent) < HISTORY_IN_DOCUMENT:
            return recent[:limit]
        keys = sorted((each.key for each in self.store.list(history_prefix(name))), reverse=True)[:limit]
        known = {history_key(name, item): item for item in recent}
        missing = [key for key in keys if key not in known]
        read = {key: HISTORY_ITEM.read(found[0], key) for key, found in self.each(self.store.get, missing).items()}
        items = {**known, **read}
        return tuple(items[key] for key in sorted(items, reverse=True)[:limit])

    # Blobs.

    def _manifest(self, digest: str) -> Manifest:
        """A version's manifest. Raises NotFound, or InvalidInput when the bytes are not those of the digest."""
        try:
            content, _ = self.store.get(blob_key(digest))
        except NotFound as error:
            raise NotFound(
                f"the manifest {digest[:12]} is not in the registry", remedy="register the version again"
            ) from error
        if sha256(content).hexdigest() != digest:
            raise InvalidInput(
                f"the manifest {digest[:12]} has been changed in the store", remedy="register the version again"
            )
        return MANIFEST.read(content, blob_key(digest))

    def each(self, call: Callable[[Key], Result], keys: Iterable[Key]) -> dict[Key, Result]:
        """What `call` returns for each key, several called at a time, in the keys' order. The first error is raised."""
        wanted = list(keys)
        with ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="registry") as pool:
            return dict(zip(wanted, pool.map(call, wanted), strict=True))


def _named(document: Document, says: str, name: str, key: str) -> Document:
    if says != name:
        raise InvalidInput(f"{key} is the document of {says!r}", field=key, remedy="give the file its own name back")
    return document


def history_item(
    action: str, *, actor: str, reason: str, version: int | None = None, previous: int | None = None
) -> HistoryItem:
    """A change that happens now."""
    return HistoryItem(
        id=secrets.token_hex(6),
        at=datetime.now(UTC),
        actor=actor,
        action=action,
        version=version,
        previous=previous,
        reason=reason,
    )
