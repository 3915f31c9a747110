"""Forecasts: each fleet believes the one that would have done best on its own history."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from controlplane.core.load import Believed, Contest, Load, Moment, Scaler
from controlplane.core.models import History
from controlplane.core.scaling.analogs import Past
from controlplane.core.scaling.forecasts import (
    ANALOGS,
    CONSTANT,
    ENOUGH,
    EVERY_S,
    KEPT,
    KEPT_OF_DAYS,
    MANY,
    NONE,
    ONCE_S,
    PRESENT,
    PROVEN,
    contest_of,
    forecasts,
    judge,
    season_need,
    usual_need,
)
from controlplane.core.scaling.seasons import DAY, SLOT_S, WEEK, Seasons

DAY_S = DAY * SLOT_S


def said_and_needed(steps: int, said: Mapping[str, float], *needs: float, contest: Contest | None = None) -> Contest:
    """A contest after so many more notes of the same forecasts, while `needs` came after them in turn."""
    contest = contest or Contest()
    for step in range(steps):
        at = 1e9 + step * EVERY_S
        needed = Moment((0.0, 0.0, 0.0), need=needs[step % len(needs)], weight=1.0, at=at - EVERY_S)
        contest = judge(contest, Load(at=at, step_s=2.0, sequel=needed), said, 0.99, 0.99)
    return contest


def test_what_no_forecast_is_worth() -> None:
    lately = (math.log1p(4.0), math.log1p(1.0), 0.0)
    said = forecasts(Load(at=0.0, step_s=2.0, demand=5.0, features=lately), 0.99)
    assert said == {NONE: pytest.approx(7.0), PRESENT: pytest.approx(2.0), CONSTANT: 0.0}


def test_a_season_never_says_less_than_the_last_half_minute_needs() -> None:
    lately = (math.log1p(16.0), math.log1p(4.0), 0.0)
    load = Load(at=0.0, step_s=2.0, demand=16.0, features=lately, seasons={"yesterday": 1.0, "a week ago": 9.0})
    said = forecasts(load, 0.99)
    assert (said["yesterday"], said["a week ago"]) == (said[PRESENT], 9.0)
    assert said[PRESENT] == pytest.approx(6.0)


def test_moments_alike_are_believed_once_they_have_beaten_no_forecast() -> None:
    assert alternating(ENOUGH - 5, better_by=0.15).believed is None, "a few notes tell nothing"
    assert told(alternating(2 * ENOUGH, better_by=0.15)) == (ANALOGS, 0.0)


def test_moments_alike_are_not_judged_before_they_have_said_something() -> None:
    before = Contest(usual=Believed(ANALOGS))
    assert said_and_needed(2 * ENOUGH, {NONE: 1.0}, 1.0, 9.0, contest=before).usual == before.usual


def hours(
    count: float,
    says: Callable[[float], float],
    *,
    of: str = "yesterday",
    since: Contest | None = None,
    goal: float = 0.99,
    other: str = "",
    silent: bool = False,
) -> Contest:
    """What is needed changes each quarter of an hour; a season says, at a time, what it says. All others are always
    enough, but for one that knows what is needed. `silent`: moments alike say nothing."""
    contest = since or Contest()
    begin = contest.open[-1][0] if contest.open else 1e9
    for step in range(1, round(count * 3600 / EVERY_S)):
        at = begin + step * EVERY_S
        then = at - EVERY_S
        sequel = Moment((0.0, 0.0, 0.0), need=needed_at(then), weight=needed_at(then), at=then)
        said = {NONE: 9.0, ANALOGS: 9.0, PRESENT: 9.0, CONSTANT: 0.0, of: says(at)}
        if other:
            said[other] = needed_at(at)
        if silent:
            del said[ANALOGS]
        contest = judge(contest, Load(at=at, step_s=2.0, sequel=sequel), said, 0.999, goal)
    return contest


def needed_at(at: float) -> float:
    return 2.0 if at % 1800 < 900 else 9.0


def wrong(at: float) -> float:
    return 11.0 - needed_at(at)


def wrong_now_and_then(at: float) -> float:
    return wrong(at) if at % 36000 < 3600 else needed_at(at)


def test_a_season_is_believed_when_it_has_been_better_for_a_day() -> None:
    assert hours(23.5, needed_at).season is None, "some hours may fit by chance"
    proven = hours(25.0, needed_at)
    assert proven.season is not None and proven.season.name == "yesterday"
    assert proven.season.moved == pytest.approx(0.0)
    assert hours(3.0, wrong, since=proven).season is None, "and no longer than it is better"


@pytest.mark.parametrize("other", [NONE, ANALOGS, PRESENT])
def test_a_season_must_be_better_than_each_that_knows_of_no_other_day(other: str) -> None:
    assert hours(25.0, needed_at, other=other).season is None, "it knows as well"


def test_a_season_is_judged_where_moments_alike_say_nothing_too() -> None:
    proven = hours(25.0, needed_at, silent=True).season
    assert proven is not None and proven.name == "yesterday"


def test_a_season_must_be_better_than_a_steady_number() -> None:
    assert hours(25.0, lambda at: 8.5).season is None
    assert hours(25.0, wrong_now_and_then).season is None, "moved until it is enough, it asks for more"


def test_a_season_is_judged_at_the_goal() -> None:
    assert hours(25.0, wrong_now_and_then, goal=0.8).season is not None, "so much may be late, if not just now"


def test_nothing_is_believed_of_what_nobody_asks() -> None:
    contest = Contest()
    for step in range(PROVEN * 7):
        at = 1e9 + step * EVERY_S
        said = {NONE: 0.0, ANALOGS: 0.0, PRESENT: 0.0, CONSTANT: 0.0, "yesterday": 0.0}
        sequel = Moment((0.0, 0.0, 0.0), need=0.0, weight=1e-9, at=at - EVERY_S)
        contest = judge(contest, Load(at=at, step_s=2.0, sequel=sequel), said, 0.99, 0.99)
    assert contest.season is None


def test_one_season_that_says_nothing_is_no_hindrance_to_the_other() -> None:
    before = Contest(season=Believed("a week ago", 0.5))
    assert hours(20.0, needed_at, since=before).season == before.season, "as it was proven before"
    now = hours(25.0, needed_at, since=before).season
    assert now is not None and now.name == "yesterday"


def test_a_season_that_was_silent_of_late_is_moved_by_what_is_known_of_it() -> None:
    long = hours(30.0, lambda at: needed_at(at) - 1.0)
    silent = hours(7.0, needed_at, of="a week ago", since=long)
    assert silent.season is not None and silent.season.name == "yesterday"
    assert silent.season.moved == pytest.approx(1.0)
    quiet = Contest(season=silent.season, judged=silent.judged[-60:], of_days=silent.of_days)
    assert hours(0.2, lambda at: 9.0, since=quiet).season == silent.season, "a few notes tell nothing"


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    proven = Scaler(contest=hours(25.0, needed_at))
    end = proven.contest.of_days[-1].at
    back = proven.shifted(lambda at: at - 7200 if at > end - 7200 else at).contest
    assert back.season == proven.contest.season
    assert hours(3.0, wrong, since=back).season is None


def test_a_day_and_a_half_of_seasons_is_kept() -> None:
    contest = hours(40.0, needed_at)
    assert len(contest.judged) == KEPT and len(contest.of_days) == KEPT_OF_DAYS and len(contest.open) < 5
    assert contest.judged[0].at == pytest.approx(contest.judged[-1].at - 6 * 3600, abs=60)
    assert contest.of_days[0].at == pytest.approx(contest.of_days[-1].at - 36 * 3600, abs=300)


def test_nothing_is_gained_by_a_forecast_that_says_the_same() -> None:
    assert said_and_needed(2 * ENOUGH, {NONE: 3.0, ANALOGS: 3.0}, 2.0, 3.0).believed == Believed(NONE)


def test_a_season_that_says_nothing_now_leaves_it_to_today() -> None:
    contest = Contest(usual=Believed(NONE, 1.0), season=Believed("yesterday", 0.5))
    said = {NONE: 3.0, ANALOGS: 4.0}
    assert season_need(contest, said) is None and usual_need(contest, said) == (4.0, NONE)
    assert usual_need(replace(contest, usual=Believed(ANALOGS, 0.5)), said) == (4.5, ANALOGS)
    assert season_need(contest, said | {"yesterday": 2.0}) == 2.5
    assert usual_need(Contest(), said) == (3.0, NONE), "nothing was judged yet"
    silent = Contest(usual=Believed(ANALOGS, 0.5))
    assert usual_need(silent, {NONE: 3.0}) == (3.0, NONE), "too little is known for moments alike"


@pytest.mark.parametrize("notes", [2 * ENOUGH, MANY, KEPT])
@pytest.mark.parametrize("before", [NONE, ANALOGS])
@pytest.mark.parametrize(("better_by", "believed"), [(-0.15, NONE), (0.15, ANALOGS)], ids=["worse", "better"])
def test_moments_alike_are_not_believed_where_they_are_worse_than_nothing(
    better_by: float, believed: str, before: str, notes: int
) -> None:
    contest = alternating(notes, better_by, since=Contest(usual=Believed(before)))
    assert contest.usual is not None and contest.usual.name == believed


def told(contest: Contest) -> tuple[str, float] | None:
    """What is believed, and by how much it is moved."""
    return None if contest.believed is None else (contest.believed.name, round(contest.believed.moved, 6))


def alternating(notes: int, better_by: float, since: Contest | None = None) -> Contest:
    """After so many notes of a load that goes up and down, of which moments alike tell a little, or less than that."""
    contest = since or Contest()
    for step in range(notes):
        at, need = 1e9 + step * EVERY_S, (9.0, 2.0)[step % 2]
        sequel = Moment((0.0, 0.0, 0.0), need=need, weight=1.0, at=at - EVERY_S)
        said = {NONE: 5.5, ANALOGS: 9.0 - (better_by if need == 9.0 else 0.0)}  # the next need is the other one
        contest = judge(contest, Load(at=at, step_s=2.0, sequel=sequel), said, 0.99, 0.99)
    return contest


@pytest.mark.parametrize(
    ("alike", "believed"),
    [
        pytest.param((9.0, 2.0), (ANALOGS, 0.0), id="all is foreseen"),
        pytest.param((9.0, 1.5), (ANALOGS, 0.0), id="enough for most of the work, and cheaper than no forecast"),
        pytest.param((1.0, 1.0), (NONE, 3.0), id="cheap, and enough for nothing"),
        pytest.param((1.0, 2.0), (NONE, 3.0), id="cheap, and enough for what is little"),
        pytest.param((8.9, 1.0), (NONE, 3.0), id="nearly all is foreseen, and enough for nothing"),
        pytest.param((9.5, 9.5), (NONE, 3.0), id="as dear as no forecast, when moved"),
    ],
)
def test_forecasts_are_compared_at_the_same_share_of_the_work(
    alike: tuple[float, float], believed: tuple[str, float]
) -> None:
    """Nine are needed after one moment, two after the next. No forecast says six each time."""
    contest = Contest()
    for step in range(2 * ENOUGH):
        at, need = 1e9 + step * EVERY_S, (2.0, 9.0)[step % 2]
        sequel = Moment((0.0, 0.0, 0.0), need=need, weight=need, at=at - EVERY_S)
        said = {NONE: 6.0, ANALOGS: alike[step % 2]}  # what comes next is the other one
        contest = judge(contest, Load(at=at, step_s=2.0, sequel=sequel), said, 0.99, 0.99)
    assert told(contest) == believed


def test_notes_are_as_far_apart_whatever_a_start_takes() -> None:
    for start_s in (2.0, 4.0, 30.0):
        contest = Contest()
        for step in range(200):
            at = 1e9 + 2.0 * step
            sequel = Moment((0.0, 0.0, 0.0), need=1.0, weight=1.0, at=at - start_s)
            contest = judge(contest, Load(at=at, step_s=2.0, sequel=sequel), {NONE: 1.0}, 0.99, 0.99)
        apart_s = {round(after.at - before.at) for before, after in itertools.pairwise(contest.judged)}
        assert apart_s == {round(EVERY_S)} and len(contest.judged) > 30


def test_a_forecast_is_believed_from_the_first_minutes_on() -> None:
    """A load that goes up and down each minute, from a controller's first measurement on."""
    past, scaler = Past(step_s=2.0, horizon_s=10.0, slack_s=1.0), Scaler()
    believed = []
    for step in range(600):
        at = 1e9 + 2.0 * step
        demand = 5.0 if step % 30 < 15 else 1.0
        sequel = past.add(demand, at)
        load = Load(at=at, step_s=2.0, demand=demand, moments=tuple(past.moments), features=past.features())
        said = forecasts(load, 0.99)
        scaler = replace(scaler, contest=judge(scaler.contest, replace(load, sequel=sequel), said, 0.99, 0.99))
        if scaler.contest.believed is not None and scaler.contest.believed.name == ANALOGS:
            believed.append(2.0 * step / 60)
    assert 7 <= believed[0] <= 10, "four minutes of moments, three of notes"


