"""Models of which more is asked than their copies can do."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator

import pytest

from controlplane.core.names import Key
from controlplane.core.routes import Pace
from controlplane.metrics.counters import Counters
from controlplane.metrics.crowding import QUIET_S, Crowding
from controlplane.metrics.readings import Interval

M = Key("m", 1)
NOW = 1_000_000.0
STEP_S = 2.0


class Model:
    """What so many copies of it tell, every STEP_S; `usual_per_s` is what one is known to do, 0 if nothing is."""

    def __init__(self, copies: int = 1, *, usual_per_s: float = 0.0, at_once: int = 4) -> None:
        self.crowding, self.copies, self.now = Crowding(), copies, NOW
        self.usual = Pace(per_s=usual_per_s, at_once=at_once)
        self._counted = [Counters()] * copies

    def does(self, per_s: float, *, waiting: float, steps: int = 1) -> Pace | None:
        """Each copy answers so many requests a second, and as many wait there afterwards."""
        found: Pace | None = None
        for _ in range(steps):
            found = self.tells([(per_s * STEP_S, waiting)] * self.copies)
        return found

    def tells(self, copies: list[tuple[float, float]]) -> Pace | None:
        """Each copy has answered some requests since the reading before, and others wait there."""
        before, self.now = self._counted, self.now + STEP_S
        self._counted = [
            Counters(success=one.success + answered, pending=waiting)
            for one, (answered, waiting) in zip(before, copies, strict=True)
        ]
        told = [
            Interval(at=self.now, window_s=STEP_S, before={M: one}, after={M: other})
            for one, other in zip(before, self._counted, strict=True)
        ]
        return self.crowding.take(told, lambda key: self.usual, self.now).get(M)


@pytest.mark.parametrize("copies", [1, 3])
def test_a_queue_that_takes_seconds_tells_what_a_copy_does(copies: int) -> None:
    model = Model(copies)
    assert model.does(50, waiting=0, steps=20) is None
    assert model.does(70, waiting=190) is None, "it had too little to do before"
    assert model.does(100, waiting=190) is None, "that is done in less than two seconds"
    assert model.does(100, waiting=250) == Pace(per_s=100, at_once=4), "not what it did while it was asked less"
    assert model.does(100, waiting=900, steps=50) == Pace(per_s=100, at_once=4)


def test_it_lasts_until_the_queue_has_been_short_for_a_while() -> None:
    model = Model()
    crowded = model.does(100, waiting=900, steps=5)
    assert crowded is not None
    quiet = int(QUIET_S / STEP_S)
    assert model.does(3, waiting=0, steps=quiet - 1) == crowded, "what is asked now is not what it can do"
    assert model.does(100, waiting=900, steps=2) == crowded
    assert model.does(3, waiting=0, steps=quiet - 1) == crowded
    assert model.does(3, waiting=0) is None


def test_it_is_told_anew_only_where_it_has_changed() -> None:
    model = Model()
    first = model.does(100, waiting=900, steps=5)
    assert [model.does(per_s, waiting=900) for per_s in (90, 110, 85, 115, 95)] == [first] * 5
    less = model.does(40, waiting=900, steps=2)
    assert less is not None
    assert less.per_s == pytest.approx(40, rel=0.3)
    assert model.does(200, waiting=900) == Pace(per_s=200, at_once=4)


def in_batches(size: int, took_s: float) -> Iterator[int]:
    """How many are answered in each step, where so many end together."""
    for step in itertools.count(1):
        yield size * (int(step * STEP_S / took_s) - int((step - 1) * STEP_S / took_s))


@pytest.mark.parametrize(("size", "took_s"), [(1, 3.0), (1, 7.0), (32, 1.5), (64, 3.0), (128, 5.0), (8, 0.3)])
def test_batches_and_chance_make_no_changes(size: int, took_s: float) -> None:
    model, done = Model(at_once=size), in_batches(size, took_s)
    told = [model.tells([(next(done), 50.0 * size)]) for _ in range(300)]
    changes = sum(one != other for one, other in itertools.pairwise(told[10:]))
    assert changes <= 3
    assert told[-1] is not None
    assert told[-1].per_s == pytest.approx(size / took_s, rel=0.6)


@pytest.mark.parametrize(
    ("burst", "takes_s", "every_s"), [(30, 0.05, 10), (30, 0.05, 55), (4, 1.0, 20), (3, 1.0, 10), (3, 3.0, 30)]
)
def test_a_burst_to_a_model_that_is_asked_little_is_not_refused(burst: int, takes_s: float, every_s: int) -> None:
    """One copy that takes so long for each request, and as many at once from time to time."""
    model, chance = Model(usual_per_s=1 / takes_s, at_once=1), random.Random(1)  # noqa: S311 - no secret
    queue: deque[float] = deque()
    free_at, next_burst, refused = model.now, model.now + 1, 0
    answered: list[float] = []
    limit: int | None = None
    while model.now < NOW + 600:
        end = model.now + STEP_S
        while next_burst <= end:
            for _ in range(burst):
                if limit is not None and len(queue) + sum(at > next_burst for at in answered) >= limit:
                    refused += 1
                else:
                    queue.append(next_burst)
            next_burst += every_s * chance.uniform(0.8, 1.2)
        while queue and max(free_at, queue[0]) <= end:
            free_at = max(free_at, queue.popleft()) + takes_s
            answered.append(free_at)
        done = sum(at <= end for at in answered)
        answered = [at for at in answered if at > end]
        pace = model.tells([(done, len(queue))])
        limit = pace.within(10.0) if pace is not None else None
    assert not refused


def test_a_model_that_hangs_lets_two_batches_wait_and_comes_back() -> None:
    model = Model(usual_per_s=100)
    assert model.does(10, waiting=0, steps=20) is None
    told = model.does(0, waiting=50, steps=100)
    assert told is not None
    assert told.within(10.0) == 8
    assert model.does(10, waiting=0) == Pace(per_s=100, at_once=4), "there is no queue, so it is well again"


def test_while_a_few_reach_a_model_that_hangs_no_longer_that_is_measured() -> None:
    model = Model()
    assert model.does(0, waiting=50, steps=100) == Pace(per_s=0, at_once=4)
    told = model.does(100, waiting=7, steps=3)
    assert told is not None
    assert told.per_s == pytest.approx(100, rel=0.3)


def test_copies_that_are_asked_less_do_not_tell_what_one_can_do() -> None:
    model = Model(2)
    for _ in range(10):
        told = model.tells([(200, 900), (2, 0)])
    assert told == Pace(per_s=100, at_once=4)


def test_one_that_hangs_does_not_tell_what_the_others_do() -> None:
    model = Model(4, usual_per_s=100)
    for _ in range(60):
        assert model.tells([(200, 0), (200, 0), (200, 0), (0, 1)]) is None
    assert model.tells([(200, 0), (200, 0), (200, 0), (0, 1000)]) == Pace(per_s=75, at_once=4)


def test_a_hang_is_told_also_where_many_are_executed_at_once() -> None:
    model = Model(at_once=64)
    assert model.does(20, waiting=500, steps=20) == Pace(per_s=20, at_once=64)
    told = model.does(0, waiting=500, steps=100)
    assert told is not None
    assert told.per_s <= 1


def test_only_so_many_have_places_of_their_own_and_they_keep_them() -> None:
    crowding, now = Crowding(), NOW

    def read(waiting: float, *, of: range) -> set[str]:
        nonlocal now
        now += STEP_S
        queue = {Key(f"m{number}", 1): Counters(success=20, pending=waiting + number) for number in of}
        told = Interval(at=now, window_s=STEP_S, before={key: Counters(pending=9) for key in queue}, after=queue)
        return {key.model for key in crowding.take([told], lambda key: Pace(per_s=0, at_once=1), now)}

    most = {f"m{number}" for number in range(80, 100)}
    assert read(100, of=range(100)) == most
    assert read(100, of=range(200)) == most


def test_what_is_unloaded_is_forgotten_and_so_is_a_time_that_has_not_been() -> None:
    model = Model()
    assert model.does(100, waiting=900, steps=2) is not None
    model.crowding.take((), lambda key: model.usual, model.now + QUIET_S)
    assert model.crowding == Crowding()
    assert model.does(100, waiting=900, steps=2) is not None
    model.now -= 3600
    assert model.does(1, waiting=0) is None


@pytest.mark.parametrize(("per_s", "most"), [(100, 1000), (0.32, 8), (0.81, 9)])
def test_so_many_take_no_longer_than_that(per_s: float, most: int) -> None:
    assert Pace(per_s=per_s, at_once=4).within(10.0) == most
