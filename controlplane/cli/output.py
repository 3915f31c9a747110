"""Data on standard output, in the form that was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import yaml

FORMATS = ("table", "wide", "json", "yaml", "name")

FLOW_VALUES, FLOW_TEXT = 16, 40
"""In YAML, a list of at most so many plain values, texts no longer than that, stands on one line."""

DRY_RUN = " (dry run: nothing was changed)"
"""What a sentence about a dry run ends with."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading and what stands in it. `wide`: only with ``-o wide``."""

    heading: str
    cell: Callable[[Row], object]
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one kind of thing is listed. `name` tells what other commands call a row."""

    columns: Sequence[Column] = field(default_factory=tuple)
    name: Callable[[Row], str] = lambda row: str(row["name"])
    empty: str = "nothing there"


output_option = click.option(
    "-o", "--output", "output", type=click.Choice(FORMATS), default="table", show_default=True, help="Form of the data."
)


def show_rows(rows: Sequence[Row], kind: Kind, output: str) -> None:
    """Print a list."""
    if output in ("json", "yaml"):
        click.echo(structured(list(rows), output))
    elif output == "name":
        for row in rows:
            click.echo(kind.name(row))
    elif not rows:
        note(kind.empty)
    else:
        columns = [column for column in kind.columns if output == "wide" or not column.wide]
        print_table([column.heading for column in columns], [[column.cell(row) for column in columns] for row in rows])


def show_one(data: Row, name: str, output: str, text: Callable[[], None]) -> None:
    """Print one thing; `text` prints it for people."""
    if output in ("json", "yaml"):
        click.echo(structured(data, output))
    elif output == "name":
        click.echo(name)
    else:
        text()


def changed(facts: Row, *, now: Row, then: Row, dry_run: bool) -> dict[str, Any]:
    """What a change tells as data: `facts`, and the fields that it changes, as it leaves them (`then`).

    A dry run leaves them as they are `now`, and says under `would` how a real run would.
    """
    return {**facts, **(now if dry_run else then), "dry_run": dry_run, **({"would": dict(then)} if dry_run else {})}


def structured(data: object, output: str) -> str:
    """Plain data as JSON or YAML text."""
    if output == "json":
        return json.dumps(data, indent=2, ensure_ascii=False, default=str)
    import yaml

    class Dumper(yaml.SafeDumper):
        """Short lists of plain values on one line."""

    Dumper.add_representer(list, _represent_list)
    plain = json.loads(json.dumps(data, default=str))
    text: str = yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text.rstrip("\n")


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    short = len(values) <= FLOW_VALUES and all(
        isinstance(each, int | float | None) or (isinstance(each, str) and len(each) <= FLOW_TEXT) for each in values
    )
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns, as wide as they need to be."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(headings), *cells]) for index in range(len(headings))]
    heading = "  ".join(text.ljust(width) for text, width in zip(headings, widths, strict=True)).rstrip()
    click.echo(click.style(heading, bold=True))
    for row in cells:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """Name and value, one a line."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {cell(value)}")


def cell(value: object) -> str:
    """A value as it stands in a table."""
    if value is None or value in ("", [], {}, ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(each) for each in value)
    return str(value)


def note(text: str) -> None:
    """Say something that is no data."""
    click.echo(text, err=True)


def is_animated() -> bool:
    """Whether standard error is a terminal that can show something moving."""
    return sys.stderr.isatty()


def when(at: str | None) -> str | None:
    """A time of the API or the registry (ISO 8601, UTC) to the second; the heading above says that it is UTC."""
    return at and at[:19].replace("T", " ")


def size(size_bytes: float | None) -> str | None:
    """Bytes for people."""
    if size_bytes is None:
        return None
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
