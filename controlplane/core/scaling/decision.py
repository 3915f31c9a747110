"""How many replicas a fleet shall have: what is known of its load in, a decision and its reason out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from controlplane.core.load import Load, Scaler
from controlplane.core.models import FleetShape
from controlplane.core.names import Reason
from controlplane.core.scaling.analogs import lasting, recent
from controlplane.core.scaling.forecasts import (
    ANALOGS,
    CONSTANT,
    NONE,
    PRESENT,
    forecasts,
    judge,
    season_need,
    spread,
    usual_need,
)
from controlplane.core.scaling.limits import Limits
from controlplane.core.scaling.seasons import SEASONS

STALE_STEPS = 4
"""Measurements older than so many steps say nothing of now."""
STEADY = 0.9
"""At least this part of what has lately arrived is planned for: what may wait can't wait again and again."""
ADJUST_S = 30.0
"""How often the share of work that may come late is corrected by what was measured."""
REMEMBER_S = 900.0
"""What was late counts half after this time: bursts come seldom, and are what the correction is for."""
LESS, MORE = 0.6, 1.1
"""What the share is multiplied by, when more was late than the goal allows, and when less than half of that was."""
LEAST_MISS, MOST_MISS = 0.1, 3.0
"""How far it is corrected: between so many times what the goal allows."""
REST_STARTS, REST_S = 2.0, 15.0
"""For so many times as long as a start takes, and for so long at least, fewer replicas must be enough before there are
fewer: what is paid for a replica that may be needed again is of the order of what its start would cost."""
TOUCH = 0.02
"""So little more than a whole number of replicas asks for no further one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`desired` replicas, with the reason. `next_desired` (fewer) at `next_at` (seconds since 1970), unless more is
    asked until then."""

    desired: int
    reason: Reason
    next_desired: int | None = None
    next_at: float | None = None


def decide(
    shape: FleetShape,
    limits: Limits,
    load: Load | None,
    scaler: Scaler,
    *,
    present: int,
    waited_for: str,
    now: float,
    pinned: int = 0,
    pinned_why: str = "",
    out: int = 0,
) -> tuple[Decision, Scaler]:
    """How many replicas a fleet shall have now.

    `present` replicas are there or starting, and not on their way out. `waited_for`: why one is waited for, whatever
    the load says, as a sentence; empty if none is. `pinned` replicas have a place for what must have one, as
    `pinned_why` says in a part of a sentence. `out` of those that are present get no requests for a while: so many more
    are needed.
    """
    # One from the time to come was measured before the clock was set back.
    fresh = load is not None and abs(now - load.at) <= STALE_STEPS * load.step_s
    if load is not None and fresh and load.at > scaler.at:
        scaler = _look(shape, load, scaler)
    if waited_for and scaler.idle_since is not None:
        scaler = replace(scaler, idle_since=max(now, scaler.idle_since))  # what was waited for is to be of use
    if limits.least == limits.most and not limits.is_cut:
        text = limits.why if load is None or fresh else f"{limits.why} (the last measurement is {_age(load, now)})"
        return Decision(desired=limits.least, reason=Reason(code="SIZE", text=text)), scaler
    floor = max(limits.least, 1 if waited_for else 0, pinned)
    told = f"; {pinned_why or f'what must always be loaded takes the memory of {pinned}'}"
    if load is None or not fresh:
        desired = min(max(present, floor), limits.most)
        age = f"the last is {_age(load, now)}" if load is not None else "there is none yet"
        text = f"without a fresh measurement ({age}) it gets no fewer replicas; {limits.why}"
        text += told if pinned and desired <= pinned else ""
        return Decision(desired=desired, reason=Reason(code="NO_METRICS", text=text)), scaler
    rest_s = shape.down_after_s if shape.down_after_s is not None else max(REST_STARTS * load.start_s, REST_S)
    idle_s = load.at - scaler.idle_since if scaler.idle_since is not None else 0.0
    quiet = not waited_for and scaler.idle_since is not None and idle_s >= shape.idle_s
    # While something is asked there is one at least; the last one stays for a while after that.
    last = 1 if waited_for or load.asked else min(present, 1)
    busy = math.ceil(scaler.need - TOUCH)
    wanted = floor if quiet else max(busy + out if busy > 0 else busy, last, floor)
    # What the past demanded is asked only of what is not over: a fleet that has been idle long enough may be empty.
    wants = [(at, count) for at, count in scaler.wants if load.at - rest_s < at < load.at and not quiet]
    wants.append((load.at, wanted))
    scaler = replace(scaler, wants=tuple(wants))
    since = scaler.began if scaler.began is not None else load.at
    desired, code = wanted, "LOAD"
    next_desired = next_at = None
    if wanted < present:
        recent = max(count for _, count in wants)
        if not load.complete:
            desired, code = present, "INCOMPLETE"
        elif load.at - since < rest_s:
            desired, code, next_desired, next_at = present, "JUST_STARTED", wanted, since + rest_s
        elif recent > wanted:
            desired, code, next_desired = min(present, recent), "RECENT", wanted
            next_at = max(at for at, count in wants if count > wanted) + rest_s
    clamped = min(max(desired, limits.least), limits.most)
    text = _text(shape, limits, load, scaler, waited_for, code=code, wanted=wanted, desired=desired, rest_s=rest_s)
    text += f"; {out} of them get no requests for a while" if out and not quiet and busy > 0 else ""
    if pinned and wanted == pinned:
        text += told
        code = "ROOM" if code == "LOAD" and pinned > max(limits.least, scaler.need) else code
    if next_desired is not None:
        next_desired = min(max(next_desired, limits.least), limits.most)
    if clamped == 1 == wanted and limits.least == pinned == 0 and scaler.idle_since is not None and not waited_for:
        next_desired, next_at = 0, scaler.idle_since + shape.idle_s
        text += f"; it goes to zero at {_clock(next_at)} unless something is asked"
    decision = Decision(
        desired=clamped,
        reason=Reason(code=code if clamped == desired else "LIMIT", text=text),
        next_desired=next_desired if next_desired != clamped else None,
        next_at=next_at if next_desired != clamped else None,
    )
    return decision, scaler