def test_a_believed_forecast_is_moved_to_the_wanted_share() -> None:
    contest = Contest()
    for step in range(2 * ENOUGH):
        at, need = 1e9 + step * EVERY_S, 1.0 + step % 3
        sequel = Moment((0.0, 0.0, 0.0), need=need, weight=1.0, at=at - EVERY_S)
        said = {NONE: 1.0 + (step + 1) % 3 - 0.5, ANALOGS: 3.0 - (step + 1) % 3}
        contest = judge(contest, Load(at=at, step_s=2.0, sequel=sequel), said, 0.99, 0.99)
    assert told(contest) == (NONE, 0.5)


@pytest.mark.parametrize(
    ("risen_at", "moved"),
    [
        pytest.param((), 0.0, id="never"),
        pytest.param((100.0,), 0.0, id="once"),
        pytest.param((100.0, 100.0 + ONCE_S), 0.0, id="for a while"),
        pytest.param((100.0, 700.0), 5.0, id="twice"),
        pytest.param((100.0, 700.0, 1300.0), 5.0, id="often"),
        pytest.param((3500.0,), 5.0, id="once, of late"),
        pytest.param((3000.0, 3500.0), 5.0, id="twice, of late"),
    ],
)
def test_what_the_load_has_risen_by_once_is_expected_for_a_while(risen_at: tuple[float, ...], moved: float) -> None:
    """An hour of notes, on replicas that start in 10 s. Most of the work comes in the rise, as in a load test."""
    contest = Contest()
    for step in range(360):
        at = step * EVERY_S
        is_risen = any(0 <= each - at < EVERY_S for each in risen_at)
        sequel = Moment((0.0, 0.0, 0.0), need=6.0 if is_risen else 1.0, weight=500.0 if is_risen else 1.0, at=at)
        said = {NONE: 1.0, ANALOGS: 7.0}
        load = Load(at=1e9 + at + EVERY_S, step_s=2.0, start_s=10.0, sequel=replace(sequel, at=1e9 + at))
        contest = judge(contest, load, said, 0.99, 0.99)
    assert told(contest) == (NONE, moved)


