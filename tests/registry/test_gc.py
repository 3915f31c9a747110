"""What `gc` takes away, and what it never does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.core.errors import Conflict, ControlPlaneError, NewerFormat
from controlplane.registry import Registry, open_registry, versions
from controlplane.registry.layout import BLOBS, blob_key, model_key
from tests.registry.entries import ACTOR, ensemble, entry, register, write


def blobs(registry: Registry) -> set[str]:
    return {each.key.removeprefix(BLOBS) for each in registry.store.list(BLOBS)}


def test_only_what_no_version_needs_is_removed(registry: Registry, tmp_path: Path) -> None:
    kept = register(registry, tmp_path, content="kept")
    shared = registry.register(entry("other"), write(tmp_path, {"a": "kept", "b": "gone"}), actor=ACTOR)
    registry.delete_version("other", 1, actor=ACTOR)
    before = blobs(registry)
    assert registry.gc().removed == (), "what is young stays"
    would = registry.gc(0, dry_run=True)
    assert blobs(registry) == before
    done = registry.gc(0)
    gone = {shared.digest, next(file.sha256 for file in shared.manifest.files if file.path == "b")}
    assert set(would.removed) == set(done.removed) == gone
    assert blobs(registry) == {kept.digest, kept.manifest.files[0].sha256}
    assert registry.gc(0).removed == ()


def test_the_steps_of_an_ensemble_stay(registry: Registry, tmp_path: Path) -> None:
    """Also when one was deleted at the same moment as the ensemble was registered."""
    step = register(registry, tmp_path)
    registry.register(ensemble("e", ("m", 1)), {}, actor=ACTOR)
    content, etag = registry.store.get(model_key("m"))
    registry.store.put(
        model_key("m"), content.replace(b'"deleted_at": null', b'"deleted_at": "2020-01-01T00:00:00Z"'), if_match=etag
    )
    assert registry.gc(0).removed == ()
    assert blob_key(step.digest).removeprefix(BLOBS) in blobs(registry)


@pytest.mark.parametrize("what", ["newer", "broken", "no manifest"])
def test_nothing_is_removed_while_it_is_not_known_what_is_needed(
    registry: Registry, url: str, tmp_path: Path, what: str
) -> None:
    made = register(registry, tmp_path)
    write_orphan(registry)
    if what == "newer":
        registry.store.put("models/n.json", b'{"format": 2}')
    elif what == "broken":
        registry.store.put("models/n.json", b"{")
    else:
        registry.store.delete(blob_key(made.digest))
    before = blobs(registry)
    with pytest.raises((ControlPlaneError,)) as refused:
        open_registry(url).gc(0)
    assert isinstance(refused.value, Conflict) == (what == "no manifest")
    assert isinstance(refused.value, NewerFormat) == (what == "newer")
    assert blobs(registry) == before


def write_orphan(registry: Registry) -> None:
    registry.store.put(blob_key("0" * 64), b"nobody's")


def test_a_registration_survives_a_collection_at_any_moment(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection without any grace runs before each call that the registration makes to the store."""
    monkeypatch.setattr(versions, "PARALLEL_UPLOADS", 1)
    files = write(tmp_path, {"model.onnx": "weights", "more": "x"})
    store, turn = registry.store, 0
    calls = ("get", "head", "put", "put_file")
    originals: dict[str, Callable[..., object]] = {name: getattr(store, name) for name in calls}
    collecting = False

    def run(stop_at: int) -> int:
        nonlocal turn
        turn = 0

        def wrapped(name: str) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                nonlocal turn, collecting
                if not collecting:
                    turn += 1
                    if turn == stop_at:
                        collecting = True
                        try:
                            open_registry(store.url).gc(0)
                        finally:
                            collecting = False
                return originals[name](*arguments, **named)

            return call

        for name in calls:
            monkeypatch.setattr(store, name, wrapped(name), raising=True)
        name = f"m{stop_at}"
        registry.register(entry(name), files, actor=ACTOR)
        for call_name, original in originals.items():
            monkeypatch.setattr(store, call_name, original)
        made = registry.model(name).versions[0]
        manifest = open_registry(store.url).manifest(made.digest)
        assert {made.digest, *(file.sha256 for file in manifest.files)} <= blobs(registry)
        registry.delete_version(name, 1, actor=ACTOR)
        registry.gc(0)
        return turn

    calls_made = run(10_000)
    for stop_at in range(1, calls_made + 1):
        run(stop_at)


def test_an_old_blob_is_written_again_before_it_is_named(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, tmp_path)
    monkeypatch.setattr(versions, "GC_GRACE_S", 0)
    again = registry.register(entry("other"), write(tmp_path, {"model.onnx": "weights"}), actor=ACTOR)
    assert again.uploaded_bytes >= len("weights"), "every blob is older than half of no grace"
    assert register(registry, tmp_path).uploaded_bytes == 0, "what a version names is safe"
