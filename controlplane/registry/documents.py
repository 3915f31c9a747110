"""Documents to bytes and back: the format number, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from controlplane.core.errors import InvalidInput, NewerFormat
from controlplane.core.models import FleetRecord, HistoryItem, Manifest, Model

FORMAT = 1
"""The format of documents that this release writes, and the highest that it reads."""

Document = TypeVar("Document")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Whose registry this is: the control plane's `id`, and the `epoch` of its present controller.

    `installation`: which of those that go by this id, where that is known (the uid of the controllers' Deployment);
    `contender`: another one that wants it, `refused`: the last one that was told that it can't have it.
    """

    id: str
    epoch: int
    installation: str = ""
    contender: str = ""
    refused: str = ""


class Codec(Generic[Document]):
    """Reads and writes one kind of document: JSON with a format number."""

    def __init__(self, kind: str, schema: type[Document]) -> None:
        self._kind = kind
        self._schema = TypeAdapter(schema)

    def write(self, document: Document) -> bytes:
        """The document, indented for people."""
        return (
            json.dumps(self._content(document, exclude_defaults=False), indent=2, ensure_ascii=False).encode() + b"\n"
        )

    def write_canonical(self, document: Document) -> bytes:
        """The one text of this content, to be named by its digest.

        Values that equal their default are left out, so that a release with new fields still writes the same text.
        """
        content = self._content(document, exclude_defaults=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def read(self, content: bytes, key: str) -> Document:
        """The document in `content`. Raises NewerFormat, or InvalidInput for what is no such document."""
        try:
            found = json.loads(content)
            number = found.get("format") if isinstance(found, dict) else None
        except (ValueError, RecursionError) as error:
            raise self._invalid(key, f"not JSON: {error}") from error
        if not isinstance(number, int) or number < 1:
            raise self._invalid(key, "it has no format number")
        if number > FORMAT:
            raise NewerFormat(
                f"{key} has format {number}, and this release reads up to {FORMAT}",
                field=key,
                remedy="a newer release wrote it: use that release, or a newer one",
            )
        try:
            return self._schema.validate_python(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._invalid(key, f"{where}: {first['msg']}") from error

    def _content(self, document: Document, *, exclude_defaults: bool) -> dict[str, Any]:
        content = self._schema.dump_python(document, mode="json", exclude_defaults=exclude_defaults)
        return {"format": FORMAT, **content}

    def _invalid(self, key: str, why: str) -> InvalidInput:
        return InvalidInput(
            f"{key} is no {self._kind} that can be used: {why}",
            field=key,
            remedy="put its last good content back (the bucket's own versions, or a backup)",
        )


MODEL = Codec("model's document", Model)
FLEET = Codec("fleet's record", FleetRecord)
MANIFEST = Codec("version's manifest", Manifest)
HISTORY_ITEM = Codec("history entry", HistoryItem)
CONTROL_PLANE = Codec("control plane's claim", ControlPlane)


def write_manifest(manifest: Manifest) -> tuple[str, bytes]:
    """A version's digest, and the text that it is the digest of. Raises InvalidInput for numbers that JSON lacks."""
    if not _is_finite(asdict(manifest.entry)):
        raise InvalidInput(
            "the entry holds a number that is not finite", field="entry", remedy="leave NaN and infinity out"
        )
    content = MANIFEST.write_canonical(manifest)
    return hashlib.sha256(content).hexdigest(), content


def _is_finite(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
