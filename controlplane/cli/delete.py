"""`ctl delete`: a version goes, its number stays taken."""

from __future__ import annotations

import click

from controlplane.cli.arguments import MENTION, Mention, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import changed, output_option, show_one


@click.command()
@click.argument("mention", metavar="MODEL@VERSION", type=MENTION)
@reason_option
@dry_run_option
@output_option
@pass_context
def delete(context: Context, *, mention: Mention, reason: str, dry_run: bool, output: str) -> None:
    """Delete a version that nothing points at. Its files go with `ctl gc` after the grace period."""
    from controlplane.cli.references import resolve

    registry = context.registry()
    reference = resolve(registry, mention)
    registry.delete_version(reference.model, reference.version, actor=context.actor, reason=reason, dry_run=dry_run)
    data = changed(reference._asdict(), now={"deleted": False}, then={"deleted": True}, dry_run=dry_run)
    text = f"{reference} {'would be deleted' if dry_run else 'is deleted'}"
    show_one(data, str(reference), output, lambda: click.echo(text))
