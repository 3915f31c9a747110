"""`ctl unquarantine`: a version that took a server down may be tried again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import click

from controlplane.cli.arguments import FLEET, MENTION, Mention, Reference, dry_run_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import changed, output_option, show_one
from controlplane.core.errors import NotFound
from controlplane.core.models import FleetRecord, Quarantine


@click.command()
@click.argument("mention", metavar="MODEL@VERSION", type=MENTION)
@click.option("--fleet", type=FLEET, help="On this fleet; without it, on every fleet that has quarantined it.")
@dry_run_option
@output_option
@pass_context
def unquarantine(context: Context, *, mention: Mention, fleet: str | None, dry_run: bool, output: str) -> None:
    """Lift the quarantine of a version, so that it is loaded again."""
    from controlplane.cli.references import resolve

    registry = context.registry()
    reference = resolve(registry, mention)
    records = {fleet: registry.fleet(fleet)} if fleet is not None else registry.fleets()
    held = [name for name, record in records.items() if any(_is_it(each, reference) for each in record.quarantines)]
    if not held:
        where = f"on fleet {fleet}" if fleet is not None else "on any fleet"
        raise NotFound(f"{reference} is not quarantined {where}", remedy="`ctl get fleets` lists quarantines")
    if not dry_run:
        for name in held:
            registry.update_fleet(name, partial(_without, reference, records[name]))
    data = changed(reference._asdict(), now={"free_on": []}, then={"free_on": held}, dry_run=dry_run)

    def text() -> None:
        for name in held:
            click.echo(f"{reference} {'would be' if dry_run else 'is'} free to run on fleet {name} again")

    show_one(data, str(reference), output, text)


def _is_it(quarantine: Quarantine, reference: Reference) -> bool:
    return (quarantine.model, quarantine.version) == reference


def _without(reference: Reference, known: FleetRecord, present: FleetRecord | None) -> FleetRecord:
    record = present if present is not None else known
    return replace(record, quarantines=tuple(each for each in record.quarantines if not _is_it(each, reference)))