def test_seasons_tell_the_most_of_the_same_time_of_other_days() -> None:
    seasons, eight = Seasons(), 8 * 3600.0
    for day in range(9):
        for minute in range(0, 24 * 60, 2):
            at = day * DAY_S + minute * 60.0
            seasons.add(at, float(10 + day) if eight <= at % DAY_S < eight + 1200 else 1.0)
    now = 9 * DAY_S + eight
    assert seasons.likely(now - 600, 60.0) == {"yesterday": 1.0, "a week ago": 1.0}
    assert seasons.likely(now - 600, 660.0) == {"yesterday": 18.0, "a week ago": 12.0}
    assert seasons.likely(now + DAY_S, 60.0) == {"a week ago": 13.0}, "of a day that is not known nothing is said"
    assert len(seasons._most) <= WEEK + 2


def test_a_new_controller_knows_what_was_needed_and_what_was_believed() -> None:
    first, second = Seasons(), Seasons()
    for slot in (*range(10), *range(12, 20)):
        first.add(slot * SLOT_S, float(slot))
    told = first.history()
    assert told == History(first=0, most=(*map(float, range(10)), None, None, *map(float, range(12, 19))))
    assert told.last == 18, "the slot that goes on may need more yet"
    second.add(19 * SLOT_S, 1.0)
    second.learn(told)
    now = DAY_S + 9.5 * SLOT_S
    assert second.likely(now, 60.0) == {"yesterday": 9.0}
    assert second.likely(now + SLOT_S, 60.0) == {}, "nobody has measured then"
    assert second.likely(DAY_S + 19 * SLOT_S, 60.0) == {"yesterday": 1.0}
    assert Seasons().history() is None


