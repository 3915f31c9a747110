"""How far a rollout is: what it waits for, which share the target gets, whether it has ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from controlplane.core.models import Rollout
from controlplane.core.names import Key, Reason
from controlplane.core.routes import RouteTable, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetState:
    """What is known of a rollout's target.

    `blocked`: why it can never be served as things are. `failed`: what the model itself did wrong. `planned` replicas
    shall hold it, `ready` ones have proved it; `waiting`: what the others are doing. `room_is_made`: more replicas
    shall hold it as soon as something else has left them.
    """

    blocked: Reason | None = None
    failed: Reason | None = None
    planned: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    waiting: str = ""
    room_is_made: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a rollout stands: the share of unversioned requests that the target shall get; `end` when it is over."""

    reason: Reason
    weight_percent: int = 0
    end: Literal["succeeded", "failed"] | None = None


def progress(
    rollout: Rollout, key: Key, target: TargetState, tables: Iterable[RouteTable | None], known_s: float
) -> Progress:
    """Judge a running rollout.

    `tables` are those that live gateways have confirmed (None: unknown yet). `known_s`: for how many seconds it has
    been tried; when somebody wrote it says less, as there may have been no controller, and it was another clock.
    """
    trouble = target.blocked or target.failed
    if trouble is not None:
        return Progress(reason=trouble, end="failed")
    share = rollout.steps[min(rollout.step, len(rollout.steps) - 1)].weight_percent
    complete = target.planned and set(target.planned) <= set(target.ready) and not target.room_is_made
    where = f"{key} is ready on {', '.join(target.ready)}"
    if complete and share == 100 and all(table is not None and _leads_all(table, key) for table in tables):
        done = Reason(code="SERVED", text=f"{where} and every gateway leads there")
        return Progress(reason=done, weight_percent=share, end="succeeded")
    if complete:
        waiting = Reason(code="CONFIRMING", text=f"{where}; gateways are switching")
    else:
        waiting = Reason(code="LOADING", text=target.waiting or f"{key} waits for a replica")
    if known_s > rollout.deadline_s:
        text = f"{key} was not served after {rollout.deadline_s:.0f} s: {waiting.text}"
        return Progress(reason=Reason(code="DEADLINE", text=text), end="failed")
    return Progress(reason=waiting, weight_percent=share if complete else 0)


def _leads_all(table: RouteTable, key: Key) -> bool:
    """Whether a table sends every unversioned request of the model to this version, and somewhere."""
    route = table.routes.get(key.model)
    if route is None or len(route.targets) != 1:
        return False
    target: Target = route.targets[0]
    return target.version == key.version and target.pool is not None
