"""Checks a version against the fleet that would serve it, offline: from the fleet's record in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from controlplane.cli.references import known_in
from controlplane.core.errors import InvalidInput
from controlplane.core.fleets import fleet_of
from controlplane.core.models import Capabilities, FleetRecord, Manifest

if TYPE_CHECKING:
    from controlplane.registry import Registry
    from controlplane.render.rendered import RenderedModel


class Served(NamedTuple):
    """A fleet and what its servers can do."""

    fleet: str
    capabilities: Capabilities


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
    return Served(name, record.capabilities) if record.capabilities is not None else None


def render_for(registry: Registry, manifest: Manifest, version: int, served: Served) -> RenderedModel:
    """The model directory as that fleet would serve it. Raises InvalidEntry."""
    from controlplane.render.render import render

    return render(manifest, version, served.capabilities, known=lambda model, number: known_in(registry, model, number))


def none_looked_at(fleet: str | None) -> InvalidInput:
    """The error for a fleet of which nobody knows yet what its servers can do."""
    which = f"fleet {fleet!r}" if fleet is not None else "any fleet"
    return InvalidInput(
        f"it is not known yet what the servers of {which} can do",
        field="fleet",
        remedy="start the fleet once (`ctl up`): the controller then writes it into the registry",
    )