def test_a_week_is_written_down_and_no_more() -> None:
    seasons = Seasons()
    for slot in range(2 * WEEK):
        seasons.add(slot * SLOT_S, 1.23456)
    told = seasons.history()
    assert told is not None
    assert told.last == 2 * WEEK - 2
    assert len(told.most) == WEEK and set(told.most) == {1.235}


def test_what_was_believed_stays_until_enough_was_judged() -> None:
    before = contest_of(History(first=0, most=(), believed="yesterday", moved=0.5))
    said = {NONE: 3.0, ANALOGS: 3.0, PRESENT: 3.0, CONSTANT: 0.0, "yesterday": 3.0}
    after = said_and_needed(2 * MANY, said, 2.0, 3.0, contest=before)
    assert after.believed == Believed("yesterday", 0.5)
    assert said_and_needed(PROVEN * 7, said, 2.0, 3.0, contest=before).believed == Believed(NONE)
    none = contest_of(History(first=0, most=(), believed=NONE, moved=0.5))
    assert none.usual == Believed(NONE, 0.5) and none.season is None
    assert contest_of(History(first=0, most=())) == contest_of(None) == Contest()


def test_what_was_found_in_hours_is_not_overturned_in_minutes() -> None:
    before = contest_of(History(first=0, most=(), believed=NONE, moved=0.5))
    assert alternating(MANY - 40, better_by=0.15, since=before).usual == before.usual
    now = alternating(MANY + 40, better_by=0.15, since=before).usual
    assert now is not None and now.name == ANALOGS