def is_quiet(shape: FleetShape, load: Load | None, scaler: Scaler, *, present: int) -> bool:
    """Whether nothing is asked of a fleet, and so long that it may be empty (or it is)."""
    if load is None or load.asked or not present:
        return not present and (load is None or not load.asked)
    since = _awake(load, scaler).idle_since
    return since is not None and load.at - since >= shape.idle_s


def _awake(load: Load, scaler: Scaler) -> Scaler:
    """What is remembered, as if the time in which nobody was measured had not passed."""
    slept_s = max(load.blind_s - scaler.blind_s, 0.0)
    if not slept_s:
        return scaler
    return replace(
        scaler,
        blind_s=load.blind_s,
        began=None if scaler.began is None else scaler.began + slept_s,
        idle_since=None if scaler.idle_since is None else scaler.idle_since + slept_s,
        wants=tuple((at + slept_s, count) for at, count in scaler.wants),
    )


def _look(shape: FleetShape, load: Load, scaler: Scaler) -> Scaler:
    """Take in a new measurement."""
    scaler = _awake(load, scaler)
    allowed = 1 - shape.goal.share
    miss = scaler.miss if scaler.miss is not None else allowed
    adjusted_at = scaler.adjusted_at
    faded = 0.5 ** (max(load.at - scaler.at, 0.0) / REMEMBER_S)
    answered, late = scaler.answered * faded, scaler.late * faded
    capped_late = scaler.capped_late * faded
    if load.met is not None:
        answered, late = answered + load.answered, late + load.answered * (1 - load.met)
        capped_late += load.answered * (1 - load.met) if scaler.capped else 0.0
    if answered and load.met is not None and load.at - adjusted_at >= ADJUST_S:
        factor = LESS if late > allowed * answered else MORE if late < allowed * answered / 2 else 1.0
        miss, adjusted_at = min(max(miss * factor, allowed * LEAST_MISS), allowed * MOST_MISS), load.at
    said, most = forecasts(load, 1 - miss), math.inf
    if load.steady is not None and capped_late <= allowed * answered:
        # What has lately been enough without any change is enough, unless traffic rises to what was never seen.
        lately = lasting(load.features)
        most = max(load.steady, lately + spread(lately, load.at_once))
    contest = judge(scaler.contest, load, said, 1 - miss, shape.goal.share)
    of_season, (usual, said_by) = season_need(contest, said), usual_need(contest, said)
    capped = of_season is None and most < usual
    likely, floor = min(usual, most) if of_season is None else of_season, STEADY * recent(load.features)
    if contest.season is not None and of_season is not None:
        of_then = load.seasons[contest.season.name] + contest.season.moved
        said_by = contest.season.name if of_then >= of_season else PRESENT
    elif capped:
        said_by = CONSTANT if most == load.steady else PRESENT
    if floor > likely:
        likely, said_by = floor, PRESENT
    return replace(
        scaler,
        began=load.at if scaler.began is None and load.complete else scaler.began,
        at=load.at,
        # What waits is to be done by the time that a replica started now would answer.
        need=likely + load.backlog_s / (load.start_s + load.slack_s + load.step_s),
        likely=likely,
        said_by=said_by,
        contest=contest,
        answered=answered,
        late=late,
        capped=capped,
        capped_late=capped_late,
        miss=miss,
        adjusted_at=adjusted_at,
        idle_since=None if load.asked else scaler.idle_since if scaler.idle_since is not None else load.at,
    )


