"""What the registry holds, as plain rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from controlplane.core.errors import ControlPlaneError
from controlplane.core.models import FleetRecord, Model, Version
from controlplane.core.scaling.limits import sizes
from controlplane.registry import Registry
from controlplane.registry.poll import RegistryPoll

_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def plain(value: object) -> Any:
    """A domain object as plain data."""
    return _ANY.dump_python(value, mode="json")


def read_models(registry: Registry, names: tuple[str, ...]) -> tuple[list[Model], Mapping[str, str]]:
    """The models that are named, or all; and what is wrong with documents that can't be read."""
    if names:
        return [registry.model(name) for name in names], {}
    changes = RegistryPoll(registry).poll()
    return sorted(changes.models, key=lambda model: model.name), changes.problems


def model_row(model: Model) -> dict[str, Any]:
    """A model in short."""
    return {
        "name": model.name,
        "stable": model.stable,
        "previous_stable": model.previous_stable,
        "versions": [each.number for each in model.versions if each.deleted_at is None],
        "aliases": dict(model.aliases),
        "rollout": plain(model.rollout),
    }


def version_row(registry: Registry, model: Model, version: Version, *, full: bool) -> dict[str, Any]:
    """A version; with `full` also what its manifest says in short, and the entry's labels below the version's own."""
    row = {
        "model": model.name,
        "version": version.number,
        "digest": version.digest,
        "aliases": sorted(alias for alias, number in model.aliases.items() if number == version.number),
        **plain({"created_at": version.created_at, "deleted_at": version.deleted_at}),
        "actor": version.actor,
        "labels": dict(version.labels),
    }
    if full:
        try:
            manifest = registry.manifest(version.digest)
        except ControlPlaneError as error:
            row["problem"] = str(error)
        else:
            row |= {
                "backend": manifest.entry.backend,
                "fleet": manifest.entry.fleet,
                "files": len(manifest.files),
                "size_bytes": manifest.size_bytes,
                "labels": {**manifest.entry.labels, **version.labels},
            }
    return row


def fleet_row(record: FleetRecord) -> dict[str, Any]:
    """A fleet as its record has it, in the controller's form; how many replicas are ready it can't tell."""
    shape, capabilities = record.shape, record.capabilities
    return {
        "name": shape.name,
        **sizes(shape, record, time.time()),
        "replicas": None,
        "desired": None,
        "ready": None,
        "memory_bytes": shape.memory_bytes,
        "gpus": shape.gpus,
        "default": shape.default,
        "server_version": capabilities.server_version if capabilities else None,
        "backends": list(capabilities.backends) if capabilities else [],
        "quarantines": plain(list(record.quarantines)),
    }
