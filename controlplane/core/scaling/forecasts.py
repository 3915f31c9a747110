"""Which forecast is believed: the one that would have done with the fewest replicas so far, on the fleet's own history.

Every forecast says what capacity will be needed within the time of a start. When that time has passed, what was needed
is known. Forecasts are compared as policies are: each is moved by what would have brought the wanted share of the work
in time, and then costs what capacity it asks for. To foresee nothing is one of the forecasts; the others count
only where they beat it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controlplane.core.load import ANALOGS, Contest, Judged, Load
from controlplane.core.models import History
from controlplane.core.scaling.analogs import likely_need, sudden

NONE = "none"
EVERY_S, KEPT = 10.0, 2160
"""How often what forecasts say is noted, and how much of it is kept: six hours."""
AGAIN_S = 300.0
"""How often they are compared."""
ENOUGH = 720
"""With fewer notes, two hours of them, a comparison says nothing."""
MARGIN = 0.9
"""Moments like this one, if they cost no more than to foresee nothing, and else that, are believed unless another
forecast would have cost so much less."""
TINY = 1e-3
"""Less than this is no capacity."""


def contest_of(history: History | None) -> Contest:
    """Where a controller goes on that knows what one before it has found."""
    if history is None or not history.believed:
        return Contest()
    return Contest(believed=history.believed, moved=history.moved)


def spread(demand: float, at_once: float) -> float:
    """By how much a demand may exceed its mean where nothing is foreseen, in replicas: requests come at random, so the
    number of those that are executed at the same time spreads by its square root."""
    return math.sqrt(demand / max(at_once, 1.0))


def forecasts(load: Load, share: float) -> dict[str, float]:
    """What each forecast says, in replicas: enough for `share` of the work within the time of a start."""
    said = {NONE: load.demand + spread(sudden(load.features), load.at_once)}
    alike = likely_need(load.moments, load.features, share)
    if alike is not None:
        said[ANALOGS] = alike
    present = said.get(ANALOGS, said[NONE])
    return said | {name: max(need, present) for name, need in load.seasons.items()}


def judge(contest: Contest, load: Load, said: Mapping[str, float], share: float) -> Contest:
    """Take in what forecasts say now and what came after earlier ones, and compare them from time to time."""
    sequel = load.sequel
    if sequel is not None:
        due = [then for at, then in contest.open if at <= sequel.at]
        judged = tuple(Judged(need=sequel.need, weight=sequel.weight, said=then) for then in due[-1:])
        left = tuple((at, then) for at, then in contest.open if at > sequel.at)
        contest = replace(contest, open=left, judged=(*contest.judged, *judged)[-KEPT:]) if due else contest
    if not contest.open or load.at - contest.open[-1][0] >= EVERY_S:
        contest = replace(contest, open=(*contest.open, (load.at, said)))
    if load.at - contest.compared_at < AGAIN_S:
        return contest
    if len(contest.judged) < ENOUGH:
        return replace(contest, compared_at=load.at)  # what was believed to begin with stays
    believed = _best(contest, share)
    # Moments like this one were asked for the share already; what it lacks is corrected by what is measured.
    moved = 0.0 if believed == ANALOGS else _lack(contest.judged, believed, share)
    return replace(contest, compared_at=load.at, believed=believed, moved=moved)


def _best(contest: Contest, share: float) -> str:
    """Who costs least, compared with foreseeing nothing at the same moments."""
    parts = {NONE: 1.0}
    for name in {name for each in contest.judged for name in each.said} - {NONE}:
        both = [each for each in contest.judged if name in each.said]
        if len(both) >= ENOUGH:
            parts[name] = _cost(both, name, share) / max(_cost(both, NONE, share), TINY)
    if ANALOGS not in parts:
        return ANALOGS  # not judged yet
    usual = ANALOGS if parts[ANALOGS] <= parts[NONE] else NONE
    best = min(sorted(parts), key=parts.__getitem__)
    return best if parts[best] < parts[usual] * MARGIN else usual


def _lack(judged: Sequence[Judged], name: str, share: float) -> float:
    """How many replicas more than it said (negative: fewer) would have brought `share` of the work in time."""
    lacks = sorted((each.need - each.said[name], each.weight) for each in judged if name in each.said)
    wanted = share * sum(weight for _, weight in lacks)
    reached = itertools.accumulate(weight for _, weight in lacks)
    return next((lack for (lack, _), so_far in zip(lacks, reached, strict=True) if so_far >= wanted), 0.0)


def _cost(judged: Sequence[Judged], name: str, share: float) -> float:
    """The mean capacity that a forecast asks for, when it is moved so that `share` of the work is in time."""
    lack = _lack(judged, name, share)
    return sum(max(each.said[name] + lack, 0.0) for each in judged) / len(judged)
