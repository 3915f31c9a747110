"""`ctl promote` and `ctl rollback`: moving what is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from controlplane.cli.arguments import (
    DURATION,
    MODEL,
    MODEL_OR_MENTION,
    VERSION,
    Mention,
    Reference,
    dry_run_option,
    reason_option,
)
from controlplane.cli.context import Context, pass_context
from controlplane.cli.output import DRY_RUN, Row, changed, note, output_option, show_one
from controlplane.core.errors import InvalidInput
from controlplane.core.models import Rollout

if TYPE_CHECKING:
    from controlplane.registry import Registry

AFTER_DEADLINE_S = 60.0
"""How much longer than the rollout's own deadline to wait: its end, and the reason, have to be written then."""


def rollout_options(command: Callable[..., None]) -> Callable[..., None]:
    """What both commands take."""
    options = (
        click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is served, or failed."),
        click.option(
            "--timeout", "timeout_s", type=DURATION, help="How long to wait.  [default: the deadline and a minute]"
        ),
        click.option(
            "--deadline",
            "deadline_s",
            type=DURATION,
            default="10m",
            show_default=True,
            help="When it fails if the target isn't ready.",
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
@click.argument("name", metavar="NAME[@VERSION]", type=MODEL_OR_MENTION)
@click.argument("version", type=VERSION, required=False)
@rollout_options
def promote(
    context: Context,
    *,
    name: str,
    version: str | None,
    wait: bool,
    timeout_s: float | None,
    deadline_s: float,
    reason: str,
    dry_run: bool,
    output: str,
) -> None:
    """Make VERSION (a number or an alias) of the model NAME the one that unversioned requests get.

    It waits until the version is ready on its replicas and every gateway leads there. Exit status 1: the version failed
    and what was stable stays. 3: the promotion is written, and was not carried out in time.
    """
    registry = context.registry()
    target = _target(registry, name, version)
    rollout = registry.promote(
        target.model, target.version, actor=context.actor, reason=reason, deadline_s=deadline_s, dry_run=dry_run
    )
    _finish(context, registry, target.model, rollout, wait=wait, timeout_s=timeout_s, dry_run=dry_run, output=output)


def _target(registry: Registry, name: str, version: str | None) -> Reference:
    """The version that is to be promoted, from `NAME VERSION` or `NAME@VERSION`."""
    from controlplane.cli.references import resolve

    model, _, mentioned = name.partition("@")
    if mentioned and version is not None:
        raise InvalidInput(
            f"{name} names a version, and so does {version}",
            field="VERSION",
            remedy=f"`ctl promote {name}` or `ctl promote {model} {version}`",
        )
    wanted = mentioned or version
    if not wanted:
        raise InvalidInput("which version?", field="VERSION", remedy=f"`ctl get versions {model}` lists them")
    return resolve(registry, Mention(model, wanted))


@click.command()
@click.argument("name", type=MODEL)
@rollout_options
def rollback(
    context: Context,
    *,
    name: str,
    wait: bool,
    timeout_s: float | None,
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
    timeout_s: float | None,
    dry_run: bool,
    output: str,
) -> None:
    facts = {"name": name, "source": rollout.source, "target": rollout.target}
    target, source = f"{name}@{rollout.target}", _version(name, rollout.source)
    if dry_run:
        sentence, now, then = _would(rollout, target, source)
        data = changed(facts, now=now, then=then, dry_run=True)
        show_one(data, target, output, lambda: click.echo(sentence + DRY_RUN))
        return
    state: str = rollout.state
    if state == "running" and wait:
        from controlplane.cli.waiting import wait_for

        note(f"rollout {rollout.id}: {name} from {source} to {target}")
        wait_s = timeout_s if timeout_s is not None else rollout.deadline_s + AFTER_DEADLINE_S
        try:
            wait_for(context, registry, name, rollout, wait_s)
        except KeyboardInterrupt:
            note(f"the rollout to {target} goes on; `ctl explain {name}` tells more, `ctl rollback {name}` ends it")
            raise
        state = "succeeded"
    stable = rollout.target if state == "succeeded" else rollout.source
    sentences = {
        "succeeded": f"{target} is stable",
        "aborted": f"the rollout to {target} is aborted; stable is {source}",
        "running": f"{target} is to become stable",
    }
    data = {**facts, "rollout": rollout.id or None, "state": state, "stable": stable, "dry_run": False}
    show_one(data, target, output, lambda: click.echo(sentences[state]))


def _would(rollout: Rollout, target: str, source: str) -> tuple[str, Row, Row]:
    """What a real run would do: as a sentence, and the fields that it would change, as they are and would be."""
    if rollout.state == "running":  # by this very run, so that it will never be: its id means nothing
        stands: dict[str, object] = {"rollout": None, "state": None, "stable": rollout.source}
        return f"{target} would become stable", stands, {"stable": rollout.target}
    if rollout.state == "aborted":
        stands = {"rollout": rollout.id, "state": "running", "stable": rollout.source}
        return f"the rollout to {target} would be aborted; stable is {source}", stands, {"state": "aborted"}
    stands = {"rollout": rollout.id or None, "state": rollout.state, "stable": rollout.target}
    return f"{target} is stable already", stands, {}


def _version(name: str, number: int | None) -> str:
    return "nothing" if number is None else f"{name}@{number}"
