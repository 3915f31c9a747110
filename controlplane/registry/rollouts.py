"""What a promotion, its end and a rollback do to a model's document. Pure but for the time and fresh ids."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from controlplane.core.errors import Conflict, InvalidInput, NotFound
from controlplane.core.models import STABLE, Model, Rollout, Step, Version
from controlplane.registry.changes import history_item
from controlplane.registry.layout import checked


def version_of(model: Model, number: int) -> Version:
    """A version that is there and not deleted. Raises NotFound."""
    version = model.version(number)
    if version is None or version.deleted_at is not None:
        there = ", ".join(str(each.number) for each in model.versions if each.deleted_at is None) or "none"
        state = "has been deleted" if version is not None else "is not there"
        raise NotFound(
            f"{model.name}@{number} {state}; there is: {there}", field="version", remedy="name one of these versions"
        )
    return version


def promoted(
    model: Model, number: int, *, actor: str, reason: str, steps: tuple[Step, ...], deadline_s: float, action: str
) -> Model:
    """The model with a rollout to `number` under way; unchanged when that is stable already."""
    check_steps(steps, deadline_s)
    version_of(model, number)
    refuse_while_running(model)
    if model.stable == number:
        return model
    rollout = Rollout(
        id=secrets.token_hex(6),
        source=model.stable,
        target=number,
        steps=steps,
        reason=reason,
        actor=actor,
        started_at=datetime.now(UTC),
        deadline_s=deadline_s,
    )
    item = history_item(action, actor=actor, reason=reason, version=number, previous=model.stable)
    return replace(model, rollout=rollout, history=(*model.history, item))


def nothing_to_do(model: Model, *, actor: str) -> Rollout:
    """What promoting the stable version yields: the rollout that made it stable, or one that says the same."""
    done = model.rollout
    if done is not None and done.state == "succeeded" and done.target == model.stable:
        return done
    now, stable = datetime.now(UTC), model.aliases[STABLE]
    return Rollout(id="", source=stable, target=stable, state="succeeded", actor=actor, started_at=now, ended_at=now)


def refuse_while_running(model: Model) -> None:
    """Raise Conflict while a rollout is under way: one at a time."""
    running = model.running_rollout
    if running is not None:
        raise Conflict(
            f"a rollout of {model.name} to version {running.target} is under way ({running.id}, begun by "
            f"{running.actor} at {running.started_at:%Y-%m-%d %H:%M:%S} UTC)",
            remedy=f"wait for its end (`ctl explain {model.name}`), or end it with `ctl rollback {model.name}`",
        )


def rolled_back(model: Model, *, actor: str, reason: str, steps: tuple[Step, ...], deadline_s: float) -> Model:
    """The model with its rollout aborted, or else on its way to what was stable before."""
    running = model.running_rollout
    if running is not None:
        ended = replace(running, state="aborted", reason=reason or running.reason, ended_at=datetime.now(UTC))
        item = history_item("abort", actor=actor, reason=reason, version=model.stable, previous=running.target)
        return replace(model, rollout=ended, history=(*model.history, item))
    if model.previous_stable is None:
        raise NotFound(
            f"{model.name} has no version to go back to"
            + (": nothing is stable" if model.stable is None else f" from {model.stable}"),
            remedy=f"`ctl get versions {model.name}` lists what can be promoted",
        )
    return promoted(
        model,
        model.previous_stable,
        actor=actor,
        reason=reason,
        steps=steps,
        deadline_s=deadline_s,
        action="rollback",
    )


def retired(model: Model, *, actor: str, reason: str) -> Model:
    """The model of which nothing is stable any more. What was is where a rollback goes."""
    refuse_while_running(model)
    if model.stable is None:
        raise NotFound(f"nothing of {model.name} is stable", field="model", remedy="there is nothing to retire")
    aliases = {name: number for name, number in model.aliases.items() if name != STABLE}
    item = history_item("retire", actor=actor, reason=reason, previous=model.stable)
    return replace(model, aliases=aliases, previous_stable=model.stable, history=(*model.history, item))


def finished(model: Model, rollout_id: str, *, state: Literal["succeeded", "failed"], reason: str, actor: str) -> Model:
    """The model with this rollout ended; unchanged when it is not under way any more. Success moves `stable`."""
    running = model.running_rollout
    if running is None or running.id != rollout_id:
        return model
    ended = replace(running, state=state, reason=reason or running.reason, ended_at=datetime.now(UTC))
    done = state == "succeeded"
    item = history_item(
        "succeed" if done else "fail", actor=actor, reason=reason, version=running.target, previous=running.source
    )
    model = replace(model, rollout=ended, history=(*model.history, item))
    if not done:
        return model
    aliases: Mapping[str, int] = {**model.aliases, STABLE: running.target}
    previous = running.source if running.source is not None else model.previous_stable
    return replace(model, aliases=aliases, previous_stable=previous if previous != running.target else None)


def check_steps(steps: tuple[Step, ...], deadline_s: float) -> None:
    """Raise InvalidInput unless the steps rise to 100 % and there is time for them."""
    weights = [step.weight_percent for step in steps]
    if not weights or weights != sorted(set(weights)) or weights[0] < 1 or weights[-1] != 100:
        raise InvalidInput(
            f"a rollout can't have the steps {weights}", field="steps", remedy="let them rise, from 1 or more to 100"
        )
    if not 0 < deadline_s < float("inf"):
        raise InvalidInput(f"{deadline_s} s is no deadline", field="deadline_s", remedy="give a number of seconds")


# Aliases.


def aliased(model: Model, alias: str, number: int, *, actor: str, reason: str) -> Model:
    """The model with `alias` pointing at a version; unchanged when it does so already."""
    check_alias(model.name, alias)
    version_of(model, number)
    before = model.aliases.get(alias)
    if before == number:
        return model
    item = history_item(f"alias {alias}", actor=actor, reason=reason, version=number, previous=before)
    return replace(model, aliases={**model.aliases, alias: number}, history=(*model.history, item))


def unaliased(model: Model, alias: str, *, actor: str, reason: str) -> Model:
    """The model without `alias`. Raises NotFound when it has no such alias."""
    check_alias(model.name, alias)
    if alias not in model.aliases:
        there = ", ".join(sorted(model.aliases)) or "none"
        raise NotFound(f"{model.name} has no alias {alias!r}; it has: {there}", field="alias")
    aliases = {name: number for name, number in model.aliases.items() if name != alias}
    item = history_item(f"unalias {alias}", actor=actor, reason=reason, previous=model.aliases[alias])
    return replace(model, aliases=aliases, history=(*model.history, item))


def check_alias(name: str, alias: str) -> None:
    """Raise InvalidInput for what can't be an alias that a person sets."""
    if checked(alias, "alias") == STABLE:
        raise InvalidInput(
            "only a rollout moves 'stable'", field="alias", remedy=f"`ctl promote {name} VERSION`, or `ctl rollback`"
        )
    if alias.isdigit():
        raise InvalidInput(
            f"the alias {alias!r} looks like a version", field="alias", remedy="let it hold a letter as well"
        )
