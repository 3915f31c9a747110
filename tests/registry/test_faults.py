"""Uploads that are cut, stores that refuse or do not answer."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from controlplane.core.errors import InvalidInput, Unauthenticated, Unavailable
from controlplane.registry import Registry, open_registry, s3
from controlplane.registry.directory import DirectoryStore
from controlplane.registry.layout import BLOBS, MODELS
from tests.registry.entries import ACTOR, entry, register, write
from tests.registry.files import write_file
from tests.registry.servers import BUCKET, S3Server

DYING = """
import os, sys
from pathlib import Path
from controlplane.core.entry import Entry
from controlplane.registry import open_registry
url, path, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

def die(progress):
    if progress.phase == "upload" and progress.done_bytes >= last:
        os._exit(9)

open_registry(url).register(Entry(name="m", backend="onnxruntime"), {"model.onnx": path}, actor="dying", progress=die)
"""

SIZE = (17 << 20) + 1


@pytest.mark.parametrize(
    "last", [1, 1 << 20, 16 << 20, SIZE - 1, SIZE], ids=["first", "chunk", "part", "last but one", "last"]
)
def test_a_process_killed_in_mid_upload_leaves_nothing_half_done(
    registry: Registry, url: str, tmp_path: Path, last: int
) -> None:
    path, digest = write_file(tmp_path / "file", SIZE)
    ended = subprocess.run([sys.executable, "-c", DYING, url, str(path), str(last)], check=False)
    assert ended.returncode == 9
    assert list(registry.store.list(MODELS)) == []
    for blob in registry.store.list(BLOBS):
        assert (blob.key, blob.size_bytes) == (BLOBS + digest, SIZE), "what can be seen is whole"
    made = registry.register(entry(), {"model.onnx": path}, actor=ACTOR)
    assert made.created
    assert registry.manifest(made.digest).files[0].sha256 == digest
    registry.store.sweep(datetime.now(UTC) + timedelta(minutes=5))
    assert {each.key.removeprefix(BLOBS) for each in registry.store.list(BLOBS)} == {digest, made.digest}
    assert registry.store.sweep(datetime.now(UTC) + timedelta(minutes=5)) == 0


class CuttingProxy:
    """Passes TCP on to a server until this many bytes have gone up in all, then cuts every connection."""

    def __init__(self, endpoint: str, limit: int) -> None:
        parts = urlsplit(endpoint)
        self._server = (parts.hostname, parts.port)
        self._left = limit
        self.up_bytes = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            self._open += [client, server]
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                with self._lock:
                    data = data[: self._left]
                    self._left -= len(data)
                    self.up_bytes += len(data)
                    cut = self._left == 0
                server.sendall(data)
                if cut:
                    break
        except OSError:
            pass
        _shut(client, server)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass
        _shut(client, server)

    def close(self) -> None:
        _shut(self._listener, *self._open)


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextmanager
def cut_after(server: S3Server, limit: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever opens a registry in here loses the connection for good after this many bytes."""
    proxy = CuttingProxy(server.endpoint, limit)
    try:
        with monkeypatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
            yield
    finally:
        proxy.close()


def test_a_connection_cut_at_any_byte_leaves_nothing_half_done(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big_bytes = (5 << 20) + 100_000
    files = {"model.onnx": write_file(tmp_path / "small", 3000)[0], "more": write_file(tmp_path / "big", big_bytes)[0]}
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    for limit in (1, 300, 1000, 4000, 6000, 100_000, 3 << 20, 5 << 20, big_bytes, big_bytes + 7000):
        url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        with cut_after(s3_server, limit, monkeypatch), pytest.raises(Unavailable):
            open_registry(url).register(entry(), files, actor=ACTOR)
        registry = open_registry(url)
        models = registry.models()
        if models:  # only the history's object was missing, and the document has the entry too
            made = models[0].versions[0]
            assert registry.manifest(made.digest).size_bytes == 3000 + big_bytes
        for blob in registry.store.list(BLOBS):
            assert blob.size_bytes in (3000, big_bytes) or blob.size_bytes < 1000
        assert registry.register(entry(), files, actor=ACTOR).version == 1


def test_a_server_that_is_away_is_unavailable(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    with pytest.raises(Unavailable, match="does not answer"):
        open_registry(f"s3://{BUCKET}/x").models()


def test_a_bucket_that_is_not_there_is_said(s3_server: S3Server, tmp_path: Path) -> None:
    registry = open_registry("s3://nobodys-bucket/x")
    for call in (registry.models, lambda: registry.model("m"), lambda: register(registry, tmp_path), registry.gc):
        with pytest.raises(InvalidInput, match="no bucket 'nobodys-bucket'"):
            call()


def test_missing_credentials_are_said(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(Unauthenticated, match="credentials"):
        open_registry(f"s3://{BUCKET}/x").models()


def test_wrong_credentials_are_said(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with s3_server.checking_credentials():
        registry = open_registry(f"s3://{BUCKET}/x")
        for call in (registry.models, lambda: registry.model("m"), lambda: register(registry, tmp_path)):
            with pytest.raises(Unauthenticated):
                call()


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://ab",
        "s3://UPPER/x",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "http://x/y",
        "file://host/x",
        "",
        "gs://b",
    ],
)
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        open_registry(url)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="not a directory"):
        open_registry(str(tmp_path / "file"))


def test_a_file_address_is_a_directory(tmp_path: Path) -> None:
    registry = open_registry(f"file://{tmp_path}/with%20space")
    registry.register(entry(), write(tmp_path, {"model.onnx": "x"}), actor=ACTOR)
    assert (tmp_path / "with space" / "models" / "m.json").is_file()


def test_another_directory_of_the_same_name_is_another_registry(tmp_path: Path) -> None:
    one, other = (open_registry(str(tmp_path / name)) for name in ("a", "b"))
    register(one, tmp_path / "files")
    assert other.models() == ()


def test_a_directory_that_can_not_be_made_is_told_as_such() -> None:
    store = DirectoryStore(Path("/proc/nothing/here"))
    for change in (lambda: store.put("a", b"x"), lambda: store.delete("a")):
        with pytest.raises(InvalidInput, match="the directory /proc/nothing/here can't be made"):
            change()
