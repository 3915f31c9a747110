"""Where everything lies below a registry's address. docs/registry.md says the same to people."""

from __future__ import annotations

from controlplane.core.entry import is_name
from controlplane.core.errors import InvalidInput
from controlplane.core.models import HistoryItem

MODELS, FLEETS, BLOBS, HISTORY = "models/", "fleets/", "blobs/sha256/", "history/"
CONTROL_PLANE = "control-plane.json"
_JSON = ".json"


def model_key(name: str) -> str:
    """A model's document."""
    return f"{MODELS}{checked(name, 'model')}{_JSON}"


def fleet_key(name: str) -> str:
    """A fleet's record."""
    return f"{FLEETS}{checked(name, 'fleet')}{_JSON}"


def blob_key(sha256: str) -> str:
    """A file's content, or a version's manifest, under its digest."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise InvalidInput(f"{sha256!r} is no SHA-256", remedy="64 hexadecimal digits, in small letters")
    return BLOBS + sha256


def history_prefix(name: str) -> str:
    """The folder of a model's history; its objects' names are in the order of time."""
    return f"{HISTORY}{checked(name, 'model')}/"


def history_key(name: str, item: HistoryItem) -> str:
    """One change of a model."""
    return f"{history_prefix(name)}{item.at.strftime('%Y%m%dT%H%M%S.%fZ')}-{item.id}{_JSON}"


def name_in(key: str, folder: str) -> str | None:
    """The model's or fleet's name that a document's key holds; None for something else that lies there."""
    name = key.removeprefix(folder)
    if not key.startswith(folder) or not name.endswith(_JSON):
        return None
    name = name.removesuffix(_JSON)
    return name if is_name(name) else None


def checked(name: str, kind: str) -> str:
    """`name`, when it can name a model, a fleet or an alias. Raises InvalidInput."""
    if not is_name(name):
        raise InvalidInput(
            f"{name!r} can't name {'an' if kind[0] in 'aeiou' else 'a'} {kind}",
            field="name",
            remedy="letters, digits, '-', '_' and '.', beginning with a letter or digit, no '..', at most 128",
        )
    return name