def _text(
    shape: FleetShape,
    limits: Limits,
    load: Load,
    scaler: Scaler,
    waited_for: str,
    *,
    code: str,
    wanted: int,
    desired: int,
    rest_s: float,
) -> str:
    """The decision in a sentence."""
    if waited_for and not load.asked:
        text = waited_for
    elif scaler.idle_since is not None:
        idle_s = load.at - scaler.idle_since
        idle = f"nothing has been asked for {idle_s:.0f} s" if idle_s >= 1 else "nothing is asked"
        text = idle if load.complete else "not every replica has told what is asked of it"
    else:
        text = f"what arrives keeps {load.demand:.2f} replicas busy"
        if scaler.likely > load.demand:
            text += f", and {scaler.likely:.2f} are likely to be needed within the {load.start_s:.0f} s of a start"
            text += _whose(scaler)
        if load.backlog_s > load.slack_s:
            text += f"; {load.backlog_s:.1f} s of work wait"
        if load.held:
            waits = "request waits" if load.held == 1 else "requests wait"
            text += f"; {load.held} {waits} for a model that is not loaded"
    if code == "INCOMPLETE":
        text += "; not every replica has told its metrics, so it gets no fewer"
    elif code == "JUST_STARTED":
        text += f"; it gets no fewer in the first {rest_s:.0f} s of measuring"
    elif code == "RECENT":
        text += f"; {desired} were needed within the last {rest_s:.0f} s, {wanted} would do now"
    clamped = min(max(desired, limits.least), limits.most)
    if clamped > desired or (clamped == limits.least and not load.asked and not waited_for):
        text += f"; {limits.why}"
    elif clamped < desired:
        text += f"; that would take {desired}, but {limits.why}"
    return text


def _whose(scaler: Scaler) -> str:
    """Which forecast says what is likely, if one does, in a part of a sentence."""
    said_by, usual = scaler.said_by, scaler.contest.usual
    if said_by == NONE and usual is not None and usual.name == NONE and usual.moved > TOUCH:
        return ", as the load has risen before"
    words = {ANALOGS: "as after moments like this one", CONSTANT: "the steady number that has been enough so far"}
    words |= {season: f"as {season}" for season in SEASONS}
    return f", {words[said_by]}" if said_by in words else ""


def _age(load: Load, now: float) -> str:
    return f"{now - load.at:.0f} s old" if now >= load.at else "from before the clock was set back"


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S} UTC"
