"""`ctl describe`: all about one thing."""

from __future__ import annotations

from typing import Any

import click

from controlplane.cli.arguments import FLEET, MENTION, MODEL, REPLICA, Mention
from controlplane.cli.context import Context, pass_context
from controlplane.cli.get import FLEETS, REPLICAS, ROUTES, VERSIONS, named, read_fleets
from controlplane.cli.output import (
    Kind,
    note,
    output_option,
    print_fields,
    print_table,
    show_one,
    show_rows,
    size,
    structured,
    when,
)
from controlplane.cli.top import COPIES
from controlplane.core.errors import ControlPlaneError, Unavailable


@click.group()
def describe() -> None:
    """Show all about one model, version, replica, fleet or route."""


@describe.command()
@click.argument("name", type=MODEL)
@output_option
@pass_context
def model(context: Context, name: str, output: str) -> None:
    """Show a model: versions, aliases, rollout, where it is served and why."""
    from controlplane.cli.show import model_row, version_row

    registry = context.registry()
    document = registry.model(name)
    rows = [version_row(registry, document, each, full=True) for each in document.versions]
    served, why_not = _asked(context, f"/v1/models/{name}/explain")
    data = {**model_row(document), "versions": rows, "served": served}

    def text() -> None:
        rollout = document.rollout
        fields = {
            "Name": name,
            "Stable": document.stable,
            "Previous": document.previous_stable,
            "Aliases": {alias: number for alias, number in document.aliases.items() if alias != "stable"},
            "Rollout": rollout and f"{rollout.id} to {rollout.target}: {rollout.state} {rollout.reason}".rstrip(),
        }
        print_fields(fields)
        click.echo()
        print_table(
            [column.heading for column in VERSIONS.columns],
            [[column.cell(row) for column in VERSIONS.columns] for row in rows],
        )
        click.echo()
        if served is None:
            note(f"where it is served is not known: {why_not}")
            return
        show_rows([{**copy, **(copy["signals"] or {})} for copy in served["copies"]], COPIES, output)
        click.echo()
        for reason in {each["text"]: each for each in served["reasons"]}.values():
            click.echo(f"{reason['code'] + ': ' if output == 'wide' else ''}{reason['text']}")

    show_one(data, name, output, text)


@describe.command()
@click.argument("mention", metavar="MODEL@VERSION", type=MENTION)
@output_option
@pass_context
def version(context: Context, mention: Mention, output: str) -> None:
    """Show a version: its entry and its files."""
    from controlplane.cli.references import manifest_of, resolve, version_record
    from controlplane.cli.show import plain, version_row
    from controlplane.entry.parse import to_data

    registry = context.registry()
    reference = resolve(registry, mention)
    record = version_record(registry, reference)
    manifest = manifest_of(registry, reference)
    row = version_row(registry, registry.model(reference.model), record, full=True)
    entry = to_data(manifest.entry)
    data = {**row, "entry": entry, "files": plain(manifest.files)}

    def text() -> None:
        print_fields(
            {
                "Version": str(reference),
                "Digest": record.digest,
                "Aliases": row["aliases"],
                "Created": f"{when(row['created_at'])} UTC by {record.actor}",
                "Deleted": row["deleted_at"] and f"{when(row['deleted_at'])} UTC",
                "Labels": row["labels"],
                "Size": size(manifest.size_bytes),
            }
        )
        click.echo()
        print_table(
            ["FILE", "SIZE", "SHA-256"], [(file.path, size(file.size_bytes), file.sha256) for file in manifest.files]
        )
        click.echo()
        click.echo(structured(entry, "yaml"))

    show_one(data, str(reference), output, text)


@describe.command()
@click.argument("name", type=REPLICA)
@output_option
@pass_context
def replica(context: Context, name: str, output: str) -> None:
    """Show a replica."""
    with context.reader() as reader:
        (row,) = named(reader.get("/v1/replicas"), (name,), "replica")
    _show(row, REPLICAS, output)


@describe.command()
@click.argument("name", type=FLEET)
@output_option
@pass_context
def fleet(context: Context, name: str, output: str) -> None:
    """Show a fleet: its shape, its servers, its quarantines and why it is as it is."""
    (row,) = named(read_fleets(context), (name,), "fleet")
    told, _ = _asked(context, f"/v1/fleets/{name}/explain")
    _show({**row, **(told or {})}, FLEETS, output)


@describe.command()
@click.argument("name", metavar="MODEL", type=MODEL)
@output_option
@pass_context
def route(context: Context, name: str, output: str) -> None:
    """Show a model's route."""
    with context.reader() as reader:
        (row,) = named(reader.get("/v1/routes"), (name,), "route", key="model")
    _show(row, ROUTES, output)


def _show(row: dict[str, Any], kind: Kind, output: str) -> None:
    show_one(row, kind.name(row), output, lambda: click.echo(structured(row, "yaml")))


def _asked(context: Context, path: str) -> tuple[dict[str, Any] | None, str]:
    """What the controller says, or why it says nothing."""
    try:
        with context.reader() as reader:
            return reader.get(path), ""
    except Unavailable as error:
        return None, error.what
    except ControlPlaneError as error:
        return None, str(error)
