"""From what a person types to what the registry holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.cli.arguments import Mention, Reference
from controlplane.core.errors import NotFound
from controlplane.core.models import Manifest, Version

if TYPE_CHECKING:
    from controlplane.registry import Registry


def resolve(registry: Registry, mention: Mention) -> Reference:
    """The version that is meant. Raises NotFound where it is an alias that the model doesn't have."""
    name, version = mention
    if version.isascii() and version.isdigit():
        return Reference(name, int(version))
    aliases = registry.model(name).aliases
    if version not in aliases:
        raise NotFound(
            f"{name} has no alias {version!r}; it has: {', '.join(sorted(aliases)) or 'none'}",
            remedy=f"name one of these, or a version's number (`ctl get versions {name}` lists them)",
        )
    return Reference(name, aliases[version])


def version_record(registry: Registry, reference: Reference) -> Version:
    """The version's record, also when it is deleted. Raises NotFound."""
    model = registry.model(reference.model)
    version = model.version(reference.version)
    if version is None:
        there = ", ".join(str(each.number) for each in model.versions) or "none"
        raise NotFound(f"{reference} is not there; there is: {there}", remedy="name one of these versions")
    return version


def manifest_of(registry: Registry, reference: Reference) -> Manifest:
    """The version's entry and files. Raises NotFound."""
    record = version_record(registry, reference)
    try:
        return registry.manifest(record.digest)
    except NotFound as error:
        if record.deleted_at is None:
            raise
        raise NotFound(
            f"{reference} was deleted at {record.deleted_at:%Y-%m-%d %H:%M:%S} UTC, and `ctl gc` has removed its files",
            remedy=f"`ctl get versions {reference.model}` lists what is there; registered again, it gets a new number",
        ) from error


def known_in(registry: Registry, model: str, version: int) -> Manifest | None:
    """The same, None where it isn't there: what rendering an ensemble asks."""
    try:
        return manifest_of(registry, Reference(model, version))
    except NotFound:
        return None
