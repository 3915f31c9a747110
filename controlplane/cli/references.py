"""From what a person types to what the registry holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.cli.arguments import Reference
from controlplane.core.errors import NotFound
from controlplane.core.models import Manifest, Version

if TYPE_CHECKING:
    from controlplane.registry import Registry


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
    return registry.manifest(version_record(registry, reference).digest)


def known_in(registry: Registry, model: str, version: int) -> Manifest | None:
    """The same, None where it isn't there: what rendering an ensemble asks."""
    try:
        return manifest_of(registry, Reference(model, version))
    except NotFound:
        return None
