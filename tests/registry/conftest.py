"""Every test that takes `url`, `store` or `registry` runs over each kind of object store there is."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from controlplane.registry import Registry, open_registry
from controlplane.registry.open import open_store
from controlplane.registry.store import ObjectStore
from tests.registry.servers import BUCKET, S3Server, has_versitygw, moto, versitygw

logging.getLogger("werkzeug").setLevel(logging.WARNING)
S3_SERVERS = ("moto", *(("versitygw",) if has_versitygw() else ()))


def pytest_report_header() -> str:
    return f"registry: tried over a directory and {' and '.join(S3_SERVERS)}"


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def versitygw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with versitygw(tmp_path_factory.mktemp("versitygw") / "store") as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Retries follow at once."""
    with stamina.set_testing(True, attempts=3):
        yield


@pytest.fixture(params=S3_SERVERS)
def s3_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(params=("directory", *S3_SERVERS))
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty registry's address; what boto3 needs is in the environment, for other processes too."""
    if request.param == "directory":
        return str(tmp_path / "registry")
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> ObjectStore:
    return open_store(url)


@pytest.fixture
def registry(url: str) -> Registry:
    return open_registry(url)
