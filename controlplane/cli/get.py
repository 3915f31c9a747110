"""`ctl get`: lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from controlplane.cli.arguments import FLEET, MODEL, REPLICA
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import Column, Kind, Row, note, output_option, show_rows, size, when
from controlplane.core.errors import NotFound, Unavailable


def _rollout(row: Row) -> str | None:
    rollout = row["rollout"]
    return f"→{rollout['target']} {rollout['state']}" if rollout else None


def _copies(row: Row) -> list[str]:
    return [
        f"{each['model']}@{each['version']}" + ("" if each["state"] == "ready" else f"({each['state']})")
        for each in row["copies"]
    ]


def _why_not(row: Row) -> str:
    """For each version that may be asked for and is led nowhere, why; the table has no reason for what is loading."""
    why = {number: "ready on no replica yet" for number, replicas in row["pinned"].items() if not replicas}
    return "; ".join(f"{number}: {text}" for number, text in {**why, **row["reasons"]}.items())


MODELS = Kind(
    columns=(
        Column("NAME", lambda row: row["name"]),
        Column("STABLE", lambda row: row["stable"]),
        Column("VERSIONS", lambda row: row["versions"]),
        Column("ROLLOUT", _rollout),
        Column("ALIASES", lambda row: {k: v for k, v in row["aliases"].items() if k != "stable"}),
        Column("PREVIOUS", lambda row: row["previous_stable"], wide=True),
    ),
    empty="no models there",
)
VERSIONS = Kind(
    columns=(
        Column("VERSION", lambda row: f"{row['model']}@{row['version']}"),
        Column("ALIASES", lambda row: row["aliases"]),
        Column("DIGEST", lambda row: row["digest"][:12]),
        Column("CREATED (UTC)", lambda row: when(row["created_at"])),
        Column("BY", lambda row: row["actor"]),
        Column("STATE", lambda row: "deleted" if row["deleted_at"] else "there"),
        Column("BACKEND", lambda row: row.get("backend"), wide=True),
        Column("SIZE", lambda row: size(row.get("size_bytes")), wide=True),
        Column("LABELS", lambda row: row["labels"], wide=True),
    ),
    name=lambda row: f"{row['model']}@{row['version']}",
    empty="no versions there",
)
REPLICAS = Kind(
    columns=(
        Column("NAME", lambda row: row["name"]),
        Column("FLEET", lambda row: row["fleet"]),
        Column("SERVER", lambda row: "stopping" if row["stopping"] else row["server"]),
        Column("MODELS", _copies),
        Column("CRASHES", lambda row: row["crashes"]),
        Column(
            "GRPC",
            lambda row: row["endpoint"] and f"{row['endpoint']['host']}:{row['endpoint']['grpc_port']}",
            wide=True,
        ),
        Column("HEARD", lambda row: None if row["heard_s_ago"] is None else f"{row['heard_s_ago']}s ago", wide=True),
        Column("LEAKED", lambda row: size(row.get("leaked_bytes") or None), wide=True),
        Column("DISK FREE", lambda row: size(row["disk_free_bytes"]), wide=True),
        Column("WHY", lambda row: row["reason"]),
    ),
    empty="no replicas there",
)


def _or_unknown(count: int | None) -> str:
    return "?" if count is None else str(count)


def limits(row: Mapping[str, Any]) -> str:
    """Between which numbers of replicas a fleet moves now, or which it has by hand."""
    if row["by_hand"] is not None:
        return f"{row['by_hand']} by hand"
    scheduled = row.get("by_schedule")  # a controller of an earlier release doesn't tell
    least, most = scheduled or (row["min_replicas"], row["max_replicas"])
    size = str(least) if least == most else f"{least}–{most}"
    return f"{size} by schedule" if scheduled else size


FLEETS = Kind(
    columns=(
        Column("NAME", lambda row: row["name"] + (" (default)" if row["default"] else "")),
        Column("READY", lambda row: f"{_or_unknown(row['ready'])}/{_or_unknown(row['desired'])}"),
        Column("SIZE", limits),
        Column("MEMORY", lambda row: size(row["memory_bytes"])),
        Column("GPUS", lambda row: row["gpus"]),
        Column("SERVER", lambda row: row["server_version"]),
        Column("BACKENDS", lambda row: row["backends"], wide=True),
        Column("QUARANTINED", lambda row: [f"{each['model']}@{each['version']}" for each in row["quarantines"]]),
    ),
    empty="no fleets there",
)
ROUTES = Kind(
    columns=(
        Column("MODEL", lambda row: row["model"]),
        Column("UNVERSIONED", lambda row: [f"{each['version']}:{each['weight_percent']}%" for each in row["targets"]]),
        Column("REPLICAS", lambda row: sorted({name for each in row["targets"] for name in each["replicas"]})),
        Column("PINNED", lambda row: sorted(row["pinned"], key=int)),
        Column("WHY NOT", _why_not),
    ),
    name=lambda row: str(row["model"]),
    empty="no routes there",
)


class _Kinds(click.Group):
    """`ctl get model` is `ctl get models`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """By its plural, or by its singular."""
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, f"{cmd_name}s")


