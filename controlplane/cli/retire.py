"""`ctl retire`: a model is served no more, its versions stay."""

from __future__ import annotations

import click

from controlplane.cli.arguments import MODEL, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import DRY_RUN, changed, output_option, show_one


@click.command()
@click.argument("name", type=MODEL)
@reason_option
@dry_run_option
@output_option
@pass_context
def retire(context: Context, *, name: str, reason: str, dry_run: bool, output: str) -> None:
    """Serve the model NAME no more: no version of it is stable.

    What is in flight is answered, then its copies leave the servers; what an alias points at may still be asked for,
    and steps of ensembles stay loaded. `ctl rollback NAME` brings back what was stable, `ctl delete` removes versions.
    """
    registry = context.registry()
    before = registry.model(name).stable
    model = registry.retire(name, actor=context.actor, reason=reason, dry_run=dry_run)
    data = changed({"name": name}, now={"stable": before}, then={"stable": model.stable}, dry_run=dry_run)
    kept = ", but for what aliases point at" if model.aliases else ""
    text = (
        f"{name} would be served no more{kept}{DRY_RUN}"
        if dry_run
        else f"{name} is served no more{kept}; `ctl rollback {name}` brings {name}@{model.previous_stable} back"
    )
    show_one(data, name, output, lambda: click.echo(text))
