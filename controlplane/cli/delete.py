"""`ctl delete`: a version goes, its number stays taken."""

from __future__ import annotations

import click

from controlplane.cli.arguments import REFERENCE, Reference, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context


@click.command()
@click.argument("reference", metavar="MODEL@VERSION", type=REFERENCE)
@reason_option
@dry_run_option
@pass_context
def delete(context: Context, reference: Reference, reason: str, dry_run: bool) -> None:
    """Delete a version that nothing points at. Its files go with `ctl gc` after the grace period."""
    context.registry().delete_version(
        reference.model, reference.version, actor=context.actor, reason=reason, dry_run=dry_run
    )
    click.echo(f"{reference} {'would be deleted' if dry_run else 'is deleted'}")
