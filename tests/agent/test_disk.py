"""Blobs: resumed, checked, kept within the budget, never half there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import signal
from pathlib import Path

import pytest

from controlplane.agent.disk import BlobStore, DiskFull, FetchFailed, SourceExpired
from controlplane.core.models import ArtifactFile
from tests.agent.endpoint import Endpoint

BIG = 1 << 30


def artifact(content: bytes, path: str = "weights") -> ArtifactFile:
    return ArtifactFile(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def served(endpoint: Endpoint, folder: Path, content: bytes) -> dict[str, str]:
    digest = hashlib.sha256(content).hexdigest()
    (folder / digest).write_bytes(content)
    endpoint.files[digest] = folder / digest
    return {digest: f"{endpoint.url}/files/{digest}"}


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", budget_bytes=BIG, parallel=4)


@pytest.mark.parametrize("size", [0, 1, 3_000_000], ids=["empty", "one byte", "several chunks"])
@pytest.mark.parametrize("over_http", [True, False], ids=["http", "path"])
async def test_a_file_arrives_whole(
    store: BlobStore, endpoint: Endpoint, tmp_path: Path, size: int, over_http: bool
) -> None:
    content = os.urandom(size)
    file, sources = artifact(content), served(endpoint, tmp_path, content)
    if not over_http:
        sources = {file.sha256: str(tmp_path / file.sha256)}
    await store.fetch([file], sources)
    assert store.has(file)
    assert store.path(file.sha256).read_bytes() == content
    assert store.used_bytes() == size
    await store.fetch([file], {})  # it needs no source any more


async def test_a_cut_download_goes_on_where_it_was(store: BlobStore, endpoint: Endpoint, tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    file, sources = artifact(content), served(endpoint, tmp_path, content)
    (tmp_path / "blobs" / f".partial-{file.sha256}").write_bytes(content[:1_500_000])
    await store.fetch([file], sources)
    assert store.path(file.sha256).read_bytes() == content
    assert endpoint.ranges == ["bytes=1500000-"]


async def test_a_wrong_beginning_is_thrown_away(store: BlobStore, endpoint: Endpoint, tmp_path: Path) -> None:
    content = os.urandom(1000)
    file, sources = artifact(content), served(endpoint, tmp_path, content)
    (tmp_path / "blobs" / f".partial-{file.sha256}").write_bytes(b"wrong")
    with pytest.raises(FetchFailed, match="damaged"):
        await store.fetch([file], sources)
    assert not store.has(file)
    await store.fetch([file], sources)
    assert store.has(file)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        pytest.param(lambda c: c + b"x", "damaged", id="longer"),
        pytest.param(lambda c: c[:-1], "damaged", id="shorter"),
        pytest.param(lambda c: b"x" + c[1:], "damaged", id="different"),
    ],
)
async def test_wrong_bytes_never_get_the_name(store: BlobStore, tmp_path: Path, damage: object, error: str) -> None:
    content = os.urandom(1000)
    source = tmp_path / "source"
    source.write_bytes(damage(content))  # type: ignore[operator]
    with pytest.raises(FetchFailed, match=error):
        await store.fetch([artifact(content)], {artifact(content).sha256: str(source)})
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_sources_that_fail_say_so(store: BlobStore, endpoint: Endpoint, tmp_path: Path) -> None:
    file = artifact(b"content")
    with pytest.raises(SourceExpired):
        await store.fetch([file], {})
    endpoint.expired.add("gone")
    with pytest.raises(SourceExpired, match="403"):
        await store.fetch([file], {file.sha256: f"{endpoint.url}/files/gone"})
    with pytest.raises(FetchFailed, match="No such file"):
        await store.fetch([file], {file.sha256: str(tmp_path / "nowhere")})


async def test_one_download_for_all_who_want_the_same_file(
    store: BlobStore, endpoint: Endpoint, tmp_path: Path
) -> None:
    content = os.urandom(1_000_000)
    file, sources = artifact(content), served(endpoint, tmp_path, content)
    await asyncio.gather(*(store.fetch([file], sources) for _ in range(8)))
    assert endpoint.downloads == 1


async def test_the_least_recently_used_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", budget_bytes=3500, parallel=1)
    contents = [bytes([number]) * 1000 for number in range(4)]
    files = [artifact(content) for content in contents]
    sources = {}
    for content, file in zip(contents, files, strict=True):
        (tmp_path / file.sha256).write_bytes(content)
        sources[file.sha256] = str(tmp_path / file.sha256)
    await store.fetch(files[:3], sources)
    (tmp_path / "linked").hardlink_to(store.path(files[0].sha256))  # a version has it
    os.utime(store.path(files[1].sha256), (1, 1))
    os.utime(store.path(files[0].sha256), (0, 0))
    await store.fetch(files[3:], sources)
    assert [store.has(file) for file in files] == [True, False, True, True]
    store.kept = frozenset({files[2].sha256, files[3].sha256})  # wanted, not linked yet
    with pytest.raises(DiskFull, match="3000 of the fleet's 3500 are in use"):
        await store.fetch([files[1]], sources)
    assert [store.has(file) for file in files] == [True, False, True, True]
    os.utime(store.path(files[2].sha256), (0, 0))
    os.utime(store.path(files[3].sha256), (1, 1))
    store.touch([files[2]])
    store.kept = frozenset()
    await store.fetch([files[1]], sources)
    assert [store.has(file) for file in files] == [True, True, True, False]


async def test_what_downloads_left_that_nobody_goes_on_with_makes_room_first(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", budget_bytes=3500, parallel=1)
    contents = [bytes([number]) * 1000 for number in range(3)]
    sources = {}
    for content in contents:
        (tmp_path / artifact(content).sha256).write_bytes(content)
        sources[artifact(content).sha256] = str(tmp_path / artifact(content).sha256)
    await store.fetch([artifact(contents[0])], sources)
    for number in range(2):
        (tmp_path / "blobs" / f".partial-{number}").write_bytes(b"x" * 900)
    own = tmp_path / "blobs" / f".partial-{artifact(contents[1]).sha256}"
    own.write_bytes(contents[1][:500])
    await store.fetch([artifact(contents[1])], sources)
    assert len(list((tmp_path / "blobs").glob(".partial-*"))) == 1, "one was enough"
    await store.fetch([artifact(contents[2])], sources)
    assert not list((tmp_path / "blobs").glob(".partial-*"))
    assert all(store.has(artifact(content)) for content in contents)


async def test_a_file_system_that_refuses_is_told_and_nothing_half_is_there(store: BlobStore, tmp_path: Path) -> None:
    """A limit on the size of files is an error of the file system that needs no privileges."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    content = os.urandom(300_000)
    (tmp_path / "source").write_bytes(content)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(FetchFailed, match="can't be read or written"):
            await store.fetch([artifact(content)], {artifact(content).sha256: str(tmp_path / "source")})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not store.has(artifact(content))
