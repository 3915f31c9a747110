"""The contract of an object store, over each kind."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlplane.core.errors import Conflict, InvalidInput, NotFound
from controlplane.registry.store import ObjectStore
from tests.registry.files import write_file


def keys(store: ObjectStore, prefix: str) -> list[str]:
    return [each.key for each in store.list(prefix)]


def test_what_is_put_can_be_got(store: ObjectStore) -> None:
    etag = store.put("models/a.json", b"one")
    assert store.get("models/a.json") == (b"one", etag)
    assert b"".join(store.chunks("models/a.json")) == b"one"
    head = store.head("models/a.json")
    assert (head.etag, head.size_bytes) == (etag, 3)
    assert abs(head.modified - datetime.now(UTC)) < timedelta(minutes=1)


def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    for read in (store.get, store.head, lambda key: next(store.chunks(key))):
        with pytest.raises(NotFound):
            read("models/a.json")
    assert keys(store, "models/") == []
    store.delete("models/a.json")


def test_a_put_may_ask_that_nothing_is_there(store: ObjectStore) -> None:
    store.put("a", b"one", if_absent=True)
    with pytest.raises(Conflict):
        store.put("a", b"two", if_absent=True)
    assert store.get("a")[0] == b"one"


def test_a_put_may_ask_that_nothing_has_changed(store: ObjectStore) -> None:
    first = store.put("a", b"one")
    second = store.put("a", b"two", if_match=first)
    with pytest.raises(Conflict):
        store.put("a", b"three", if_match=first)
    assert store.get("a") == (b"two", second)
    store.delete("a")
    with pytest.raises(Conflict):
        store.put("a", b"three", if_match=second)
    with pytest.raises(NotFound):
        store.get("a")


def test_a_listing_shows_what_is_below_a_prefix(store: ObjectStore) -> None:
    names = ["models/b.json", "models/a.json", "models/c/d", "modelsx", "fleets/a.json"]
    etags = {name: store.put(name, name.encode()) for name in names}
    listed = list(store.list("models/"))
    assert [each.key for each in listed] == ["models/a.json", "models/b.json", "models/c/d"]
    assert all(each.etag == etags[each.key] and each.size_bytes == len(each.key) for each in listed)
    assert sorted(keys(store, "")) == sorted(names)


def test_a_listing_goes_on_after_its_first_page(store: ObjectStore) -> None:
    count = 1001 if store.url.startswith("s3") else 50
    for number in range(count):
        store.put(f"models/{number:04}.json", b"")
    assert keys(store, "models/") == [f"models/{number:04}.json" for number in range(count)]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "..",
        "../a",
        "a/../b",
        "a/..b",
        "a..b",
        ".locks/00",
        "a b",
        "a\0b",
        "ä",
        "a\n",
        "-a",
    ],
    ids=repr,
)
def test_a_key_never_leads_out_of_the_root(store: ObjectStore, key: str) -> None:
    for call in (
        store.get,
        store.head,
        store.delete,
        lambda key: store.put(key, b""),
        lambda key: store.source(key, 9),
    ):
        with pytest.raises(InvalidInput):
            call(key)


# Files.


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 20, (16 << 20) - 1, 16 << 20, (33 << 20) + 7])
def test_a_file_is_stored_whole(store: ObjectStore, tmp_path: Path, size_bytes: int) -> None:
    path, digest = write_file(tmp_path / "file", size_bytes)
    sent: list[int] = []
    store.put_file("blobs/file", path, sha256=digest, size_bytes=size_bytes, sent=sent.append)
    assert sum(sent) == size_bytes
    there = hashlib.sha256()
    for chunk in store.chunks("blobs/file"):
        there.update(chunk)
    assert there.hexdigest() == digest
    assert store.head("blobs/file").size_bytes == size_bytes


@pytest.mark.parametrize("size_bytes", [5, 1 << 20, 40 << 20], ids=["small", "a chunk", "several parts"])
@pytest.mark.parametrize("how", ["grown", "cut", "other bytes", "gone"])
def test_a_file_that_changed_is_not_stored(store: ObjectStore, tmp_path: Path, size_bytes: int, how: str) -> None:
    path, digest = write_file(tmp_path / "file", size_bytes)
    if how == "grown":
        with path.open("ab") as file:
            file.write(b"!")
    elif how == "cut":
        os.truncate(path, size_bytes - 1)
    elif how == "other bytes":
        with path.open("r+b") as file:
            file.write(b"\xff")
    else:
        path.unlink()
    sent: list[int] = []
    with pytest.raises(InvalidInput):
        store.put_file("blobs/file", path, sha256=digest, size_bytes=size_bytes, sent=sent.append)
    assert keys(store, "") == []
    assert sum(sent) == 0, "progress is taken back"
    assert store.sweep(datetime.now(UTC) + timedelta(minutes=5)) == 0, "nothing is left behind"


def test_a_source_needs_no_credentials(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, digest = write_file(tmp_path / "file", 1000)
    store.put_file("blobs/file", path, sha256=digest, size_bytes=1000)
    source = store.source("blobs/file", 60)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    if source.startswith("http://"):
        with urllib.request.urlopen(source) as answer:  # noqa: S310 - our own server
            content = answer.read()
    else:
        assert Path(source).is_absolute()
        content = Path(source).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
