"""Registering and deleting, over each kind of store."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from controlplane.core.errors import Conflict, InvalidInput, NotFound
from controlplane.core.models import Manifest
from controlplane.registry import Registry, open_registry
from controlplane.registry.documents import write_manifest
from controlplane.registry.layout import BLOBS, blob_key, model_key
from controlplane.registry.versions import Progress
from tests.registry.entries import ACTOR, ensemble, entry, make_stable, register, write


def test_a_version_is_its_entry_and_its_files(registry: Registry, tmp_path: Path) -> None:
    files = write(tmp_path, {"model.onnx": "weights", "labels/a.txt": "cat", "labels/b.txt": "cat"})
    made = registry.register(entry(), files, actor=ACTOR, reason="first", labels={"commit": "abc"})
    assert (made.version, made.created) == (1, True)
    manifest = registry.manifest(made.digest)
    assert manifest == made.manifest
    assert [file.path for file in manifest.files] == ["labels/a.txt", "labels/b.txt", "model.onnx"]
    blobs = {each.key.removeprefix(BLOBS) for each in registry.store.list(BLOBS)}
    assert blobs == {made.digest, *(file.sha256 for file in manifest.files)}, "equal files are stored once"
    version = registry.model("m").version(1)
    assert version is not None
    assert (version.digest, version.actor, dict(version.labels)) == (made.digest, ACTOR, {"commit": "abc"})
    item = registry.history("m")[0]
    assert (item.action, item.version, item.actor, item.reason) == ("register", 1, ACTOR, "first")
    sources = registry.sources(manifest, 60)
    assert set(sources) == {file.sha256 for file in manifest.files}


def test_the_same_again_is_the_same_version(registry: Registry, tmp_path: Path) -> None:
    first = register(registry, tmp_path)
    again = register(registry, tmp_path)
    assert (again.version, again.digest, again.created, again.uploaded_bytes) == (1, first.digest, False, 0)
    assert len(registry.model("m").history) == 1


@pytest.mark.parametrize(
    ("content", "fields"),
    [("other", {}), ("weights", {"max_batch_size": 8})],
    ids=["other bytes", "another entry"],
)
def test_anything_else_is_a_new_version(
    registry: Registry, tmp_path: Path, content: str, fields: dict[str, Any]
) -> None:
    first = register(registry, tmp_path)
    second = register(registry, tmp_path, content=content, **fields)
    assert (second.version, second.created) == (2, True)
    assert second.digest != first.digest


def test_new_labels_go_to_the_version_that_is_there(registry: Registry, tmp_path: Path) -> None:
    files = write(tmp_path, {"model.onnx": "weights"})
    registry.register(entry(), files, actor=ACTOR, labels={"a": "1"})
    assert not registry.register(entry(), files, actor=ACTOR, labels={"b": "2"}).created
    version = registry.model("m").version(1)
    assert version is not None
    assert dict(version.labels) == {"a": "1", "b": "2"}


def test_a_dry_run_writes_nothing(registry: Registry, tmp_path: Path) -> None:
    files = write(tmp_path, {"model.onnx": "weights"})
    would = registry.register(entry(), files, actor=ACTOR, dry_run=True)
    assert list(registry.store.list("")) == []
    done = registry.register(entry(), files, actor=ACTOR)
    assert (would.version, would.digest, would.created) == (done.version, done.digest, done.created)
    assert would.uploaded_bytes == done.uploaded_bytes


def test_a_check_stops_a_registration_before_anything_is_sent(registry: Registry, tmp_path: Path) -> None:
    def refuse(_: Manifest) -> None:
        raise InvalidInput("no")

    with pytest.raises(InvalidInput, match="no"):
        registry.register(entry(), write(tmp_path, {"model.onnx": "weights"}), actor=ACTOR, check=refuse)
    assert list(registry.store.list("")) == []


def test_progress_reaches_its_end(registry: Registry, tmp_path: Path) -> None:
    seen: list[Progress] = []
    files = write(tmp_path, {f"part-{number}": "x" * (number * 1000) for number in range(20)})
    registry.register(entry(), files, actor=ACTOR, progress=seen.append)
    for phase in ("hash", "upload"):
        steps = [each for each in seen if each.phase == phase]
        assert steps[-1].done_bytes == steps[-1].total_bytes == sum(range(20)) * 1000
        assert [each.done_bytes for each in steps] == sorted(each.done_bytes for each in steps)


def test_a_lost_blob_is_sent_again(registry: Registry, tmp_path: Path) -> None:
    made = register(registry, tmp_path)
    registry.store.delete(blob_key(made.manifest.files[0].sha256))
    again = register(registry, tmp_path)
    assert not again.created
    assert again.uploaded_bytes == len("weights")


def test_a_file_that_changes_during_the_upload_stops_the_registration(registry: Registry, tmp_path: Path) -> None:
    files = write(tmp_path, {"model.onnx": "weights", "other": "x"})

    def change(progress: Progress) -> None:
        if progress.phase == "hash" and progress.done_bytes == progress.total_bytes:
            files["model.onnx"].write_text("changed")

    with pytest.raises(InvalidInput, match="changed while it was being registered"):
        registry.register(entry(), files, actor=ACTOR, progress=change)
    with pytest.raises(NotFound):
        registry.model("m")


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "../../etc", "a..b", ".hidden", "a\0b", "a b", "x" * 129, "ä"], ids=repr
)
def test_hostile_names_are_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        register(registry, tmp_path, name=name)
    for call in (registry.model, registry.fleet, registry.history):
        with pytest.raises(InvalidInput):
            call(name)
    assert list(registry.store.list("")) == []


@pytest.mark.parametrize("inside", ["../x", "/x", "a/../../x", "a//b", "a\\b", "a\nb", "", ".", "a/.", "x" * 256])
def test_hostile_paths_are_refused(registry: Registry, tmp_path: Path, inside: str) -> None:
    file = write(tmp_path, {"x": ""})["x"]
    with pytest.raises(InvalidInput):
        registry.register(entry(), {inside: file}, actor=ACTOR)


def test_manifests_are_held_against_their_digest(registry: Registry, url: str, tmp_path: Path) -> None:
    made = register(registry, tmp_path)
    content, _ = registry.store.get(blob_key(made.digest))
    registry.store.put(blob_key(made.digest), content.replace(b"weights", b"sthgiew") + b" ")
    with pytest.raises(InvalidInput, match="has been changed"):
        open_registry(url).manifest(made.digest)


def test_an_ensemble_takes_what_was_stable_of_a_retired_model(registry: Registry, tmp_path: Path) -> None:
    """Not a newer version, which nobody may ever have proved."""
    for number in (1, 2):
        register(registry, tmp_path, content=str(number))
    make_stable(registry, "m", 1)
    registry.retire("m", actor=ACTOR)
    made = registry.register(ensemble("pipeline", ("m", None)), {}, actor=ACTOR)
    (step,) = registry.manifest(made.digest).entry.ensemble
    assert step.model_version == 1


# Deleting.


def test_a_deleted_version_keeps_its_number(registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path)
    registry.delete_version("m", 1, actor=ACTOR)
    with pytest.raises(NotFound, match="has been deleted"):
        registry.promote("m", 1, actor=ACTOR)
    with pytest.raises(NotFound):
        registry.delete_version("m", 1, actor=ACTOR)
    assert register(registry, tmp_path).version == 2


def test_what_something_points_at_can_not_be_deleted(registry: Registry, tmp_path: Path) -> None:
    for number in range(1, 7):
        register(registry, tmp_path, content=str(number))
    make_stable(registry, "m", 1)
    make_stable(registry, "m", 2)
    registry.set_alias("m", "candidate", 3, actor=ACTOR)
    registry.promote("m", 4, actor=ACTOR)
    register(registry, tmp_path, name="user")
    registry.register(ensemble("pipeline", ("m", 5)), {}, actor=ACTOR)
    reasons = {
        1: "rollback",
        2: "is stable",
        3: "candidate",
        4: "rollout",
        5: "a step of pipeline@1",
    }
    for number, reason in reasons.items():
        with pytest.raises(Conflict, match=reason):
            registry.delete_version("m", number, actor=ACTOR)
    registry.delete_version("m", 6, actor=ACTOR, dry_run=True)
    registry.delete_version("m", 6, actor=ACTOR)
    registry.delete_version("pipeline", 1, actor=ACTOR)
    registry.delete_version("m", 5, actor=ACTOR)


# Ensembles.


def test_an_ensemble_gets_the_versions_that_are_stable(registry: Registry, tmp_path: Path) -> None:
    register(registry, tmp_path, name="only")
    register(registry, tmp_path, name="several", content="1")
    register(registry, tmp_path, name="several", content="2")
    made = registry.register(ensemble("e", ("several", None)), {}, actor=ACTOR)
    assert [step.model_version for step in made.manifest.entry.ensemble] == [2], "the newest, where none is stable"
    make_stable(registry, "several", 1)
    made = registry.register(ensemble("e", ("several", None), ("only", None), ("several", 2)), {}, actor=ACTOR)
    assert [step.model_version for step in made.manifest.entry.ensemble] == [1, 1, 2]
    for steps in (("nobody", None), ("several", 3)):
        with pytest.raises(InvalidInput, match="register the ensemble's steps first"):
            registry.register(ensemble("e", steps), {}, actor=ACTOR)


def test_not_a_number_can_not_be_kept(registry: Registry, tmp_path: Path) -> None:
    from controlplane.core.entry import Example

    with pytest.raises(InvalidInput, match="not finite"):
        register(registry, tmp_path, example=Example(inputs={"x": [float("nan")]}))


def test_the_digest_does_not_depend_on_the_order_of_things() -> None:
    one = Manifest(entry=entry(labels={"a": "1", "b": "2"}), files=())
    two = Manifest(entry=entry(labels={"b": "2", "a": "1"}), files=())
    assert write_manifest(one) == write_manifest(two)


def test_threads_that_register_at_once_get_one_version_each(registry: Registry, tmp_path: Path) -> None:
    def one(number: int) -> None:
        made.append(register(registry, tmp_path / str(number), content=str(number % 4)).version)

    made: list[int] = []
    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(made)) == [1, 2, 3, 4]
    assert len(made) == 12
    assert [each.number for each in registry.model("m").versions] == [1, 2, 3, 4]
    assert registry.store.head(model_key("m"))
