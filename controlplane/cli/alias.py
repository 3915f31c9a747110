"""`ctl alias`: other names for versions."""

from __future__ import annotations

import click

from controlplane.cli.arguments import ASSIGNMENT, MODEL, Mention, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import DRY_RUN, Column, Kind, changed, output_option, show_one, show_rows
from controlplane.core.errors import InvalidInput

ALIASES = Kind(
    columns=(
        Column("ALIAS", lambda row: row["name"]),
        Column("VERSION", lambda row: f"{row['model']}@{row['version']}"),
    ),
    empty="no aliases there",
)


@click.command()
@click.argument("name", type=MODEL)
@click.argument("assignment", metavar="[ALIAS=VERSION]", type=ASSIGNMENT, required=False)
@click.option("--delete", is_flag=True, help="Remove the alias (give only its name).")
@reason_option
@dry_run_option
@output_option
@pass_context
def alias(
    context: Context, *, name: str, assignment: str | None, delete: bool, reason: str, dry_run: bool, output: str
) -> None:
    """Point an alias of the model NAME at a version, as in `ctl alias magika candidate=2`; without one, list them.

    What an alias points at can be asked for by its version. `stable` is moved by `ctl promote` alone.
    """
    from controlplane.cli.references import resolve

    registry = context.registry()
    aliases = registry.model(name).aliases
    if assignment is None:
        if delete:
            raise InvalidInput("which alias?", field="ALIAS", remedy=f"`ctl alias {name}` lists them")
        rows = [{"name": each, "model": name, "version": number} for each, number in sorted(aliases.items())]
        show_rows(rows, ALIASES, output)
        return
    alias_name, separator, version = assignment.partition("=")
    if delete:
        if separator:
            raise InvalidInput("an alias is removed by its name alone", field="ALIAS", remedy=f"--delete {alias_name}")
        model = registry.delete_alias(name, alias_name, actor=context.actor, reason=reason, dry_run=dry_run)
        sentence = f"{name} {'would have' if dry_run else 'has'} no alias {alias_name} any more"
    else:
        if not alias_name or not version:
            raise InvalidInput(f"{assignment!r} is no alias", field="ALIAS=VERSION", remedy="write it as candidate=2")
        reference = resolve(registry, Mention(name, version))
        model = registry.set_alias(
            name, alias_name, reference.version, actor=context.actor, reason=reason, dry_run=dry_run
        )
        sentence = f"{alias_name} {'would be' if dry_run else 'is'} {reference}"
    data = changed(
        {"name": name}, now={"aliases": dict(aliases)}, then={"aliases": dict(model.aliases)}, dry_run=dry_run
    )
    show_one(data, name, output, lambda: click.echo(sentence + (DRY_RUN if dry_run else "")))
