"""Following a registry: what changed, and nothing else, is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.core.errors import InvalidInput, NewerFormat, NotFound, Unavailable
from controlplane.core.models import FleetRecord, FleetShape
from controlplane.registry import Registry
from controlplane.registry.layout import fleet_key, model_key
from controlplane.registry.poll import Changes, RegistryPoll
from tests.registry.entries import ACTOR, register


def names(changes: Changes) -> list[str]:
    return [model.name for model in changes.models]


def test_each_change_is_told_once(registry: Registry, tmp_path: Path) -> None:
    poll = RegistryPoll(registry)
    assert not poll.poll()
    for name in ("a", "b", "c"):
        register(registry, tmp_path, name=name)
    registry.update_fleet("cpu", lambda _: FleetRecord(shape=FleetShape(name="cpu")))
    first = poll.poll()
    assert names(first) == ["a", "b", "c"]
    assert [record.shape.name for record in first.fleets] == ["cpu"]
    assert not poll.poll()
    registry.promote("b", 1, actor=ACTOR)
    second = poll.poll()
    assert names(second) == ["b"]
    assert second.models == (registry.model("b"),)
    registry.store.delete(model_key("a"))
    registry.store.delete(fleet_key("cpu"))
    third = poll.poll()
    assert (third.models, third.removed_models, third.removed_fleets) == ((), ("a",), ("cpu",))
    assert not poll.poll()


def test_an_idle_poll_reads_no_document(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(registry, tmp_path)
    poll = RegistryPoll(registry)
    assert names(poll.poll()) == ["m"]

    def refuse(key: str) -> tuple[bytes, str]:
        raise AssertionError(key)

    monkeypatch.setattr(registry.store, "get", refuse)
    assert not poll.poll()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b'{"format": 2, "name": "bad"}', "this release reads up to 1"),
        (b'{"format": 1, "name": "good"}', "is the document of 'good'"),
        (b'{"format": 1, "name": "bad", "versions": 3}', "versions"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "no format"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=["broken", "newer", "another's", "wrong shape", "binary", "a list", "deep"],
)
def test_a_document_that_can_not_be_used_stops_no_other(
    registry: Registry, tmp_path: Path, content: bytes, says: str
) -> None:
    poll = RegistryPoll(registry)
    registry.store.put("models/bad.json", content)
    registry.store.put("models/~no-name.txt".replace("~", ""), b"somebody's notes")
    register(registry, tmp_path, name="good")
    changes = poll.poll()
    assert names(changes) == ["good"]
    assert list(changes.problems) == ["models/bad.json"]
    assert says in changes.problems["models/bad.json"]
    assert poll.poll().problems == changes.problems, "it stays known"
    with pytest.raises((InvalidInput, NewerFormat)):
        registry.promote("bad", 1, actor=ACTOR)
    assert registry.store.get("models/bad.json")[0] == content, "it is never overwritten"
    registry.store.delete("models/bad.json")
    healed = poll.poll()
    assert (healed.removed_models, healed.problems) == (("bad",), {})


def test_a_newer_document_is_never_overwritten(registry: Registry) -> None:
    for key in ("fleets/f.json", "control-plane.json"):
        registry.store.put(key, b'{"format": 99}')
    with pytest.raises(NewerFormat):
        registry.update_fleet("f", lambda _: FleetRecord(shape=FleetShape(name="f")))
    with pytest.raises(NewerFormat):
        registry.claim("here")
    with pytest.raises(NewerFormat):
        registry.epoch()
    assert registry.store.get("control-plane.json")[0] == b'{"format": 99}'


def test_a_failed_poll_is_begun_again(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        register(registry, tmp_path, name=name)
    poll, get = RegistryPoll(registry), registry.store.get

    def fail(key: str) -> tuple[bytes, str]:
        if key == model_key("b"):
            raise Unavailable("away")
        return get(key)

    monkeypatch.setattr(registry.store, "get", fail)
    with pytest.raises(Unavailable):
        poll.poll()
    monkeypatch.setattr(registry.store, "get", get)
    assert names(poll.poll()) == ["a", "b"]


def test_a_document_that_goes_while_it_is_read_is_gone(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, tmp_path)
    poll = RegistryPoll(registry)
    poll.poll()
    registry.promote("m", 1, actor=ACTOR)

    def gone(key: str) -> tuple[bytes, str]:
        raise NotFound(key)

    monkeypatch.setattr(registry.store, "get", gone)
    assert poll.poll().removed_models == ("m",)
