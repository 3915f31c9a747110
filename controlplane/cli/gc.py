"""`ctl gc`: files that no version needs any more."""

from __future__ import annotations

from dataclasses import asdict

import click

from controlplane.cli.arguments import DURATION, dry_run_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import output_option, show_one, size


@click.command()
@click.option(
    "--grace",
    "grace_s",
    type=DURATION,
    default="7d",
    show_default=True,
    help="Leave alone what is younger, and what was deleted since. Below an hour, only while nobody registers.",
)
@dry_run_option
@output_option
@pass_context
def gc(context: Context, grace_s: float, dry_run: bool, output: str) -> None:
    """Remove files that no version needs, and the rests of uploads that were cut off."""
    report = context.registry().gc(grace_s, dry_run=dry_run)

    def text() -> None:
        verb = "would be removed" if dry_run else "removed"
        click.echo(f"{len(report.removed)} files {verb} ({size(report.removed_bytes)})")
        click.echo(f"{report.kept} files kept ({size(report.kept_bytes)})")
        if report.uploads_swept:
            click.echo(f"{report.uploads_swept} unfinished uploads removed")

    show_one(asdict(report), "\n".join(report.removed), output, text)
