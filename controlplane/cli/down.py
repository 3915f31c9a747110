"""`ctl down`: ends the system of a home."""

from __future__ import annotations

import click

from controlplane.cli.arguments import dry_run_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.up import end


@click.command()
@click.option("--timeout", "timeout_s", type=float, default=60.0, show_default=True, help="Seconds to wait.")
@dry_run_option
@pass_context
def down(context: Context, timeout_s: float, dry_run: bool) -> None:
    """End the system of this home: its gateway, controller, agents and servers. The registry stays."""
    context.refuse_kubernetes("down", "`helm uninstall RELEASE` ends one; the bucket stays")
    if dry_run:
        from controlplane.cli.would import print_end

        print_end(context.home)
        return
    ended = end(context.home, timeout_s=timeout_s)
    click.echo("stopped" if ended else f"nothing was running for {context.home.root}", err=True)
