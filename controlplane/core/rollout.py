"""How far a rollout is: what it waits for, which share the target gets, whether it has ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from controlplane.core.census import Census
from controlplane.core.fleets import quarantine_of
from controlplane.core.models import Rollout
from controlplane.core.names import Key, Place, Reason
from controlplane.core.placement.terms import Placement
from controlplane.core.routes import RouteTable, Target
from controlplane.core.snapshot import Snapshot


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


def confirmed(snapshot: Snapshot, now: float) -> list[RouteTable | None]:
    """The tables of those gateways that are heard (None: not known yet). Where none is, of those that may be there
    all the same: that nobody objects is no confirmation."""
    settings, gateways = snapshot.settings, snapshot.gateways.values()
    live = [each.table for each in gateways if now - each.heard_at <= settings.gateway_live_s]
    return live or [None for each in gateways if now - each.heard_at <= settings.gateway_lost_s]


def target_state(
    key: Key, snapshot: Snapshot, census: Census, placements: Mapping[str, Placement], may_grow: Collection[str]
) -> TargetState:
    """How a rollout's target is on its fleet. `may_grow`: the fleets that may get one more replica."""
    fleet = census.fleet(key)
    if fleet is None:
        unread = census.blocked[key].code == "UNREAD"
        return TargetState(waiting=census.blocked[key].text) if unread else TargetState(blocked=census.blocked[key])
    quarantine = quarantine_of(snapshot.fleets[fleet], key, snapshot.digest(key))
    if quarantine is not None:
        text = f"{key} is quarantined on fleet {fleet}: {quarantine.reason}"
        return TargetState(blocked=Reason(code="QUARANTINED", text=text))
    placement = placements[fleet]
    unplaced = placement.unplaced.get(key)
    never = unplaced is not None and (
        unplaced.code == "TOO_LARGE" or (unplaced.code == "CLASH" and fleet not in may_grow)
    )
    if unplaced is not None and never:
        return TargetState(blocked=unplaced)
    planned = tuple(
        sorted(
            name
            for name, held in placement.holds.items()
            if key in held and Place(key, name) not in placement.leaving and name not in census.lost
        )
    )
    waiting = [unplaced.text] if unplaced is not None else []
    for name in planned:
        copy = snapshot.replicas[name].copies.get(key)
        if copy is not None and copy.state == "failed" and copy.blames in ("model", "crash"):
            return TargetState(failed=Reason(code="LOAD_FAILED", text=f"{key} failed on {name}: {copy.reason}"))
        if name not in census.ready.get(key, ()):
            doing = f"{copy.state}{': ' + copy.reason if copy.reason else ''}" if copy else "ordered"
            waiting.append(f"{key} on {name}: {doing}")
    ready = tuple(sorted(set(census.ready.get(key, ())) & set(planned)))
    return TargetState(
        planned=planned,
        ready=ready,
        waiting="; ".join(waiting),
        room_is_made=unplaced is not None and unplaced.code == "WAITS_FOR_ROOM",
    )


def _leads_all(table: RouteTable, key: Key) -> bool:
    """Whether a table sends every unversioned request of the model to this version, and somewhere."""
    route = table.routes.get(key.model)
    if route is None or len(route.targets) != 1:
        return False
    target: Target = route.targets[0]
    return target.version == key.version and target.pool is not None
