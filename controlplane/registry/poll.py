"""Follows a registry: a listing a turn, and the documents that changed since the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from controlplane.core.errors import ControlPlaneError, NotFound
from controlplane.core.models import FleetRecord, Model
from controlplane.registry.layout import FLEETS, MODELS, name_in
from controlplane.registry.registry import Registry

Document = TypeVar("Document")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is different since the poll before.

    `problems` has every document that can't be used at present, by key, with the reason; what was read of it before is
    still the best that is known.
    """

    models: tuple[Model, ...] = ()
    removed_models: tuple[str, ...] = ()
    fleets: tuple[FleetRecord, ...] = ()
    removed_fleets: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.models or self.removed_models or self.fleets or self.removed_fleets)


class RegistryPoll:
    """Remembers the ETags of what it has read. Not for several threads at once."""

    def __init__(self, registry: Registry) -> None:
        self._documents = registry.documents
        self._etags: dict[str, str] = {}
        self._problems: dict[str, str] = {}

    def poll(self) -> Changes:
        """Read what has changed. Raises Unavailable or Unauthenticated, and then begins again where it was."""
        etags, problems = dict(self._etags), dict(self._problems)
        models, removed_models = self._folder(MODELS, self._documents.read_model, etags, problems)
        fleets, removed_fleets = self._folder(FLEETS, self._documents.read_fleet, etags, problems)
        self._etags, self._problems = etags, problems
        return Changes(
            models=models,
            removed_models=removed_models,
            fleets=fleets,
            removed_fleets=removed_fleets,
            problems=dict(problems),
        )

    def _folder(
        self,
        folder: str,
        read: Callable[[str, bytes], Document],
        etags: dict[str, str],
        problems: dict[str, str],
    ) -> tuple[tuple[Document, ...], tuple[str, ...]]:
        listed = {each.key: each.etag for each in self._documents.store.list(folder)}
        changed = [key for key, etag in listed.items() if name_in(key, folder) and etags.get(key) != etag]
        documents: list[Document] = []
        gone = {key for key in etags if key.startswith(folder) and key not in listed}
        for key, found in self._documents.each(self._get, changed).items():
            if found is None:
                if key in etags:
                    gone.add(key)
                continue
            content, etags[key] = found
            try:
                documents.append(read(name_in(key, folder) or "", content))
                problems.pop(key, None)
            except ControlPlaneError as error:
                problems[key] = str(error)
        for key in gone:
            del etags[key]
            problems.pop(key, None)
        return tuple(documents), tuple(sorted(name_in(key, folder) or "" for key in gone))

    def _get(self, key: str) -> tuple[bytes, str] | None:
        try:
            return self._documents.store.get(key)
        except NotFound:
            return None
