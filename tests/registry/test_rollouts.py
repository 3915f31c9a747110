"""Promotions, their ends, rollbacks, aliases and the history, over each kind of store."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.core.errors import Conflict, InvalidInput, NotFound
from controlplane.core.models import HISTORY_IN_DOCUMENT, Step
from controlplane.registry import Registry
from controlplane.registry.layout import history_prefix
from tests.registry.entries import ACTOR, make_stable, register


@pytest.fixture
def model(registry: Registry, tmp_path: Path) -> Registry:
    """A registry with three versions of the model `m`."""
    for number in range(1, 4):
        register(registry, tmp_path, content=str(number))
    return registry


def test_a_promotion_moves_stable_when_it_has_succeeded(model: Registry) -> None:
    rollout = model.promote("m", 2, actor=ACTOR, reason="better")
    assert (rollout.source, rollout.target, rollout.state, rollout.reason) == (None, 2, "running", "better")
    assert model.model("m").stable is None
    after = model.finish_rollout("m", rollout.id, state="succeeded", reason="served", actor="controller")
    assert (after.stable, after.previous_stable, after.running_rollout) == (2, None, None)
    make_stable(model, "m", 3)
    assert (model.model("m").stable, model.model("m").previous_stable) == (3, 2)


def test_a_failed_promotion_leaves_stable_alone(model: Registry) -> None:
    make_stable(model, "m", 1)
    rollout = model.promote("m", 2, actor=ACTOR)
    after = model.finish_rollout("m", rollout.id, state="failed", reason="it does not load", actor="controller")
    assert after.stable == 1
    assert after.rollout is not None
    assert (after.rollout.state, after.rollout.reason) == ("failed", "it does not load")
    assert after.rollout.ended_at is not None


def test_a_second_promotion_is_told_of_the_first(model: Registry) -> None:
    first = model.promote("m", 1, actor="ann@there")
    for version in (1, 2):
        with pytest.raises(Conflict) as refused:
            model.promote("m", version, actor=ACTOR)
        assert first.id in refused.value.what
        assert "ann@there" in refused.value.what
        assert "ctl rollback m" in (refused.value.remedy or "")


def test_promoting_what_is_stable_changes_nothing(model: Registry) -> None:
    make_stable(model, "m", 1)
    before = model.model("m")
    rollout = model.promote("m", 1, actor=ACTOR)
    assert (rollout.target, rollout.state) == (1, "succeeded")
    assert model.model("m") == before


def test_the_end_of_a_rollout_counts_once(model: Registry) -> None:
    first = model.promote("m", 1, actor=ACTOR)
    model.rollback("m", actor=ACTOR)
    second = model.promote("m", 2, actor=ACTOR)
    assert model.finish_rollout("m", first.id, state="succeeded", reason="", actor="controller").stable is None
    running = model.model("m").running_rollout
    assert running is not None
    assert running.id == second.id


def test_rollback_goes_to_what_was_stable_before(model: Registry) -> None:
    make_stable(model, "m", 1)
    with pytest.raises(NotFound, match="no version to go back to"):
        model.rollback("m", actor=ACTOR)
    make_stable(model, "m", 2)
    rollout = model.rollback("m", actor=ACTOR, reason="it is slow")
    assert (rollout.source, rollout.target, rollout.state) == (2, 1, "running")
    model.finish_rollout("m", rollout.id, state="succeeded", reason="served", actor="controller")
    assert (model.model("m").stable, model.model("m").previous_stable) == (1, 2)


def test_rollback_aborts_what_is_under_way(model: Registry) -> None:
    make_stable(model, "m", 1)
    model.promote("m", 2, actor=ACTOR)
    assert model.rollback("m", actor=ACTOR, reason="no").state == "aborted"
    assert (model.model("m").stable, model.model("m").running_rollout) == (1, None)


def test_what_is_retired_is_served_no_more_and_comes_back_or_goes(model: Registry) -> None:
    with pytest.raises(NotFound, match="nothing of m is stable"):
        model.retire("m", actor=ACTOR)
    make_stable(model, "m", 1)
    with pytest.raises(Conflict, match="ctl retire m"):
        model.delete_version("m", 1, actor=ACTOR)
    model.promote("m", 2, actor=ACTOR)
    with pytest.raises(Conflict, match="under way"):
        model.retire("m", actor=ACTOR)
    model.rollback("m", actor=ACTOR)
    model.set_alias("m", "candidate", 2, actor=ACTOR)
    assert model.retire("m", actor=ACTOR, dry_run=True).stable is None
    assert model.model("m").stable == 1
    after = model.retire("m", actor=ACTOR, reason="nobody asks")
    assert (after.stable, after.previous_stable, dict(after.aliases)) == (None, 1, {"candidate": 2})
    assert (after.history[-1].action, after.history[-1].previous) == ("retire", 1)
    back = model.rollback("m", actor=ACTOR)
    assert (back.source, back.target) == (None, 1)
    model.finish_rollout("m", back.id, state="succeeded", reason="", actor="controller")
    assert (model.model("m").stable, model.model("m").previous_stable) == (1, None)
    model.retire("m", actor=ACTOR)
    model.delete_version("m", 1, actor=ACTOR)
    with pytest.raises(NotFound, match="no version to go back to"):
        model.rollback("m", actor=ACTOR)


def test_dry_runs_check_and_write_nothing(model: Registry) -> None:
    make_stable(model, "m", 1)
    before = model.model("m")
    assert model.promote("m", 2, actor=ACTOR, dry_run=True).target == 2
    with pytest.raises(NotFound):
        model.promote("m", 9, actor=ACTOR, dry_run=True)
    model.set_alias("m", "candidate", 2, actor=ACTOR, dry_run=True)
    assert model.model("m") == before
    assert len(list(model.store.list(history_prefix("m")))) == len(before.history)


@pytest.mark.parametrize("steps", [(), (0, 100), (50,), (50, 50, 100), (100, 50), (-1, 100), (50, 101)], ids=str)
def test_steps_rise_to_all_of_it(model: Registry, steps: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput):
        model.promote("m", 1, actor=ACTOR, steps=tuple(Step(weight_percent=each) for each in steps))


@pytest.mark.parametrize("name", ["promote", "rollback", "alias"])
def test_a_model_that_is_not_there_is_not_made(registry: Registry, name: str) -> None:
    with pytest.raises(NotFound, match="no model 'm'"):
        if name == "promote":
            registry.promote("m", 1, actor=ACTOR)
        elif name == "rollback":
            registry.rollback("m", actor=ACTOR)
        else:
            registry.set_alias("m", "a", 1, actor=ACTOR)
    assert list(registry.store.list("")) == []


def test_aliases_point_at_versions(model: Registry) -> None:
    assert model.set_alias("m", "candidate", 2, actor=ACTOR).aliases == {"candidate": 2}
    assert model.set_alias("m", "candidate", 3, actor=ACTOR).aliases == {"candidate": 3}
    assert model.delete_alias("m", "candidate", actor=ACTOR).aliases == {}
    with pytest.raises(NotFound):
        model.delete_alias("m", "candidate", actor=ACTOR)
    with pytest.raises(NotFound):
        model.set_alias("m", "candidate", 9, actor=ACTOR)


@pytest.mark.parametrize("alias", ["stable", "2", "a/b", "", ".."])
def test_some_aliases_are_refused(model: Registry, alias: str) -> None:
    with pytest.raises(InvalidInput):
        model.set_alias("m", alias, 1, actor=ACTOR)
    with pytest.raises(InvalidInput):
        model.delete_alias("m", alias, actor=ACTOR)


def test_the_history_is_kept_whole(model: Registry) -> None:
    count = HISTORY_IN_DOCUMENT + 10
    for number in range(count):
        model.set_alias("m", "candidate", 1 + number % 2, actor=ACTOR, reason=str(number))
    assert len(model.model("m").history) == HISTORY_IN_DOCUMENT
    everything = model.history("m", 1000)
    assert [each.reason for each in everything[:count]] == [str(number) for number in reversed(range(count))]
    assert [each.action for each in everything[count:]] == ["register"] * 3
    assert [each.reason for each in model.history("m", 2)] == [str(count - 1), str(count - 2)]


def test_an_entry_leaves_the_document_only_as_an_object(model: Registry) -> None:
    """A writer that died between the document and the history's object has lost nothing."""
    first = model.model("m").history[0]
    for each in list(model.store.list(history_prefix("m"))):
        model.store.delete(each.key)
    for number in range(HISTORY_IN_DOCUMENT):
        model.set_alias("m", "candidate", 1 + number % 2, actor=ACTOR)
    assert first not in model.model("m").history
    assert model.history("m", 1000)[-1] == first
