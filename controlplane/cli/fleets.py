"""Checks a version against the fleet that would serve it, offline: from the fleet's record in the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from controlplane.cli.importing import importing
from controlplane.cli.output import size
from controlplane.cli.references import known_in
from controlplane.core.errors import InvalidEntry, InvalidInput
from controlplane.core.fleets import fleet_of
from controlplane.core.models import Capabilities, FleetRecord, Manifest

if TYPE_CHECKING:
    from controlplane.registry import Registry
    from controlplane.render.rendered import RenderedModel


class Served(NamedTuple):
    """A fleet, what its servers can do, and what each of them has for models."""

    fleet: str
    capabilities: Capabilities
    memory_bytes: int


def fleet_for(registry: Registry, manifest: Manifest, fleet: str | None) -> Served | None:
    """The fleet of that name, or the entry's; None while no fleet's servers have been looked at.

    Raises NotFound, and InvalidInput where it isn't clear which fleet is meant.
    """
    if fleet is not None:
        return _served(fleet, registry.fleet(fleet))
    fleets = registry.fleets()
    if not fleets:
        return None
    name = fleet_of(manifest.entry, fleets)
    return _served(name, fleets[name])


def _served(name: str, record: FleetRecord) -> Served | None:
    if record.capabilities is None:
        return None
    return Served(name, record.capabilities, record.shape.memory_bytes)


def check(registry: Registry | None, manifest: Manifest, version: int, fleet: str | None = None) -> list[str]:
    """Check a version as its fleet would serve it, and return sentences about that. Raises InvalidEntry.

    Where no fleet's servers are known (or there is no registry to know them), what any server would refuse is found.
    """
    served = fleet_for(registry, manifest, fleet) if registry is not None else None
    if registry is None or served is None:
        with importing():
            from controlplane.render.render import render

        render(manifest, version, _any_server(), known=_known(registry) if registry is not None else None)
        return ["checked without a fleet, since none is known yet: what depends on its servers shows when they load it"]
    rendered = render_for(registry, manifest, version, served)
    stated = manifest.entry.resources.memory_bytes
    if stated is not None and stated > served.memory_bytes:
        problem = InvalidInput(
            f"{size(stated)} is stated, and the replicas of fleet {served.fleet} have {size(served.memory_bytes)} "
            "each: it could never be served there",
            field="resources.memory_bytes",
            remedy="state what one loaded copy takes, or give the fleet's replicas more (`memory_bytes` of the fleet)",
        )
        raise InvalidEntry(f"{manifest.entry.name}@{version}", (problem,))
    return [f"checked for fleet {served.fleet}", *rendered.notes]


def _any_server() -> Capabilities:
    """A server that can do whatever any can: what fails even there fails everywhere."""
    from controlplane.render.backends import BACKENDS

    return Capabilities(server_version="9999.0", backends=tuple(BACKENDS), gpus=64, response_cache=True)


def render_for(registry: Registry, manifest: Manifest, version: int, served: Served) -> RenderedModel:
    """The model directory as that fleet would serve it. Raises InvalidEntry."""
    with importing():
        from controlplane.render.render import render

    return render(manifest, version, served.capabilities, known=_known(registry))


def _known(registry: Registry) -> Callable[[str, int], Manifest | None]:
    """Finds an ensemble's steps."""
    return lambda model, number: known_in(registry, model, number)


def none_looked_at(fleet: str | None) -> InvalidInput:
    """The error for a fleet of which nobody knows yet what its servers can do."""
    which = f"fleet {fleet!r}" if fleet is not None else "any fleet"
    return InvalidInput(
        f"it is not known yet what the servers of {which} can do",
        field="fleet",
        remedy="start the fleet once (`ctl up`): the controller then writes it into the registry",
    )
