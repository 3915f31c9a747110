"""Carries out a plan's actions, each in its own task: one that hangs or fails holds nobody else up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import structlog

from controlplane.backoff import backoff_s
from controlplane.core.actions import (
    Action,
    FinishRollout,
    QuarantineVersion,
    RecordFleet,
    RemoveReplica,
    StartReplica,
)
from controlplane.core.errors import ControlPlaneError
from controlplane.core.models import FleetRecord, FleetShape, Quarantine
from controlplane.core.names import Reason
from controlplane.fleet.protocol import FleetBackend, News
from controlplane.registry.registry import Registry
from controlplane.server.memory import Memory, Start
from controlplane.server.orders import Orders

log = structlog.get_logger(__name__)

ACTOR = "controller"
RETRY_S = 2.0
RETRY_MAX_S = 60.0
WRITE_AGAIN_S = 10.0
"""The same for what is written into the registry: when that is back, no rollout is to wait for a minute more."""


@dataclass(frozen=True, slots=True)
class _Failure:
    about: str
    doing: str
    why: str


@dataclass(slots=True)
class _Pause:
    """After so many `failures` in a row, the last `at` a time (by a steady clock, in seconds), nothing of what was
    `wanted` and has failed is tried again `until` another. `fewer`: the plan before wanted less."""

    failures: int
    at: float
    until: float
    wanted: frozenset[object]
    fewer: bool = False


class Actor:
    """Does what plans ask for. An action that is under way is not begun again; one that failed is asked for anew by
    each plan, and tried again after a pause, which grows. All starts of a fleet have one pause: most backends make one
    call of them, and when another number of replicas is wanted, the pauses begin anew. Nor is what was done done again
    at once: what it does may take a while to be seen, or not come true."""

    def __init__(
        self,
        registry: Registry,
        backend: FleetBackend,
        memory: Memory,
        orders: Orders,
        *,
        done: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._backend = backend
        self._memory = memory
        self._orders = orders
        self._done = done
        self._clock = clock
        self._pauses: dict[object, _Pause] = {}
        """By what is tried again together (`_together`)."""
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self._failures: dict[object, _Failure] = {}

    def act(self, actions: Iterable[Action]) -> None:
        """Begin every action that is not under way, and has not failed a moment ago."""
        wanted = {_identity(action): action for action in actions}
        together: dict[object, set[object]] = {}
        for identity, action in wanted.items():
            together.setdefault(_together(action), set()).add(identity)
        self._end_pauses(together)
        for identity in self._failures.keys() - wanted - self._tasks.keys():
            if not any(identity in pause.wanted for pause in self._pauses.values()):
                del self._failures[identity]
        for identity, action in wanted.items():
            group = _together(action)
            pause = self._pauses.get(group) if identity in self._failures else None
            if identity not in self._tasks and (pause is None or self._clock() >= pause.until):
                task = asyncio.create_task(self._attempt(action, frozenset(together[group])))
                self._tasks[identity] = task
                task.add_done_callback(partial(self._forget, identity))

    def _end_pauses(self, together: Mapping[object, Collection[object]]) -> None:
        """Whoever wants something else does not wait for long because of what was refused before. While an attempt is
        under way, what it asks for may be seen as done, and in the plan after it as well: less is believed the second
        time."""
        for group, pause in list(self._pauses.items()):
            wanted = frozenset(together.get(group, ()))
            fewer = wanted < pause.wanted and not pause.wanted & self._tasks.keys()
            if wanted <= pause.wanted and not (fewer and pause.fewer):
                pause.fewer = fewer
            elif wanted:
                pause.failures, pause.until = 0, min(pause.until, pause.at + RETRY_S)
                pause.wanted, pause.fewer = wanted, False
            else:
                del self._pauses[group]

    def _forget(self, identity: object, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(identity, None)

    def failures(self) -> Mapping[str, tuple[Reason, ...]]:
        """Why what plans ask for can't be done at present, by what it is about: a fleet or a model, as `fleet NAME` or
        `model NAME`. What is asked for no more is no failure any more."""
        found: dict[str, dict[str, Reason]] = {}
        for each in self._failures.values():
            found.setdefault(each.about, {})[each.why] = Reason(
                code="ACTION_FAILS", text=f"{each.doing} fails: {each.why}"
            )
        return {about: tuple(reasons.values()) for about, reasons in sorted(found.items())}

    async def close(self) -> None:
        """Abandon what is under way: the next plan, of whichever controller, asks for it again."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _attempt(self, action: Action, together: frozenset[object]) -> None:
        try:
            await self._carry_out(action)
        except Exception as error:
            foreseen = isinstance(error, ControlPlaneError | OSError)
            why = str(error) if foreseen else repr(error)
            failure, again_in_s = _failure(action, why), self._pause(action, together)
            if failure not in self._failures.values():  # else it was told; `failures` goes on saying it
                log.warning(
                    "an action failed and will be tried again",
                    action=repr(action),
                    reason=why,
                    again_in_s=round(again_in_s, 1),
                    exc_info=not foreseen,
                )
            self._failures[_identity(action)] = failure
            if isinstance(action, StartReplica):  # it has not begun: how long that takes, says nothing of a start
                self._memory.starts.pop(action.replica, None)
            self._done()
        else:
            self._failures.pop(_identity(action), None)
            self._pauses.pop(_together(action), None)
            self._done()
            await asyncio.sleep(RETRY_S)

    def _pause(self, action: Action, together: frozenset[object]) -> float:
        """Take note of a failure; for how many seconds nothing of the kind is tried. What was tried at the same time
        and fails, too, counts once."""
        group, now = _together(action), self._clock()
        pause = self._pauses.get(group)
        if pause is None or now >= pause.until:
            failures = pause.failures + 1 if pause is not None else 1
            most_s = RETRY_MAX_S if isinstance(action, StartReplica | RemoveReplica) else WRITE_AGAIN_S
            pause = _Pause(failures, now, now + backoff_s(failures, RETRY_S, most_s), together)
            self._pauses[group] = pause
        return pause.until - now

    async def _carry_out(self, action: Action) -> None:
        if isinstance(action, FinishRollout):
            await asyncio.to_thread(
                self._registry.finish_rollout,
                action.model,
                action.rollout,
                state=action.state,
                reason=action.reason,
                actor=ACTOR,
            )
            log.info(
                "rollout ended",
                model=action.model,
                version=action.target,
                state=action.state,
                reason=action.reason,
            )
            if action.fleet is not None:
                end = f"{action.model}@{action.target}: the rollout has {action.state}: {action.reason}"
                code, failed = f"ROLLOUT_{action.state.upper()}", action.state == "failed"
                self._backend.tell(News(fleet=action.fleet, code=code, text=end, warning=failed))
        elif isinstance(action, QuarantineVersion):
            log.warning("version quarantined", fleet=action.fleet, **action.key._asdict(), reason=action.reason)
            await self._update_fleet(action.fleet, lambda record: _with_quarantine(record, action))
        elif isinstance(action, RecordFleet):
            known = set(self._memory.manifests)
            await self._update_fleet(action.fleet, lambda record: with_news(record, action, known))
        elif isinstance(action, StartReplica):
            log.info("replica starts", replica=action.replica, fleet=action.fleet, reason=action.reason)
            self._memory.starts.setdefault(action.replica, Start(time.time()))
            await self._backend.start(self._memory.shapes[action.fleet], action.replica)
        elif isinstance(action, RemoveReplica):
            log.info("replica is removed", replica=action.replica, fleet=action.fleet, reason=action.reason)
            await self._backend.remove(action.replica)
            self._memory.forget_replica(action.replica)
            self._orders.forget(action.replica)

    async def _update_fleet(self, fleet: str, change: Callable[[FleetRecord], FleetRecord]) -> None:
        shape = self._memory.shapes[fleet]
        record = await asyncio.to_thread(
            self._registry.update_fleet, fleet, lambda present: change(present or FleetRecord(shape=shape))
        )
        self._memory.fleets[fleet] = record


