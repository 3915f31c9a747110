"""Which forecast is believed: the one that would have done with the fewest replicas so far, on the fleet's own history.

Every forecast says what capacity will be needed within the time of a start. When that time has passed, what was needed
is known. Forecasts are compared as policies are, at the same share of the work in time: each is moved by what would
have brought that share, and costs what capacity it asks for. To foresee nothing is one of the forecasts, and what
counts until another one was better. A season must have beaten all that know of no other day, for a day: what was needed
at the same time of another day fits now and then by chance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controlplane.core.load import Believed, Contest, Judged, Load
from controlplane.core.models import History
from controlplane.core.scaling.analogs import likely_need, recent, sudden
from controlplane.core.scaling.seasons import SEASONS

NONE, ANALOGS, PRESENT, CONSTANT = "none", "analogs", "the last half minute", "a steady number"
"""The last two are not believed themselves: a season must beat them, too."""
EVERY_S, KEPT = 10.0, 2160
"""How often what forecasts say is noted, and how much of it is kept: six hours."""
SELDOM_S, KEPT_OF_DAYS = 60.0, 2160
"""The same for seasons: a day and a half, so that what comes once a day is not forgotten when it comes again."""
AGAIN_S, AT_FIRST_S = 300.0, 60.0
"""How often they are compared: more often while there are not many notes to compare."""
ENOUGH = 18
"""With fewer notes, three minutes of them, a comparison says nothing."""
MANY = 720
"""Two hours of notes: so many overturn what another controller has found, and tell by how much a season is moved."""
MOST_OF_IT = 0.5
"""What was enough, as it was, for a smaller share of the work is not believed, however little it costs when moved."""
PROVEN = 1440
"""With fewer notes of seasons, a whole day of them, a comparison says nothing: its quiet hours and its busy ones shall
count as they come."""
MARGIN = 0.9
"""A season is believed if it would have cost so much less than each that knows of no other day."""
ONCE_S = 300.0
"""What the load has risen by once counts for so long, and the time of a start; what it rose by again later than that
counts for as long as it is remembered."""
TINY = 1e-3
"""Less than this is no capacity."""


def contest_of(history: History | None) -> Contest:
    """Where a controller goes on that knows what one before it has found."""
    if history is None or not history.believed:
        return Contest()
    believed = Believed(history.believed, history.moved)
    return Contest(season=believed) if believed.name in SEASONS else Contest(usual=believed, handed_down=True)


def spread(demand: float, at_once: float) -> float:
    """By how much a demand may exceed its mean where nothing is foreseen, in replicas: requests come at random, so the
    number of those that are executed at the same time spreads by its square root."""
    return math.sqrt(demand / max(at_once, 1.0))


def forecasts(load: Load, share: float) -> dict[str, float]:
    """What each forecast says, in replicas: enough for `share` of the work within the time of a start. A season says
    what was needed at this time, or what the last half minute needs, if that is more. A steady number is what it is
    moved by, from none."""
    lately = recent(load.features)
    present = lately + spread(lately, load.at_once)
    said = {NONE: load.demand + spread(sudden(load.features), load.at_once), PRESENT: present, CONSTANT: 0.0}
    alike = likely_need(load.moments, load.features, share)
    if alike is not None:
        said[ANALOGS] = alike
    return said | {name: max(need, present) for name, need in load.seasons.items()}


def usual_need(contest: Contest, said: Mapping[str, float]) -> tuple[float, str]:
    """What is likely to be needed, by the forecasts of today alone; and the one that says so."""
    usual = contest.usual
    if usual is None or usual.name not in said:
        return said[NONE], NONE
    return said[usual.name] + usual.moved, usual.name


def season_need(contest: Contest, said: Mapping[str, float]) -> float | None:
    """What is likely to be needed, by the season that is believed, if one is, and says anything."""
    season = contest.season
    return said[season.name] + season.moved if season is not None and season.name in said else None


def judge(contest: Contest, load: Load, said: Mapping[str, float], share: float, goal: float) -> Contest:
    """Take in what forecasts say now and what came after earlier ones, and compare them from time to time. `share` of
    the work shall be in time for now, so that it is `goal` at last."""
    contest = _noted(contest, load, said)
    if load.at - contest.compared_at < (AGAIN_S if len(contest.judged) >= MANY else AT_FIRST_S):
        return contest
    usual, season = _usual(contest, share, load.start_s), _season(contest, share, goal)
    return replace(contest, compared_at=load.at, usual=usual, season=season)


def _noted(contest: Contest, load: Load, said: Mapping[str, float]) -> Contest:
    sequel = load.sequel
    due = [note for note in contest.open if sequel is not None and note[0] <= sequel.at]
    if sequel is not None and due:
        at, then = due[-1]
        made = Judged(at=at, need=sequel.need, weight=sequel.weight, said=then)
        of_days = contest.of_days
        if SEASONS.keys() & then.keys() and (not of_days or at - of_days[-1].at >= SELDOM_S):
            of_days = (*of_days, made)[-KEPT_OF_DAYS:]
        contest = replace(
            contest, open=contest.open[len(due) :], judged=(*contest.judged, made)[-KEPT:], of_days=of_days
        )
    last_at = contest.open[-1][0] if contest.open else contest.judged[-1].at if contest.judged else -math.inf
    if load.at - last_at >= EVERY_S:
        contest = replace(contest, open=(*contest.open, (load.at, said)))
    return contest


def _usual(contest: Contest, share: float, start_s: float) -> Believed | None:
    """Moments like this one, if they have been enough for most of the work as they were, and cost less than to foresee
    nothing at the same moments. Until enough was judged, it is what another controller has found, or nothing."""
    notes = _where(contest.judged, ANALOGS)
    if len(notes) < ENOUGH or (contest.handed_down and len(contest.judged) < MANY):
        return contest.usual
    if _reached(notes, ANALOGS) > MOST_OF_IT and _cost(notes, ANALOGS, share) < _cost(notes, NONE, share):
        # They were asked for the share already; what they lack is corrected by what is measured.
        return Believed(ANALOGS)
    return Believed(NONE, min(_lack(notes, NONE, share), _risen(contest.judged, start_s + ONCE_S)))


def _season(contest: Contest, share: float, goal: float) -> Believed | None:
    """The season that costs least, if it was proven to cost less than all without it: at the goal, not at what is made
    up for just now. Until enough was judged, it is what another controller has found, unless another one is proven."""
    known = {name: _where(contest.of_days, name) for name in sorted(SEASONS)}
    costs = {name: _part(notes, name, goal) for name, notes in known.items() if len(notes) >= PROVEN}
    best = min(costs, key=costs.__getitem__, default=None)
    if best is not None and costs[best] < MARGIN:
        lately = _where(contest.judged, best)
        return Believed(best, _lack(lately if len(lately) >= MANY else known[best], best, share))
    before = contest.season
    return before if before is not None and before.name not in costs else None


def _where(judged: Sequence[Judged], name: str) -> list[Judged]:
    """The notes in which a forecast said something."""
    return [each for each in judged if name in each.said]


def _part(judged: Sequence[Judged], name: str, goal: float) -> float:
    """What a season costs, as a part of the cheapest that knows of no other day."""
    least = min(_cost(judged, other, goal) for other in (NONE, PRESENT, CONSTANT, ANALOGS))
    return max(_cost(judged, name, goal), TINY) / max(least, TINY)


def _lack(judged: Sequence[Judged], name: str, share: float) -> float:
    """How many replicas more than it said (negative: fewer) would have brought `share` of the work in time."""
    lacks = sorted((each.need - _says(each, name), each.weight) for each in judged)
    wanted = share * sum(weight for _, weight in lacks)
    reached = itertools.accumulate(weight for _, weight in lacks)
    return next((lack for (lack, _), so_far in zip(lacks, reached, strict=True) if so_far >= wanted), 0.0)


def _risen(judged: Sequence[Judged], once_s: float) -> float:
    """The most that was lacked where nothing was foreseen, in replicas, within the last `once_s`, or at two times that
    are further apart: a load test, say, is no reason to be ready for another one for hours."""
    lacks = sorted(((each.need - each.said[NONE], each.at) for each in judged), reverse=True)
    first = last = lacks[0][1]
    for lack, at in lacks:
        first, last = min(first, at), max(last, at)
        if last - first > once_s or judged[-1].at - at <= once_s:
            return lack
    return 0.0


def _reached(judged: Sequence[Judged], name: str) -> float:
    """The share of the work that a forecast would have brought in time as it was."""
    work = sum(each.weight for each in judged)
    return sum(each.weight for each in judged if each.need <= _says(each, name)) / work


def _cost(judged: Sequence[Judged], name: str, share: float) -> float:
    """The mean capacity that a forecast asks for, when it is moved so that `share` of the work is in time."""
    lack = _lack(judged, name, share)
    return sum(max(_says(each, name) + lack, 0.0) for each in judged) / len(judged)


def _says(note: Judged, name: str) -> float:
    """Where a forecast said nothing, nothing was foreseen."""
    return note.said.get(name, note.said[NONE])
