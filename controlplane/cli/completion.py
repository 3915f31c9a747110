"""`ctl completion`: what a shell needs to complete commands, models and versions."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from controlplane.core.errors import InvalidInput


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script, as in `source <(ctl completion bash)`."""
    from controlplane.cli.commands import ctl

    kind = get_completion_class(shell)
    if kind is None:
        raise InvalidInput(f"there is no completion for {shell}")
    if shell == "bash":  # else an `@` would split a word, and what is after it would never be completed
        click.echo("COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}")
    click.echo(kind(ctl, {}, "ctl", "_CTL_COMPLETE").source())