async def record_shapes(registry: Registry, shapes: Iterable[FleetShape]) -> None:
    """Write what the deployment says of each fleet into its record, keeping what was learned before; records of fleets
    that it does not have any more are removed, so that nobody registers for one of them."""
    deployed = {shape.name: shape for shape in shapes}
    for name, shape in deployed.items():
        await asyncio.to_thread(registry.update_fleet, name, partial(_with_shape, shape=shape))
    try:
        recorded = set(await asyncio.to_thread(registry.fleets))
    except ControlPlaneError as error:
        log.warning("the fleets' records can't all be read; none is removed", reason=str(error))
        return
    for name in sorted(recorded - set(deployed)):
        log.info("a fleet is not deployed any more; its record is removed", fleet=name)
        await asyncio.to_thread(registry.remove_fleet, name)


def _with_shape(present: FleetRecord | None, *, shape: FleetShape) -> FleetRecord:
    if present is None:
        return FleetRecord(shape=shape)
    # What was measured of main memory says nothing of GPUs', nor the other way round.
    same = bool(present.shape.gpus) == bool(shape.gpus)
    return replace(present, shape=shape, measured_bytes=present.measured_bytes if same else {})


def _identity(action: Action) -> object:
    if isinstance(action, RecordFleet):
        return ("record", action.fleet)
    if isinstance(action, QuarantineVersion):
        return ("quarantine", action.fleet, action.key)
    if isinstance(action, FinishRollout):
        return ("finish", action.model, action.rollout)
    return (type(action), action.replica)


