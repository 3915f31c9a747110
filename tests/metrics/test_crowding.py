"""Models of which more is asked than their copies can do."""

from __future__ import annotations

import itertools
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
    """What so many copies of it tell, every STEP_S."""

    def __init__(self, copies: int = 1) -> None:
        self.crowding, self.copies, self.now = Crowding(), copies, NOW
        self._counted = Counters()

    def does(self, per_s: float, *, waiting: float, steps: int = 1) -> Pace | None:
        """Each copy answers so many requests a second, and as many wait there afterwards."""
        found: Pace | None = None
        for _ in range(steps):
            before, self.now = self._counted, self.now + STEP_S
            self._counted = Counters(success=before.success + per_s * STEP_S, pending=waiting)
            told = Interval(at=self.now, window_s=STEP_S, before={M: before}, after={M: self._counted})
            found = self.crowding.take([told] * self.copies, lambda key: 4, self.now).get(M)
        return found


@pytest.mark.parametrize("copies", [1, 3])
def test_a_queue_that_takes_seconds_tells_what_a_copy_does(copies: int) -> None:
    model = Model(copies)
    assert model.does(50, waiting=0, steps=20) is None
    assert model.does(100, waiting=190) is None, "that is done in less than two seconds"
    assert model.does(100, waiting=250) == Pace(per_s=100, at_once=4), "not what it did while it was asked less"
    assert model.does(100, waiting=900, steps=50) == Pace(per_s=100, at_once=4)


def test_it_lasts_until_the_queue_has_been_gone_for_a_while() -> None:
    model = Model()
    crowded = model.does(100, waiting=900, steps=5)
    assert crowded is not None
    quiet = int(QUIET_S / STEP_S)
    assert model.does(3, waiting=0, steps=quiet - 1) == crowded, "what is asked now is not what it can do"
    assert model.does(100, waiting=900) == crowded
    assert model.does(3, waiting=0, steps=quiet - 1) == crowded
    assert model.does(3, waiting=0) is None


def test_it_is_told_anew_only_where_it_has_changed() -> None:
    model = Model()
    first = model.does(100, waiting=900, steps=5)
    assert [model.does(per_s, waiting=900) for per_s in (90, 110, 85, 115, 95)] == [first] * 5
    less = model.does(40, waiting=900, steps=20)
    assert less is not None
    assert less.per_s == pytest.approx(40, rel=0.3)
    assert model.does(200, waiting=900) == Pace(per_s=200, at_once=4)


def test_chance_makes_no_changes_where_few_are_done() -> None:
    def few() -> Iterator[float]:
        while True:  # one in three seconds, as they come
            yield from (0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1)

    model, done = Model(), few()
    told = [model.does(next(done) / STEP_S, waiting=20) for _ in range(300)]
    changes = sum(one != other for one, other in itertools.pairwise(told[20:]))
    assert changes <= 3
    assert told[-1] is not None
    assert told[-1].per_s == pytest.approx(1 / 6, abs=0.15)


def test_a_model_that_hangs_lets_two_batches_wait() -> None:
    model = Model()
    assert model.does(10, waiting=0, steps=20) is None
    told = model.does(0, waiting=50, steps=100)
    assert told is not None
    assert told.within(10.0) == 8
    told = model.does(10, waiting=50, steps=20)
    assert told is not None
    assert told.per_s == pytest.approx(10, rel=0.3)


def test_what_is_unloaded_is_forgotten() -> None:
    model = Model()
    assert model.does(100, waiting=900) is not None
    model.crowding.take((), lambda key: 4, model.now + QUIET_S)
    assert model.crowding == Crowding(_at=model.now + QUIET_S)


@pytest.mark.parametrize(("per_s", "most"), [(100, 1000), (0.32, 8), (0.81, 9)])
def test_so_many_take_no_longer_than_that(per_s: float, most: int) -> None:
    assert Pace(per_s=per_s, at_once=4).within(10.0) == most
