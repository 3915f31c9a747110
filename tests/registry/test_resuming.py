"""A large file whose upload to S3 was cut goes on where it stopped, and only with the very same bytes."""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
import stamina
from botocore.exceptions import ConnectionClosedError

from controlplane.core.errors import InvalidInput, Unavailable
from controlplane.registry import s3, s3_parts
from controlplane.registry.layout import blob_key
from controlplane.registry.open import open_store
from controlplane.registry.store import ObjectStore
from tests.registry.files import write_file
from tests.registry.servers import BUCKET, S3Server
from tests.registry.test_faults import CuttingProxy

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PART = 5 << 20
SIZE = 4 * PART + 1000
OVERHEAD = 200_000
"""Bytes of headers that a few dozen requests may have."""


class Cut(Exception):
    pass


def cut_after_parts(count: int) -> Callable[[int], None]:
    """A client that is interrupted when it has read one part more than these."""
    reads = itertools.count(1)

    def sent(size_bytes: int) -> None:
        if size_bytes > 0 and next(reads) > count:
            raise Cut

    return sent


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", PART)
    monkeypatch.setattr(s3_parts, "RESUMABLE_S", math.inf)  # moto says of every upload that it was begun in 2010


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the store lies, seen without it."""

    server: S3Server
    client: S3Client
    prefix: str

    def key(self, digest: str) -> str:
        return f"{self.prefix}/{blob_key(digest)}"

    def uploads(self) -> list[str]:
        listed = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.prefix)
        return [each["UploadId"] for each in listed.get("Uploads", ())]

    def parts(self, digest: str) -> dict[int, int]:
        """Part → bytes of the one upload there is."""
        (upload_id,) = self.uploads()
        listed = self.client.list_parts(Bucket=BUCKET, Key=self.key(digest), UploadId=upload_id)
        return {each["PartNumber"]: each["Size"] for each in listed.get("Parts", ())}


@pytest.fixture
def place(s3_server: S3Server) -> Place:
    return Place(server=s3_server, client=boto3.client("s3"), prefix=uuid.uuid4().hex)


@pytest.fixture
def says_ended(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["s3_server"] == "moto":
        pytest.skip("moto answers 500, with a traceback, to a part of an upload that has ended")


@pytest.fixture
def store(place: Place) -> ObjectStore:
    return open_store(f"s3://{BUCKET}/{place.prefix}")


def digest_of(store: ObjectStore, digest: str) -> str:
    whole = hashlib.sha256()
    for chunk in store.chunks(blob_key(digest)):
        whole.update(chunk)
    return whole.hexdigest()


def cut(store: ObjectStore, path: Path, digest: str, *, count: int) -> None:
    with pytest.raises(Cut):
        store.put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE, sent=cut_after_parts(count))


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_only_the_rest_is_sent(
    place: Place,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    path, digest = write_file(tmp_path / "file", SIZE)
    cut(store, path, digest, count=count)
    assert place.parts(digest) == dict.fromkeys(range(1, count + 1), PART)
    proxy = CuttingProxy(place.server.endpoint, 1 << 40)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    sent: list[int] = []
    open_store(store.url).put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE, sent=sent.append)
    proxy.close()
    assert 0 <= proxy.up_bytes - (SIZE - count * PART) < OVERHEAD
    assert sum(sent) == SIZE, "what is there already counts"
    assert digest_of(store, digest) == digest
    assert place.uploads() == []


def test_a_connection_cut_just_before_the_end_costs_what_was_under_way_alone(
    place: Place,
    store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_parts, "PARALLEL_PARTS", 1)
    path, digest = write_file(tmp_path / "file", SIZE)
    for limit in (SIZE - 1000, SIZE - 2000 - 3 * PART):  # the second time, what is left but a little
        proxy = CuttingProxy(place.server.endpoint, limit)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        with pytest.raises(Unavailable):
            open_store(store.url).put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE)
        proxy.close()
        assert list(place.parts(digest))[:3] == [1, 2, 3]
    store.put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE)
    assert digest_of(store, digest) == digest


@pytest.mark.parametrize("size_bytes", [PART, PART + 1], ids=["of the same size", "of another size"])
def test_a_part_of_other_bytes_is_not_taken_over(
    place: Place, store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    path, digest = write_file(tmp_path / "file", SIZE)
    cut(store, path, digest, count=2)
    (upload_id,) = place.uploads()
    key = place.key(digest)
    for number, content in ((2, b"x" * size_bytes), (9, b"one too many")):
        place.client.upload_part(
            Bucket=BUCKET, Key=key, UploadId=upload_id, PartNumber=number, Body=content, ChecksumAlgorithm="SHA256"
        )
    store.put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE)
    assert digest_of(store, digest) == digest
    assert store.head(blob_key(digest)).size_bytes == SIZE


@pytest.mark.parametrize("where", [100, SIZE - 100], ids=["in a part that is there", "in the rest"])
def test_a_file_that_changed_meanwhile_is_not_completed(
    place: Place, store: ObjectStore, tmp_path: Path, where: int
) -> None:
    path, digest = write_file(tmp_path / "file", SIZE)
    cut(store, path, digest, count=3)
    with path.open("r+b") as file:
        file.seek(where)
        file.write(b"other bytes")
    sent: list[int] = []
    with pytest.raises(InvalidInput, match="changed while"):
        store.put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE, sent=sent.append)
    assert sum(sent) == 0
    assert list(store.list("")) == []
    assert place.uploads() == []


@pytest.mark.usefixtures("says_ended")
def test_an_upload_that_somebody_else_ends_is_begun_again(store: ObjectStore, tmp_path: Path) -> None:
    path, digest = write_file(tmp_path / "file", SIZE)
    cut(store, path, digest, count=1)
    sent: list[int] = []

    def end(size_bytes: int) -> None:
        sent.append(size_bytes)
        if len(sent) == 3:
            assert store.sweep(datetime.now(UTC) + timedelta(minutes=5)) == 1

    store.put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE, sent=end)
    assert sum(sent) == SIZE
    assert digest_of(store, digest) == digest


@pytest.mark.usefixtures("says_ended")
def test_two_who_send_the_same_file_at_once_both_succeed(store: ObjectStore, tmp_path: Path) -> None:
    path, digest = write_file(tmp_path / "file", SIZE)
    cut(store, path, digest, count=1)
    stamina.set_testing(False)  # the loser may be told to try again, which helps when the winner is through
    both = threading.Barrier(2)

    def send(_: int) -> None:
        both.wait(10)
        open_store(store.url).put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, range(2)))
    assert digest_of(store, digest) == digest


def test_an_upload_of_long_ago_is_left_to_gc(
    place: Place, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digest = write_file(tmp_path / "file", SIZE)
    cut(store, path, digest, count=1)
    old = place.uploads()
    monkeypatch.setattr(s3_parts, "RESUMABLE_S", -math.inf)
    store.put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE)
    assert digest_of(store, digest) == digest
    assert place.uploads() == old
    assert store.sweep(datetime.now(UTC) + timedelta(minutes=5)) == 1


def test_a_completion_whose_answer_was_lost_is_recognised(place: Place, store: ObjectStore, tmp_path: Path) -> None:
    assert isinstance(store, s3.S3Store)
    path, digest = write_file(tmp_path / "file", SIZE)
    answers = itertools.count()

    def lose(**_: object) -> None:
        if next(answers) == 0:
            raise ConnectionClosedError(endpoint_url=place.server.endpoint)

    store._client.meta.events.register("after-call.s3.CompleteMultipartUpload", lose)
    sent: list[int] = []
    store.put_file(blob_key(digest), path, sha256=digest, size_bytes=SIZE, sent=sent.append)
    assert all(size_bytes > 0 for size_bytes in sent), "nothing is sent again"
    assert sum(sent) == SIZE
    assert digest_of(store, digest) == digest
