"""`ctl top`: how fleets and models fare, live."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from controlplane.cli.arguments import DURATION
from controlplane.cli.context import Context, pass_context
from controlplane.cli.get import limits
from controlplane.cli.output import Column, Kind, output_option, show_one, show_rows, size
from controlplane.core.errors import ControlPlaneError

FRESH_S = 10.0
"""How old what was measured is, is shown where it is older."""
LEAST_RATE = 0.05

if TYPE_CHECKING:
    from rich.console import Group


def _next(row: Mapping[str, Any]) -> str | None:
    if row["next_desired"] is None:
        return None
    return f"{row['next_desired']} in {max(row['next_in_s'] or 0.0, 0.0):.0f} s"


def _number(value: float | None, digits: int = 1) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _rate(value: float | None) -> str | None:
    """One in half a minute is not none."""
    return "<0.1" if value is not None and 0 < value < LEAST_RATE else _number(value)


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f} ms"


FLEETS = Kind(
    columns=(
        Column("FLEET", lambda row: row["name"]),
        Column("READY", lambda row: f"{row['ready']}/{row['desired'] if row['desired'] is not None else '?'}"),
        Column("SIZE", limits),
        Column("BUSY", lambda row: _number(row["demand"], 2)),
        Column("REQ/S", lambda row: _number(row["rate_per_s"])),
        Column("WAITING", lambda row: _number(row["waiting"], 0)),
        Column("HELD", lambda row: row["held"]),
        Column("IN GOAL", lambda row: None if row["met"] is None else f"{row['met']:.1%}"),
        Column("MEMORY", lambda row: f"{size(row['memory_bytes'])} of {size(row['capacity_bytes'])}"),
        Column("NEXT", _next),
    )
)


def _age(row: Mapping[str, Any]) -> str | None:
    age_s = row.get("age_s", row.get("measured_s_ago"))
    return None if age_s is None or age_s <= FRESH_S else f"{age_s:.0f} s"


SIGNALS = (
    Column("REQ/S", lambda row: _number(row.get("requests_per_s"))),
    Column("QUEUE", lambda row: _ms(row.get("queue_ms"))),
    Column("LATENCY", lambda row: _ms(row.get("latency_ms"))),
    Column("IN FLIGHT", lambda row: _number(row.get("in_flight"))),
    Column("WAITING", lambda row: _number(row.get("waiting"), 0)),
    Column("BATCH", lambda row: _number(row.get("batch_size"))),
    Column("DUTY", lambda row: None if row.get("duty_cycle") is None else f"{row['duty_cycle']:.0%}"),
    Column("AGE", _age),
)
"""What is measured of a version, on one replica or on all."""
MODELS = Kind(
    columns=(
        Column("MODEL", lambda row: f"{row['model']}@{row['version']}"),
        Column("COPIES", lambda row: row["copies"]),
        Column("HELD", lambda row: row["held"]),
        Column("ERR/S", lambda row: _rate(row["errors_per_s"])),
        *SIGNALS,
        Column("MEMORY", lambda row: size(row["memory_bytes"])),
    ),
    name=lambda row: f"{row['model']}@{row['version']}",
    empty="nothing is loaded, and nobody waits",
)
COPIES = Kind(
    columns=(
        Column("COPY", lambda row: f"{row['model']}@{row['version']} on {row['replica']}"),
        Column("STATE", lambda row: row["state"]),
        Column("ERR/S", lambda row: _rate(row.get("errors_per_s"))),
        *SIGNALS,
        Column("MEMORY", lambda row: size(row["memory_bytes"])),
        Column("WHY", lambda row: row["reason"]),
    ),
    name=lambda row: f"{row['model']}@{row['version']} on {row['replica']}",
    empty="it is loaded nowhere",
)


BY_WORTH = (
    *("READY", "REQ/S", "NEXT", "LATENCY", "IN GOAL", "COPIES", "QUEUE", "WAITING", "MEMORY"),
    *("HELD", "BUSY", "DUTY", "ERR/S", "BATCH", "IN FLIGHT", "SIZE", "AGE"),
)
"""Columns: where a terminal is too narrow, the last ones leave first. Whatever names a row stays."""
LEAST_EVERY_S, MOST_EVERY_S = 0.2, 86_400.0


@click.command()
@click.option("--once", is_flag=True, help="Show it once and end.")
@click.option("--every", "every_s", type=DURATION, default="2s", show_default=True, help="How often to look.")
@output_option
@pass_context
def top(context: Context, once: bool, every_s: float, output: str) -> None:
    """Show live how fleets and models fare: load, queues, batches, replicas and the next decision.

    BUSY is how many replicas what arrives keeps busy. Off a terminal, or in another form than a table, it is shown
    once.
    """
    if every_s > MOST_EVERY_S:
        raise click.UsageError("--every is a day at most")
    with context.reader() as reader:
        told = reader.get("/v1/top")
    if once or output not in ("table", "wide") or not sys.stdout.isatty():
        show_one(told, "top", output, lambda: _print(told, output))
        return
    _follow(context, told, max(every_s, LEAST_EVERY_S))


def _follow(context: Context, told: Mapping[str, Any], every_s: float) -> NoReturn:
    """Show what is told for as long as the controller answers, and when it does not, why, with what was told last."""
    from rich.live import Live

    told_at = time.monotonic()
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            try:
                with context.reader() as reader:
                    while True:
                        told, told_at = reader.get("/v1/top"), time.monotonic()
                        live.update(_drawn(told, live.console.size), refresh=True)
                        time.sleep(every_s)
            except ControlPlaneError as error:  # asked anew: a controller that was started again may be somewhere else
                age_s = time.monotonic() - told_at
                live.update(_drawn(told, live.console.size, f"This is {age_s:.0f} s old: {error}"), refresh=True)
            time.sleep(every_s)


def _print(told: Mapping[str, Any], output: str) -> None:
    show_rows(told["fleets"], FLEETS, output)
    for each in told["fleets"]:
        if each["reason"]:
            click.echo(f"{each['name']}: {each['reason']}")
    click.echo()
    show_rows(told["models"], MODELS, output)


def _fitting(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], width: int
) -> tuple[list[Column], list[list[str]]]:
    """As many of the columns as a terminal of that width has room for, and what is in them, by row."""
    shown = {column: [_text(column.cell(row)) for row in rows] for column in columns}
    widths = {column: max(map(len, [column.heading, *cells])) + 2 for column, cells in shown.items()}
    leaving = sorted(columns[1:], key=lambda column: BY_WORTH.index(column.heading), reverse=True)
    while sum(widths[column] for column in shown) > width + 2 and leaving:
        del shown[leaving.pop(0)]
    return list(shown), [[shown[column][index] for column in shown] for index in range(len(rows))]


def _text(cell: object) -> str:
    return "-" if cell is None else str(cell)


def _drawn(told: Mapping[str, Any], terminal: tuple[int, int], trouble: str = "") -> Group:
    """What a terminal of so many columns and lines shows."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    width, height = terminal

    def table(kind: Kind, rows: list[dict[str, Any]]) -> Table:
        columns, cells = _fitting(kind.columns, rows, width)
        made = Table(box=None, pad_edge=False)
        for column in columns:
            made.add_column(column.heading, no_wrap=True)
        for row in cells:
            made.add_row(*map(Text, row))
        return made

    reasons = [f"{each['name']}: {each['reason']}" for each in told["fleets"] if each["reason"]]
    first = [trouble, ""] if trouble else []
    busiest = sorted(told["models"], key=lambda row: -(row["in_flight"] or 0) - (row["held"] or 0))
    lines = sum(math.ceil(len(each) / width) or 1 for each in [*first, *reasons]) + len(told["fleets"])
    room = max(height - lines - 4, 1)  # beside two headings, an empty line and the last one
    more = f"{len(busiest) - room} more models have no room here; " if len(busiest) > room else ""
    return Group(
        *(Text(each, style="bold") for each in first),
        table(FLEETS, told["fleets"]),
        *map(Text, reasons),
        Text(),
        table(MODELS, busiest[:room]),
        Text(f"{more}Ctrl-C ends", style="dim"),
    )
