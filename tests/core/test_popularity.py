"""Counts of requests that fade."""

from __future__ import annotations

import pytest

from controlplane.core.names import Key
from controlplane.core.placement.popularity import HALF_LIFE, LARGEST, Popularity

A, B = Key("a", 1), Key("b", 1)


def test_requests_fade_by_requests_and_not_by_time() -> None:
    made = Popularity()
    made.add({A: 1}, loaded=1)
    for _ in range(100):
        made.add({}, loaded=1)
    assert made.counts()[A] == pytest.approx(1.0)
    made.add({B: HALF_LIFE}, loaded=1)
    assert made.counts() == pytest.approx({A: 0.5, B: HALF_LIFE})


def test_it_goes_on_for_ever_within_bounds() -> None:
    made = Popularity()
    made.add({B: 1000}, loaded=1)
    for _ in range(20_000):
        made.add({A: 10}, loaded=1)
    assert set(made.counts()) == {A}, "what fades to nothing is forgotten"
    assert made.counts()[A] == pytest.approx(10 / (1 - 0.5 ** (10 / HALF_LIFE)))
    assert made._weight <= LARGEST * 2
