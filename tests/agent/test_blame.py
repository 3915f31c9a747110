"""Whose fault a crash was: only whoever must have been."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.agent.blame import Crash, judge
from controlplane.core.names import Key

A, B = Key("a", 1), Key("b", 1)


def crash(at: float = 0.0, how: Any = "crash", *, culprit: Key | None = None, **sets: set[Key]) -> Crash:
    return Crash(at=at, how=how, culprit=culprit, **{name: frozenset(keys) for name, keys in sets.items()})


@pytest.mark.parametrize(
    ("crashes", "guilty", "careful"),
    [
        pytest.param([crash(loading={A}, loaded={B})], A, set(), id="one was loading"),
        pytest.param([crash(loading={A, B})], None, {A, B}, id="two were loading"),
        pytest.param([crash(loading={A, B}), crash(1, loading={A})], A, set(), id="then one of them alone"),
        pytest.param([crash(settling={A}, loaded={A, B})], None, {A}, id="one had just been loaded"),
        pytest.param([crash(settling={A}), crash(1, settling={A})], A, set(), id="just been loaded, twice"),
        pytest.param([crash(settling={Key("m", n) for n in range(9)})], None, set(), id="all had just been loaded"),
        pytest.param([crash(loaded={A})], None, set(), id="serving, once"),
        pytest.param([crash(loaded={A}), crash(1, loaded={A})], A, set(), id="the only one loaded, twice"),
        pytest.param([crash(loaded={A}), crash(999, loaded={A})], None, set(), id="long ago"),
        pytest.param(
            [crash(loaded={A, B}, in_use={A}), crash(1, loaded={A, B}, in_use={A})],
            A,
            set(),
            id="the only one used, twice",
        ),
        pytest.param(
            [crash(loaded={A, B}, in_use={A}), crash(1, loaded={A, B}, in_use={A, B})], None, set(), id="not clear"
        ),
        pytest.param([crash(loaded={A, B}), crash(1, loaded={A, B})], None, set(), id="nobody known"),
        pytest.param([crash(loaded={A}), crash(1, loaded={B})], None, set(), id="not the same"),
        pytest.param([crash(how="hang", loading={A})], None, {A}, id="a hang in a load, once"),
        pytest.param([crash(how="hang", loading={A}), crash(1, "hang", loading={A})], A, set(), id="and twice"),
        pytest.param([crash(how="killed", loaded={A})] * 2, None, set(), id="killed while serving, twice"),
        pytest.param([crash(how="killed", loading={A})], None, {A}, id="killed in a load, once"),
        pytest.param([crash(how="killed", loading={A}), crash(1, "killed", loading={A})], A, set(), id="and twice"),
        pytest.param([crash(how="unknown", loading={A})], None, {A}, id="ended in a load, nobody knows how"),
        pytest.param([crash(how="unknown", loading={A}), crash(1, "unknown", loading={A})], A, set(), id="and twice"),
        pytest.param([crash(how="unknown", loaded={A}), crash(1, "unknown", loaded={A})], A, set(), id="while serving"),
        pytest.param([crash(how="stuck", culprit=A, loading={B})], None, set(), id="had to be ended, once"),
        pytest.param(
            [crash(how="stuck", culprit=A), crash(1, "stuck", culprit=A, settling={B})], A, set(), id="and twice"
        ),
        pytest.param([crash()], None, set(), id="an empty server"),
    ],
)
def test_verdict(crashes: list[Crash], guilty: Key | None, careful: set[Key]) -> None:
    verdict = judge(crashes, window_s=600)
    assert verdict.guilty == guilty
    assert verdict.careful == careful
    assert bool(verdict.reason) == (guilty is not None)
