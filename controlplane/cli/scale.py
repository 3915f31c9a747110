"""`ctl scale`: a fleet's size by hand, for a while or until it is lifted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import click

from controlplane.cli.arguments import DURATION, FLEET, WholeNumber, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import DRY_RUN, changed, note, output_option, show_one, when
from controlplane.core.errors import NotFound
from controlplane.core.models import FleetRecord, ManualScale

MOST, MOST_FOR_S = 1000, 3650 * 86_400.0


@click.command()
@click.argument("fleet", type=FLEET)
@click.argument("replicas", type=WholeNumber(0, MOST), required=False)
@click.option("--for", "for_s", type=DURATION, help="How long it holds, as in 90s, 15m or 1h; else until it is lifted.")
@click.option("--auto", is_flag=True, help="Lift it: the fleet follows its deployment and its load again.")
@reason_option
@dry_run_option
@output_option
@pass_context
def scale(
    context: Context,
    *,
    fleet: str,
    replicas: int | None,
    for_s: float | None,
    auto: bool,
    reason: str,
    dry_run: bool,
    output: str,
) -> None:
    """Give FLEET so many REPLICAS, whatever its load is, for a while or until `ctl scale FLEET --auto`.

    It is written into the fleet's record in the registry; the controller does the rest.
    """
    if auto == (replicas is not None):
        raise click.UsageError("give either a number of replicas or --auto")
    if for_s is not None and auto:
        raise click.UsageError("--for is for how long a number of replicas holds: it does not go with --auto")
    if for_s is not None and for_s <= 0:
        raise click.UsageError("--for is longer than nothing, as in 15m")
    if for_s is not None and for_s > MOST_FOR_S:
        raise click.UsageError("--for is ten years at most; leave it away, and the number holds until it is lifted")
    registry = context.registry()
    record = registry.fleet(fleet)
    manual = None
    if replicas is not None:
        now = datetime.now(UTC)
        until = now + timedelta(seconds=for_s) if for_s is not None else None
        manual = ManualScale(replicas=replicas, actor=context.actor, at=now, until=until, reason=reason)

    def change(present: FleetRecord | None) -> FleetRecord:
        if present is None:
            raise NotFound(f"there is no fleet {fleet!r}", remedy="`ctl get fleets` lists them")
        return replace(present, manual=manual)

    if not dry_run:
        registry.update_fleet(fleet, change)
    shape = record.shape
    if replicas is not None and not shape.min_replicas <= replicas <= shape.max_replicas:
        note(f"the deployment asks for {shape.min_replicas} to {shape.max_replicas}; what is set by hand comes first")
    budget = _budget(context)
    if replicas is not None and budget is not None and replicas > budget:
        note(f"all fleets together get {budget} replicas at most: `max_replicas` of the controller")
    data = changed({"fleet": fleet}, now=_data(record.manual), then=_data(manual), dry_run=dry_run)

    def text() -> None:
        if manual is None:
            click.echo(f"fleet {fleet} follows its deployment and its load again{DRY_RUN if dry_run else ''}")
            return
        until = f" until {when(manual.until.isoformat())} UTC" if manual.until is not None else ""
        click.echo(f"fleet {fleet} shall have {manual.replicas}{until}{DRY_RUN if dry_run else ''}")

    show_one(data, fleet, output, text)


def _budget(context: Context) -> int | None:
    """What all fleets of this machine's system share; None where there is no such limit, or it is not known."""
    from controlplane.local.system import load_system

    system = None if context.on_kubernetes else load_system(context.home)
    return system.controller.max_replicas if system is not None else None


def _data(manual: ManualScale | None) -> dict[str, object]:
    until = manual.until.isoformat() if manual is not None and manual.until is not None else None
    return {"manual": manual.replicas if manual is not None else None, "until": until}
