"""Which replicas are to be replaced by new ones: those whose server does not come up, keeps ending, is slow, or loses
memory. And which are not trusted meanwhile."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from controlplane.core.fleets import is_up, leaked_bytes
from controlplane.core.load import Load, Scaler
from controlplane.core.models import FleetShape
from controlplane.core.names import Reason, mib
from controlplane.core.snapshot import ReplicaView

FLAPS = 3
"""So many unexpected ends within `FLAPS_WITHIN_S`, and it is not trusted any more."""
FLAPS_WITHIN_S = 600.0
START_FAILS = "START_FAILS"
"""The code of the reason of who serves nothing, and so leaves before the new one comes."""
FAILED_STARTS = 3
"""So many starts of a server that failed in a row, and it may be where it runs: a disk, a GPU, a full /dev/shm."""
LEAK = 0.1
"""A replica that has lost this share of its memory is replaced in a quiet moment."""
TOLD = 3
"""So many of those that have are named."""
QUIET = 0.5
"""A moment is quiet while what arrives keeps no more than this share of the replicas busy."""
REPLACE_EVERY_S = 600.0
"""At most one replacement of a fleet within this time: what makes servers end may not be the replica's fault."""


def unfit(
    replicas: Iterable[ReplicaView],
    shape: FleetShape,
    load: Load | None,
    *,
    lost: Collection[str] = (),
    cramped: bool = False,
    replaced_at: float,
    now: float,
) -> tuple[str, Reason] | None:
    """The replica of a fleet that is to be replaced next, and why; None if none is. `lost` ones are silent. `cramped`:
    something has no room that must have some, so that memory which was lost is missed now.

    Of those whose server does not come up one is replaced last: it serves nothing, and hurts nobody.
    """
    if now - replaced_at <= REPLACE_EVERY_S:
        return None
    here = sorted(replicas, key=lambda each: each.name)
    for each in here:
        crashes = _crashes(each, now)
        if crashes >= FLAPS:
            text = f"{each.name} is replaced: its server ended unexpectedly {crashes} times in a short time"
            return each.name, Reason(code="FLAPPING", text=text)
    slow = {each.name: load.slow[each.name] for each in here if each.name in load.slow} if load is not None else {}
    if slow:
        name = max(slow, key=slow.__getitem__)
        text = f"{name} is replaced: it takes {slow[name]:.1f} times as long as the others"
        return name, Reason(code="SLOW", text=text)
    quiet = load is not None and load.complete and load.demand <= QUIET * len(here)
    for each in here if quiet or cramped else ():
        if missing := missing_bytes(each, shape):
            text = f"{each.name} is replaced: {missing >> 20} MiB did not come back when models were unloaded"
            return each.name, Reason(code="LEAKING", text=text)
    out = down(here, lost)
    for each in here:
        if each.name in out:
            why = f": {each.report.reason}" if each.report is not None and each.report.reason else ""
            text = f"{each.name} is replaced: its server did not come up {_failed_starts(each)} times in a row{why}"
            return each.name, Reason(code=START_FAILS, text=text)
    return None


def down(replicas: Collection[ReplicaView], lost: Collection[str]) -> frozenset[str]:
    """The replicas of a fleet whose server does not come up, where another's is up; `lost` ones are silent. Where none
    is up, it is the fleet's own fault, say a library that is missing: a new one would fare no better."""
    if not any(is_up(each) and each.name not in lost for each in replicas):
        return frozenset()
    return frozenset(each.name for each in replicas if _failed_starts(each) >= FAILED_STARTS)


def missing_bytes(replica: ReplicaView, shape: FleetShape) -> int:
    """The memory that a replica lacks, since it did not come back when models were unloaded. A little is no matter."""
    leaked = leaked_bytes(replica)
    return leaked if leaked > LEAK * shape.memory_bytes else 0


def leaking(replicas: Iterable[ReplicaView], shape: FleetShape) -> Reason | None:
    """Which of a fleet's replicas have lost so much memory that they are replaced in a quiet moment; None if none has.
    Until then they have as much less room."""
    lost = ((missing_bytes(each, shape), each.name) for each in replicas)
    worst = sorted((each for each in lost if each[0]), key=lambda each: (-each[0], each[1]))
    if not worst:
        return None
    told = ", ".join(f"{name} ({mib(size)})" for size, name in worst[:TOLD])
    more = f" and {len(worst) - TOLD} more" if len(worst) > TOLD else ""
    text = f"memory did not come back when models were unloaded: {told}{more}; replaced one by one in quiet moments"
    return Reason(code="LEAKING", text=text)


def replace_unfit(
    scaler: Scaler,
    replicas: Sequence[ReplicaView],
    shape: FleetShape,
    load: Load | None,
    *,
    room: bool,
    lost: Collection[str],
    now: float,
) -> tuple[Scaler, tuple[Reason, ...]]:
    """Choose who is replaced next, once the one before has left; only while the budget leaves `room` for the new one.
    With what a fleet's users should know of those that wait for it."""
    waits: list[Reason] = []
    if scaler.replacing is None or scaler.replacing[0] not in {each.name for each in replicas}:
        cramped = bool(scaler.room.cramped)
        found, at = (
            unfit(replicas, shape, load, lost=lost, cramped=cramped, replaced_at=scaler.replaced_at, now=now),
            now,
        )
        if found is not None and found[1].code != START_FAILS and not room:
            waits.append(replace(found[1], text=f"{found[1].text}, once the budget leaves room for the new one"))
            found = None
        scaler = replace(scaler, replacing=found, replaced_at=at if found is not None else scaler.replaced_at)
    out = scaler.replacing[0] if scaler.replacing is not None else ""
    leaks = leaking((each for each in replicas if each.name != out), shape)
    if leaks is not None and leaks.code not in {each.code for each in waits}:
        waits.append(leaks)
    return scaler, tuple(waits)


def distrusted(replicas: Sequence[ReplicaView], now: float) -> Mapping[str, Reason]:
    """The replicas of a fleet that get nothing new where another has room, and no requests for what another has ready,
    with the reason. They are trusted again when their ends are long ago enough.

    Nobody is distrusted where more than half of them keep ending: then it is hardly the replicas' fault, and what they
    had to do would be too much for the others.
    """
    found = {}
    for each in replicas:
        if len(each.crashed_at) >= FLAPS and (crashes := _crashes(each, now)) >= FLAPS:
            again_s = max(sorted(each.crashed_at)[-FLAPS] + FLAPS_WITHIN_S - now, 0.0)
            text = (
                f"{each.name} is not trusted for another {math.ceil(again_s / 60) or 1} min: its server ended "
                f"unexpectedly {crashes} times in a short time; it gets nothing new that has room elsewhere, "
                "and requests only for what nobody else has ready"
            )
            found[each.name] = Reason(code="NOT_TRUSTED", text=text)
    return found if 2 * len(found) <= len(replicas) else {}


def _failed_starts(replica: ReplicaView) -> int:
    """How often in a row its server did not come up."""
    return replica.report.failed_starts if replica.report is not None and not is_up(replica) else 0


def _crashes(replica: ReplicaView, now: float) -> int:
    """How often its server ended unexpectedly of late."""
    return sum(now - at <= FLAPS_WITHIN_S for at in replica.crashed_at)
