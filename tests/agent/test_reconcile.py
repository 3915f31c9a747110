"""Wanted × held → the next step, as a table, and from any state to the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.agent.reconcile import (
    Failure,
    Forget,
    Held,
    Keep,
    Load,
    Prove,
    Step,
    died,
    next_retry,
    next_step,
    to_fetch,
)
from controlplane.core.entry import Entry
from controlplane.core.messages import Wanted
from controlplane.core.models import Manifest

MANIFEST = Manifest(entry=Entry(name="m", backend="python"), files=())


def held(digest: str | None = "a", **state: object) -> Held:
    wanted = Wanted(model="m", version=1, digest=digest, manifest=MANIFEST) if digest else None
    return replace(Held(wanted=wanted), **state)  # type: ignore[arg-type]


NEW = held()
HERE = held(files=True)
LOADED = held(files=True, loaded=True)
READY = held(files=True, loaded=True, proved=True)
BROKEN = held(files=True, failure=Failure(reason="", blames="model"))
DISPROVED = held(files=True, loaded=True, failure=Failure(reason="", blames="model"))
LATER = held(files=True, failure=Failure(reason="", blames="environment", retry_at=10.0))
OTHER = held("b", files=True, loaded=True, proved=True)
STRAY = held(None, loaded=True)
NONE: frozenset[int] = frozenset()


@pytest.mark.parametrize(
    ("wanted", "present", "now", "step"),
    [
        pytest.param({}, {}, 0, None, id="nothing"),
        pytest.param({1: "a"}, {1: NEW}, 0, None, id="no files yet"),
        pytest.param({1: "a"}, {1: HERE}, 0, Load(1, NONE), id="first load"),
        pytest.param({1: "a"}, {1: LOADED}, 0, Prove(1), id="adopted unproved"),
        pytest.param({1: "a"}, {1: READY}, 0, None, id="done"),
        pytest.param({1: "a", 2: "a"}, {1: READY, 2: HERE}, 0, Load(2, frozenset({1})), id="second beside first"),
        pytest.param({2: "a"}, {1: READY, 2: READY}, 0, Keep(frozenset({2})), id="first leaves"),
        pytest.param({2: "a"}, {1: READY, 2: HERE}, 0, Keep(NONE), id="what goes, goes first"),
        pytest.param({}, {1: READY}, 0, Keep(NONE), id="all leaves"),
        pytest.param({}, {1: HERE}, 0, Forget(1), id="forgotten"),
        pytest.param({}, {1: BROKEN}, 0, Forget(1), id="failure forgotten"),
        pytest.param({1: "a"}, {1: BROKEN}, 99, None, id="the model's failure stays"),
        pytest.param({1: "a"}, {1: DISPROVED}, 0, Keep(NONE), id="failed its proof"),
        pytest.param({1: "a"}, {1: LATER}, 9, None, id="not yet"),
        pytest.param({1: "a"}, {1: LATER}, 10, Load(1, NONE), id="again"),
        pytest.param({1: "a"}, {1: OTHER}, 0, Keep(NONE), id="another digest"),
        pytest.param({1: "a"}, {1: replace(OTHER, loaded=False)}, 0, Forget(1), id="another digest's remains"),
        pytest.param({1: "a", 2: "a"}, {1: STRAY, 2: READY}, 0, Keep(frozenset({2})), id="a stray"),
    ],
)
def test_next_step(wanted: dict[int, str], present: dict[int, Held], now: float, step: Step | None) -> None:
    assert next_step(wanted, present, now=now) == step


def test_a_version_that_waits_for_other_models_is_passed_over() -> None:
    wanted, present = {1: "a", 2: "a"}, {1: HERE, 2: HERE}
    assert next_step(wanted, present, now=0, blocked=frozenset({1})) == Load(2, NONE)


def test_what_is_fetched_and_when_the_next_retry_is() -> None:
    waiting = replace(LATER, files=False)
    present = {1: NEW, 2: HERE, 3: waiting, 4: replace(NEW, doing="downloading"), 5: STRAY}
    assert to_fetch(present, now=0) == (1,)
    assert to_fetch(present, now=10) == (1, 3)
    assert next_retry(present, now=4) == 6
    assert next_retry({1: BROKEN}, now=4) is None
    assert next_retry(present, now=10) is None, "it may be tried already: whatever it waits for, it is not time"


states = st.builds(
    held,
    st.sampled_from(["a", "b", None]),
    files=st.booleans(),
    loaded=st.booleans(),
    failure=st.sampled_from([None, BROKEN.failure, LATER.failure]),
)


@given(st.dictionaries(st.integers(1, 4), st.just("a")), st.dictionaries(st.integers(1, 4), states))
def test_from_any_state_it_comes_to_rest_as_wanted(wanted: dict[int, str], start: dict[int, Held]) -> None:
    """And a version that is wanted and good is never left out of a step on the way."""
    present = dict(start)
    for number in wanted:
        present.setdefault(number, NEW)
    good = {n for n in wanted if present[n].loaded and present[n].digest == wanted[n] and not present[n].failure}
    for _ in range(40):
        for number in to_fetch(present, now=100):
            present[number] = replace(present[number], files=True, failure=None)
        step = next_step(wanted, present, now=100)
        if step is None:
            break
        if isinstance(step, Forget):
            del present[step.version]
            if step.version in wanted:
                present[step.version] = NEW
        elif isinstance(step, Keep):
            assert good <= step.versions
            for number in set(present) - step.versions:
                present[number] = replace(present[number], loaded=False, proved=False)
        elif isinstance(step, Load):
            assert good <= step.present | {step.version}
            present[step.version] = replace(present[step.version], loaded=True, proved=True, failure=None)
        else:
            present[step.version] = replace(present[step.version], proved=True)
    else:
        raise AssertionError("it never came to rest")
    assert set(present) == set(wanted)
    assert all(each.proved or (each.failure and each.failure.retry_at is None) for each in present.values())


def test_a_version_whose_process_dies_again_and_again_is_loaded_ever_more_slowly() -> None:
    state, delays = READY, []
    for now in (0.0, 50.0, 60.0, 70.0, 80.0):
        state = died(state, now=now, window_s=100.0, pause_s=lambda deaths: 2.0**deaths)
        assert state.failure is not None
        assert state.failure.retry_at is not None
        delays.append(state.failure.retry_at - now)
        assert next_step({1: "a"}, {1: state}, now=now) == Keep(NONE)
        bare = replace(state, loaded=False)
        assert next_step({1: "a"}, {1: bare}, now=state.failure.retry_at) == Load(1, NONE)
        state = replace(state, failure=None, proved=True)
    assert delays == [0, 4, 8, 16, 32]
    late = died(state, now=181.0, window_s=100.0, pause_s=lambda deaths: 2.0**deaths)
    assert (late.deaths, late.failure and late.failure.retry_at) == (1, 181.0)
