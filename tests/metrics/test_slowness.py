"""Replicas that compute slower than others, and those that only seem to."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from controlplane.core.names import Key
from controlplane.core.scaling.capacity import Executions
from controlplane.metrics.batches import Batches
from controlplane.metrics.slowness import ENOUGH, SLOW, SLOW_FOR_S, Slowness, ratios

A, B = Key("a", 1), Key("b", 1)


def took(mean_ms: float, count: float = 100, size: int = 1) -> Batches:
    return {size: Executions(size=size, count=count, total_s=count * mean_ms / 1e3)}


def test_it_takes_so_many_times_as_long_as_the_others_in_the_middle() -> None:
    executed = {"r0": {A: took(80, 50)}, "r1": {A: took(10)}, "r2": {A: took(20)}, "r3": {A: took(30)}}
    assert ratios(executed, {A})["r0"] == pytest.approx(4)
    assert ratios(executed, {A})["r2"] == pytest.approx(2 / 3)


def test_batches_are_compared_with_batches_of_their_size() -> None:
    executed: dict[str, dict[Key, Batches]] = {
        "r0": {A: took(80, 25, size=8)},
        "r1": {A: {**took(10), **took(80, 50, size=8)}},
    }
    assert ratios(executed, {A})["r0"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("executed", "why"),
    [
        ({"r0": {A: took(90)}}, "there is no other"),
        ({"r0": {A: took(90)}, "r1": {B: took(10)}}, "the others have other models"),
        ({"r0": {A: took(90, ENOUGH - 1)}, "r1": {A: took(10)}}, "too few"),
        ({"r0": {A: took(90, 50, size=2)}, "r1": {A: took(10)}}, "batches of other sizes"),
    ],
)
def test_what_says_nothing(executed: Mapping[str, Mapping[Key, Batches]], why: str) -> None:
    assert "r0" not in ratios(executed, {A, B}), why


def test_a_model_whose_executions_may_differ_says_nothing() -> None:
    assert ratios({"r0": {A: took(90)}, "r1": {A: took(10)}}, {B}) == {}


def test_who_has_more_to_do_may_be_slower() -> None:
    """Its processor is busy with another model's requests; a new replica in its place would be as slow."""
    executed = {"r0": {A: took(90, 50), B: took(50)}, "r1": {A: took(10)}, "r2": {A: took(10)}}
    assert ratios(executed, {A, B})["r0"] == 1


def test_it_is_slow_when_it_has_been_so_for_a_while() -> None:
    def reading(mean_ms: float, count: float = 50) -> dict[str, dict[Key, Batches]]:
        return {"r0": {A: took(mean_ms, count)}, "r1": {A: took(10)}}

    slowness = Slowness()
    slowness.take(reading(10 * SLOW), {A}, 0.0)
    assert not slowness.slow(SLOW_FOR_S), "it was judged once"
    slowness.take(reading(10, count=1), {A}, SLOW_FOR_S / 2)
    slowness.take(reading(50), {A}, SLOW_FOR_S)
    assert slowness.slow(SLOW_FOR_S) == {"r0": pytest.approx(5)}
    slowness.take(reading(10), {A}, SLOW_FOR_S + 1)
    assert not slowness.slow(2 * SLOW_FOR_S), "it has recovered"
    slowness.take(reading(50), {A}, 3 * SLOW_FOR_S)
    slowness.take({"r1": {A: took(10)}}, {A}, 4 * SLOW_FOR_S)
    assert not slowness.slow(5 * SLOW_FOR_S), "it has gone"


def test_what_was_not_judged_for_long_is_forgotten() -> None:
    reading, slowness = {"r0": {A: took(50)}, "r1": {A: took(10)}}, Slowness()
    for at in (0.0, SLOW_FOR_S):
        slowness.take(reading, {A}, at)
    assert slowness.slow(2 * SLOW_FOR_S)
    assert not slowness.slow(2 * SLOW_FOR_S + 1)