def _together(action: Action) -> object:
    """What is tried again at the same time."""
    return ("start", action.fleet) if isinstance(action, StartReplica) else _identity(action)


def _failure(action: Action, why: str) -> _Failure:
    match action:
        case FinishRollout(fleet=None):
            return _Failure(f"model {action.model}", f"ending the rollout to {action.model}@{action.target}", why)
        case FinishRollout():
            return _Failure(f"fleet {action.fleet}", f"ending the rollout to {action.model}@{action.target}", why)
        case QuarantineVersion():
            return _Failure(f"fleet {action.fleet}", f"writing the quarantine of {action.key}", why)
        case RecordFleet():
            return _Failure(f"fleet {action.fleet}", "writing the fleet's record", why)
        case StartReplica():
            return _Failure(f"fleet {action.fleet}", "starting one more replica", why)
        case RemoveReplica():
            return _Failure(f"fleet {action.fleet}", f"removing {action.replica}", why)


def _with_quarantine(record: FleetRecord, action: QuarantineVersion) -> FleetRecord:
    known = {(each.model, each.version, each.digest) for each in record.quarantines}
    if (*action.key, action.digest) in known:
        return record
    news = Quarantine(
        model=action.key.model,
        version=action.key.version,
        digest=action.digest,
        reason=action.reason,
        at=datetime.now(UTC),
    )
    return replace(record, quarantines=(*record.quarantines, news))


def with_news(record: FleetRecord, action: RecordFleet, known: Collection[str]) -> FleetRecord:
    """The record with what was measured since. Only digests in `known` stay: of others nothing is loaded any more."""
    kept = {digest: size for digest, size in record.measured_bytes.items() if digest in known}
    load_s = {digest: seconds for digest, seconds in record.load_s.items() if digest in known}
    costs = {digest: cost for digest, cost in record.costs.items() if digest in known}
    return replace(
        record,
        capabilities=action.capabilities or record.capabilities,
        measured_bytes={**kept, **action.measured_bytes},
        load_s={**load_s, **action.load_s},
        costs={**costs, **action.costs},
        start_s=action.start_s if action.start_s is not None else record.start_s,
        history=action.history or record.history,
    )