@click.group(cls=_Kinds)
def get() -> None:
    """List models, versions, replicas, fleets or routes."""


@get.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, type=MODEL)
@output_option
@pass_context
def models(context: Context, names: tuple[str, ...], output: str) -> None:
    """List the registry's models."""
    from controlplane.cli.show import model_row, read_models

    registry = context.registry()
    found, problems = read_models(registry, names)
    for key, problem in problems.items():
        note(f"warning: {key}: {problem}")
    if not found:
        note(f"registry: {registry.url}")
    show_rows([model_row(each) for each in found], MODELS, output)


@get.command()
@click.argument("names", metavar="[MODEL]...", nargs=-1, type=MODEL)
@click.option("--deleted", is_flag=True, help="Those that were deleted as well.")
@output_option
@pass_context
def versions(context: Context, names: tuple[str, ...], deleted: bool, output: str) -> None:
    """List the versions of the models that are named, or of all."""
    from controlplane.cli.show import read_models, version_row

    registry = context.registry()
    found, problems = read_models(registry, names)
    for key, problem in problems.items():
        note(f"warning: {key}: {problem}")
    rows = [
        version_row(registry, model, version, full=output not in ("table", "name"))
        for model in found
        for version in model.versions
        if deleted or version.deleted_at is None
    ]
    show_rows(rows, VERSIONS, output)


@get.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, type=REPLICA)
@output_option
@pass_context
def replicas(context: Context, names: tuple[str, ...], output: str) -> None:
    """List the replicas and what they hold."""
    with context.reader() as reader:
        show_rows(named(reader.get("/v1/replicas"), names, "replica"), REPLICAS, output)


@get.command()
@click.argument("names", metavar="[NAME]...", nargs=-1, type=FLEET)
@output_option
@pass_context
def fleets(context: Context, names: tuple[str, ...], output: str) -> None:
    """List the fleets; without a controller, what the registry knows of them."""
    show_rows(named(read_fleets(context), names, "fleet"), FLEETS, output)


@get.command()
@click.argument("names", metavar="[MODEL]...", nargs=-1, type=MODEL)
@output_option
@pass_context
def routes(context: Context, names: tuple[str, ...], output: str) -> None:
    """List where requests are led, by model."""
    with context.reader() as reader:
        show_rows(named(reader.get("/v1/routes"), names, "route", key="model"), ROUTES, output)


def read_fleets(context: Context) -> list[dict[str, Any]]:
    """The fleets as the controller knows them, or else as the registry does (`ready` None)."""
    try:
        with context.reader() as reader:
            found: list[dict[str, Any]] = reader.get("/v1/fleets")
            return found
    except Unavailable as error:
        from controlplane.cli.show import fleet_row

        note(f"from the registry alone: {error.what}")
        return [fleet_row(record) for record in context.registry().fleets().values()]


def named(rows: list[dict[str, Any]], names: tuple[str, ...], kind: str, key: str = "name") -> list[dict[str, Any]]:
    """Those rows that are asked for. Raises NotFound for a name that isn't there."""
    there = {row[key] for row in rows}
    for name in names:
        if name not in there:
            raise NotFound(f"there is no {kind} {name!r}", remedy=f"`ctl get {kind}s` lists them")
    return [row for row in rows if not names or row[key] in names]
