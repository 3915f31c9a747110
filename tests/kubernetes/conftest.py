"""A real Kubernetes API for the tests below here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.kubernetes.control_plane import ControlPlane, running
from tests.kubernetes.programs import CONTROL_PLANE, cannot_be_had, programs


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build before the first test, if any needs it: it takes longer than a test may."""
    wanted = any("api_server" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly and cannot_be_had(*CONTROL_PLANE) is None:
        programs(*CONTROL_PLANE)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with RBAC and no node, shared by all tests: each uses a namespace of its own."""
    reason = cannot_be_had(*CONTROL_PLANE)
    if reason is not None:
        pytest.skip(reason)
    with running(ControlPlane(tmp_path_factory.mktemp("kubernetes"))) as made:
        yield made


@pytest.fixture
def namespace(api_server: ControlPlane) -> Iterator[str]:
    """A new namespace with its default service account, deleted afterwards, which nobody waits for."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api_server.kubectl("create", "namespace", name)
    api_server.until_there("kube-controller-manager", "serviceaccount/default", f"--namespace={name}")
    yield name
    api_server.kubectl("delete", "namespace", name, "--wait=false")
