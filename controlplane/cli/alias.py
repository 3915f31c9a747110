"""`ctl alias`: other names for versions."""

from __future__ import annotations

import click

from controlplane.cli.arguments import MODEL, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import output_option, show_one
from controlplane.core.errors import InvalidInput


@click.command()
@click.argument("name", type=MODEL)
@click.argument("assignment", metavar="ALIAS=VERSION")
@click.option("--delete", is_flag=True, help="Remove the alias (give only its name).")
@reason_option
@dry_run_option
@output_option
@pass_context
def alias(
    context: Context, *, name: str, assignment: str, delete: bool, reason: str, dry_run: bool, output: str
) -> None:
    """Point an alias of the model NAME at a version, as in `ctl alias magika candidate=2`.

    What an alias points at can be asked for by its version. `stable` is moved by `ctl promote` alone.
    """
    registry = context.registry()
    alias_name, separator, number = assignment.partition("=")
    if delete:
        if separator:
            raise InvalidInput("an alias is removed by its name alone", field="ALIAS", remedy=f"--delete {alias_name}")
        model = registry.delete_alias(name, alias_name, actor=context.actor, reason=reason, dry_run=dry_run)
        sentence = f"{name} has no alias {alias_name} any more"
    else:
        if not separator or not number.isascii() or not number.isdigit():
            raise InvalidInput(f"{assignment!r} is no alias", field="ALIAS=VERSION", remedy="write it as candidate=2")
        model = registry.set_alias(name, alias_name, int(number), actor=context.actor, reason=reason, dry_run=dry_run)
        sentence = f"{alias_name} is {name}@{number}"
    text = sentence + (" (dry run: nothing was changed)" if dry_run else "")
    show_one({"name": name, "aliases": dict(model.aliases)}, name, output, lambda: click.echo(text))
