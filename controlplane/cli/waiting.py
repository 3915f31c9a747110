"""Waits until a rollout has ended, and says what it waits for."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Self

from controlplane.cli.context import Context, Reads
from controlplane.cli.output import note
from controlplane.core.errors import Conflict, ControlPlaneError, DeadlineExceeded, LoadFailed, Unavailable
from controlplane.core.models import Model, Rollout
from controlplane.registry import Registry

LOOK_MIN_S, LOOK_MAX_S, LOOK_MORE = 0.1, 1.0, 1.3
"""The pause between two looks: short at first, when most rollouts end, then longer with each look."""

CONTROLLER_AWAY_S = 10.0
"""How long a controller that was there may be silent: it may just be starting again."""


def wait_for(context: Context, registry: Registry, name: str, rollout: Rollout, timeout_s: float) -> Model:
    """The model's document when the rollout has succeeded.

    Raises LoadFailed when it failed, Conflict when somebody ended it, DeadlineExceeded when there is no controller to
    carry it out or the time is over: the rollout is written and goes on.
    """
    with _Watcher(context, name) as watcher:
        return _wait(registry, name, rollout, timeout_s, watcher)


def _wait(registry: Registry, name: str, rollout: Rollout, timeout_s: float, watcher: _Watcher) -> Model:
    deadline = time.monotonic() + timeout_s
    pause_s = LOOK_MIN_S
    while True:
        model = registry.model(name)
        present = model.rollout
        if present is None or present.id != rollout.id:
            raise Conflict(f"the rollout of {name} to version {rollout.target} was replaced by another one")
        if present.state == "succeeded":
            return model
        if present.state == "failed":
            kept = f"; {name}@{model.stable} stays stable" if model.stable is not None else ""
            raise LoadFailed(f"{name}@{rollout.target} was not promoted: {present.reason}{kept}")
        if present.state == "aborted":
            raise Conflict(f"the rollout of {name} to version {rollout.target} was aborted: {present.reason or '-'}")
        watcher.look(rollout)
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"{name}@{rollout.target} is not stable after {timeout_s:.0f} s; it waits for: {watcher.said or '-'}",
                remedy=f"the rollout goes on; `ctl explain {name}` tells more, `ctl rollback {name}` ends it",
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * LOOK_MORE, LOOK_MAX_S)


class _Watcher:
    """Asks the controller why it takes so long, and says so when the answer changes."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self._name = name
        self._heard_at: float | None = None
        self._silent_since = time.monotonic()
        self._connection = contextlib.ExitStack()
        self._reader: Reads | None = None
        self.said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def look(self, rollout: Rollout) -> None:
        try:
            told = self._explained()
        except Unavailable as error:
            self._silence(rollout, error)
            return
        except ControlPlaneError:
            return  # it has not read the registry yet
        self._silent_since = time.monotonic()
        self._heard_at = self._silent_since
        known = told.get("rollout") or {}
        if (known.get("target"), known.get("state")) != (rollout.target, "running"):
            return  # it speaks of what was before: it has not read this rollout yet
        text = "; ".join(dict.fromkeys(each["text"] for each in told["reasons"]))
        if text and text != self.said:
            note(f"waiting: {text}")
            self.said = text

    def _explained(self) -> Any:
        """What the controller says. One connection for all looks: to make one costs far more than to ask."""
        if self._reader is None:
            self._reader = self._connection.enter_context(self._context.reader())
        try:
            return self._reader.get(f"/v1/models/{self._name}/explain")
        except Unavailable:
            self._connection.close()  # the next controller may answer elsewhere
            self._reader = None
            raise

    def _silence(self, rollout: Rollout, error: Unavailable) -> None:
        on_kubernetes = self._context.on_kubernetes  # where controllers come by themselves
        never_there = self._heard_at is None and not on_kubernetes and not self._context.home.controller_file.exists()
        if never_there or time.monotonic() - self._silent_since > CONTROLLER_AWAY_S:
            raise DeadlineExceeded(
                f"recorded, not served: {self._name}@{rollout.target} is to be promoted, and no controller answers "
                f"({error.what})",
                remedy="a controller that leads carries it out: `ctl doctor` says what is missing; or use --no-wait"
                if on_kubernetes
                else "start it with `ctl up`: it then carries the rollout out; or use --no-wait",
            ) from error
