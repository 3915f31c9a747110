"""`ctl unquarantine`: a version that took a server down may be tried again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import click

from controlplane.cli.arguments import REFERENCE, Reference, dry_run_option
from controlplane.cli.context import Context, pass_context
from controlplane.core.errors import NotFound
from controlplane.core.models import FleetRecord, Quarantine


@click.command()
@click.argument("reference", metavar="MODEL@VERSION", type=REFERENCE)
@click.option("--fleet", help="On this fleet; without it, on every fleet that has quarantined it.")
@dry_run_option
@pass_context
def unquarantine(context: Context, reference: Reference, fleet: str | None, dry_run: bool) -> None:
    """Lift the quarantine of a version, so that it is loaded again."""
    registry = context.registry()
    records = {fleet: registry.fleet(fleet)} if fleet is not None else registry.fleets()
    held = [name for name, record in records.items() if any(_is_it(each, reference) for each in record.quarantines)]
    if not held:
        where = f"on fleet {fleet}" if fleet is not None else "on any fleet"
        raise NotFound(f"{reference} is not quarantined {where}", remedy="`ctl get fleets` lists quarantines")
    for name in held:
        if not dry_run:
            registry.update_fleet(name, partial(_without, reference, records[name]))
        click.echo(f"{reference} {'would be' if dry_run else 'is'} free to run on fleet {name} again")


def _is_it(quarantine: Quarantine, reference: Reference) -> bool:
    return (quarantine.model, quarantine.version) == reference


def _without(reference: Reference, known: FleetRecord, present: FleetRecord | None) -> FleetRecord:
    record = present if present is not None else known
    return replace(record, quarantines=tuple(each for each in record.quarantines if not _is_it(each, reference)))
