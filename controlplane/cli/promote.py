"""`ctl promote` and `ctl rollback`: moving what is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from controlplane.cli.arguments import DURATION, MODEL, dry_run_option, reason_option
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import note, output_option, show_one
from controlplane.core.errors import InvalidInput
from controlplane.core.models import Rollout

if TYPE_CHECKING:
    from controlplane.registry import Registry


def rollout_options(command: Callable[..., None]) -> Callable[..., None]:
    """What both commands take."""
    options = (
        click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is served, or failed."),
        click.option("--timeout", "timeout_s", type=DURATION, default="10m", show_default=True, help="How long."),
        click.option(
            "--deadline", "deadline_s", type=DURATION, default="10m", help="When it fails if the target isn't ready."
        ),
        reason_option,
        dry_run_option,
        output_option,
        pass_context,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("name", metavar="NAME[@VERSION]", type=MODEL)
@click.argument("version", type=click.IntRange(min=1), required=False)
@rollout_options
def promote(
    context: Context,
    *,
    name: str,
    version: int | None,
    wait: bool,
    timeout_s: float,
    deadline_s: float,
    reason: str,
    dry_run: bool,
    output: str,
) -> None:
    """Make VERSION of the model NAME the one that unversioned requests get.

    It waits until the version is ready on its replicas and every gateway leads there. Exit status 1: the version failed
    and what was stable stays. 3: the promotion is written, and was not carried out in time.
    """
    model, _, number = name.rpartition("@")
    if model and number.isdigit() and version is None:
        name, version = model, int(number)
    if version is None:
        raise InvalidInput("which version?", field="VERSION", remedy=f"`ctl get versions {name}` lists them")
    registry = context.registry()
    rollout = registry.promote(
        name, version, actor=context.actor, reason=reason, deadline_s=deadline_s, dry_run=dry_run
    )
    _finish(context, registry, name, rollout, wait=wait, timeout_s=timeout_s, dry_run=dry_run, output=output)


@click.command()
@click.argument("name", type=MODEL)
@rollout_options
def rollback(
    context: Context,
    *,
    name: str,
    wait: bool,
    timeout_s: float,
    deadline_s: float,
    reason: str,
    dry_run: bool,
    output: str,
) -> None:
    """Abort the rollout of NAME that is under way, or else go back to what was stable before."""
    registry = context.registry()
    rollout = registry.rollback(name, actor=context.actor, reason=reason, deadline_s=deadline_s, dry_run=dry_run)
    _finish(context, registry, name, rollout, wait=wait, timeout_s=timeout_s, dry_run=dry_run, output=output)


def _finish(
    context: Context,
    registry: Registry,
    name: str,
    rollout: Rollout,
    *,
    wait: bool,
    timeout_s: float,
    dry_run: bool,
    output: str,
) -> None:
    state: str = rollout.state
    if state == "running" and wait and not dry_run:
        from controlplane.cli.waiting import wait_for

        note(f"rollout {rollout.id}: {name} from {_version(name, rollout.source)} to {name}@{rollout.target}")
        wait_for(context, registry, name, rollout, timeout_s)
        state = "succeeded"
    stable = {"succeeded": rollout.target, "aborted": rollout.source}.get(state, rollout.source)
    data = {
        "name": name,
        "rollout": rollout.id or None,
        "source": rollout.source,
        "target": rollout.target,
        "state": state,
        "stable": stable,
        "dry_run": dry_run,
    }
    sentences = {
        "succeeded": f"{name}@{rollout.target} is stable",
        "aborted": f"the rollout to {name}@{rollout.target} is aborted; stable is {_version(name, rollout.source)}",
        "running": f"{name}@{rollout.target} is to become stable",
    }
    text = sentences[state] + (" (dry run: nothing was changed)" if dry_run else "")
    show_one(data, f"{name}@{rollout.target}", output, lambda: click.echo(text))


def _version(name: str, number: int | None) -> str:
    return "nothing" if number is None else f"{name}@{number}"
