"""How replicas come and leave: started to the number decided; drained, taken out of every table, only then stopped."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.core.actions import Action, RemoveReplica, StartReplica
from controlplane.core.fleets import is_new, is_up
from controlplane.core.names import Reason
from controlplane.core.scaling.decision import Decision
from controlplane.core.snapshot import ReplicaView, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a fleet's size asks for. `reason` is the fleet's; `stopping`: replicas on their way out, which get nothing
    new, with the reason."""

    reason: Reason
    actions: tuple[Action, ...] = ()
    stopping: Mapping[str, Reason] = field(default_factory=dict)


def resize(
    fleet: str,
    decision: Decision,
    replicas: Sequence[ReplicaView],
    snapshot: Snapshot,
    now: float,
    *,
    lost: frozenset[str],
    down: frozenset[str] = frozenset(),
    replacing: tuple[str, Reason] | None = None,
) -> Changes:
    """Bring a fleet to the size that was decided. Whoever is on its way out and was not told to stop yet, comes back
    before a new one is started; but an agent that a controller before this one has told to stop, ends. Nobody comes for
    one that ends before it is gone: on Kubernetes a pod that does not run yet would have to go in its place.
    While one is being replaced there is one more, until enough others are up; but whose server does not come up, that
    one's place is free at once."""
    desired = decision.desired
    out, why = replacing or ("", decision.reason)
    stopping = {each.name: snapshot.stopping[each.name] for each in replicas if each.name in snapshot.stopping}
    stopping |= {each.name: _ends(each.name, each.leaving) for each in replicas if each.leaving}
    ending = {each.name for each in replicas if each.report is not None and each.report.told_to_stop}
    stopping |= {name: _ends(name, "it was told to stop") for name in ending - stopping.keys()}
    staying = sorted((each for each in replicas if each.name not in stopping), key=worth)
    if out in down and snapshot.settled:
        stopping |= {each.name: why for each in staying if each.name == out}
        staying = [each for each in staying if each.name != out]
    elif any(each.name == out for each in staying) and desired:
        staying.sort(key=lambda each: each.name == out)  # it leaves first
        desired += sum(is_up(each) for each in staying if each.name != out) < desired
    # While somebody replaces them one by one, who goes is his business: who is told to stop would stay all the same.
    rolling = any(each.extra for each in replicas)
    actions: list[Action] = []
    later, ends = 0, set[str]()
    if len(staying) < desired:
        may = (
            {each.name for each in replicas if each.name in stopping and not each.leaving}
            - snapshot.stopped
            - ending
            - lost
            - down
        )
        back = [each.name for each in sorted(replicas, key=worth) if each.name in may][: desired - len(staying)]
        for name in back:
            del stopping[name]
        taken = {each.name for each in replicas}
        numbers = (n for n in range(desired + len(taken) + 1) if f"{fleet}-{n}" not in taken)
        ends = {each.name for each in replicas if not each.leaving and not rolling} & (snapshot.stopped | ending) - lost
        missing = desired - len(staying) - len(back)
        most = snapshot.settings.starts_at_once
        starting = sum(each.name in snapshot.starting and is_new(each) for each in staying)
        begin = missing if most is None else min(missing, max(most - starting, 0))
        begin = 0 if ends else begin
        later = missing - begin
        for _ in range(begin):
            name = f"{fleet}-{next(numbers)}"
            actions.append(StartReplica(fleet=fleet, replica=name, reason=decision.reason.text))
    elif snapshot.settled and not rolling:
        stopping |= {each.name: why if each.name == out else _leaves(each, decision) for each in staying[desired:]}
    for each in replicas:
        if each.name not in stopping or each.leaving:
            continue  # it stays, or goes already
        is_out = each.name in snapshot.stopped or (snapshot.settled and _in_no_table(each.name, snapshot, now))
        if each.report is not None and each.report.server == "stopped" and is_out:
            actions.append(RemoveReplica(fleet=fleet, replica=each.name, reason="its server has ended"))
        elif each.name in lost and each.name in snapshot.stopped:
            actions.append(RemoveReplica(fleet=fleet, replica=each.name, reason="it is silent, and was to stop"))
    text = f"{_shall(fleet, len(staying), desired)}: {decision.reason.text}"
    if later:
        first = "those that end are gone" if ends else "those that are starting are up"
        text += f"; {later} of them start when {first}"
    if desired > decision.desired:
        text += f"; one more while {why.text}"
    return Changes(reason=Reason(code=decision.reason.code, text=text), actions=tuple(actions), stopping=stopping)


@dataclass(frozen=True, slots=True, kw_only=True)
class Departures:
    """How far those who leave are.

    `draining` get no new requests; of these `unrouted` have nothing in flight and are in no new table, and of these
    `stop` are in no table that may be in force: they may end.
    """

    draining: frozenset[str] = frozenset()
    unrouted: frozenset[str] = frozenset()
    stop: frozenset[str] = frozenset()


def depart(replaced: Collection[str], snapshot: Snapshot, now: float) -> Departures:
    """Judge those who leave and whose versions are served elsewhere by now (`replaced`). Who was told to stop may have
    heard it, and gets nothing any more, whatever has happened to the others since."""
    told = {
        name
        for name, each in snapshot.replicas.items()
        if name in snapshot.stopped or (each.report is not None and each.report.told_to_stop)
    }
    unrouted = told | {
        name for name in replaced if _is_given_up(name, snapshot, now) or _nothing_in_flight(name, snapshot, now)
    }
    return Departures(
        draining=frozenset(told | set(replaced)),
        unrouted=frozenset(unrouted),
        stop=frozenset(told | {name for name in unrouted if _in_no_table(name, snapshot, now)}),
    )


def _ends(name: str, why: str) -> Reason:
    return Reason(code="LEAVING", text=f"{name} ends: {why}")


def _leaves(replica: ReplicaView, decision: Decision) -> Reason:
    return Reason(code="SCALE_DOWN", text=f"{replica.name} leaves: {decision.reason.text}")


def _shall(fleet: str, present: int, desired: int) -> str:
    count = "1 replica" if present == 1 else f"{present} replicas"
    return f"fleet {fleet} has {count}" if present == desired else f"fleet {fleet} has {count} and shall have {desired}"


def worth(replica: ReplicaView) -> tuple[bool, int, str]:
    """Who stays longest comes first: those whose server answers; then by number, so that the highest leaves first."""
    _, _, number = replica.name.rpartition("-")
    return (not is_up(replica), int(number) if number.isdigit() else 1 << 30, replica.name)


def _is_given_up(replica: str, snapshot: Snapshot, now: float) -> bool:
    """Whether it has been silent for so long that what seems to be in flight there is not waited for any more."""
    heard_at = snapshot.replicas[replica].heard_at
    return heard_at is not None and now - heard_at > snapshot.settings.gateway_lost_s


def _nothing_in_flight(replica: str, snapshot: Snapshot, now: float) -> bool:
    """Whether every gateway marks it draining (or leaves it out) and counts no request there."""
    for gateway in snapshot.gateways.values():
        if now - gateway.heard_at > snapshot.settings.gateway_lost_s:
            continue
        if gateway.table is None:
            return False
        endpoint = gateway.table.endpoints.get(replica)
        if endpoint is not None and (not endpoint.draining or gateway.active.get(replica, 1) > 0):
            return False
    return True


def _in_no_table(replica: str, snapshot: Snapshot, now: float) -> bool:
    return all(
        gateway.table is not None and all(replica not in table.endpoints for table in gateway.tables())
        for gateway in snapshot.gateways.values()
        if now - gateway.heard_at <= snapshot.settings.gateway_lost_s
    )
