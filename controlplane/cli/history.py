"""`ctl history`: who changed a model, when and why."""

from __future__ import annotations

import click

from controlplane.cli.arguments import MODEL, WholeNumber
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import Column, Kind, output_option, show_rows, when

ITEMS = Kind(
    columns=(
        Column("WHEN (UTC)", lambda row: when(row["at"])),
        Column("WHO", lambda row: row["actor"]),
        Column("WHAT", lambda row: row["action"]),
        Column("VERSION", lambda row: row["version"]),
        Column("BEFORE", lambda row: row["previous"]),
        Column("ID", lambda row: row["id"], wide=True),
        Column("WHY", lambda row: row["reason"]),
    ),
    name=lambda row: str(row["id"]),
)


@click.command()
@click.argument("name", type=MODEL)
@click.option("--limit", type=WholeNumber(min=1), default=20, show_default=True, help="How many, the newest first.")
@output_option
@pass_context
def history(context: Context, name: str, limit: int, output: str) -> None:
    """Show who changed the model NAME, when and why; the newest first, times in UTC."""
    from pydantic import TypeAdapter

    from controlplane.core.models import HistoryItem

    items = context.registry().history(name, limit)
    rows = TypeAdapter(tuple[HistoryItem, ...]).dump_python(items, mode="json")
    show_rows(rows, ITEMS, output)
