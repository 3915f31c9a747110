"""A real cluster for the tests below here, which run in its network, as root: `make e2e-kubernetes`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.models import fetch
from tests.kubernetes import images as image_builds
from tests.kubernetes.cluster import Cluster, cannot_run
from tests.kubernetes.cluster import cluster as running_cluster
from tests.kubernetes.programs import NODE, programs

WANTED = bool(os.environ.get("E2E_KUBERNETES"))
"""They take minutes and need root, so they run only where they are meant."""

STARTED = pytest.StashKey[Cluster]()
BUILT = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Build, start the cluster and go there.

    It is done before any test, for it takes longer than a test may; and before a test's module is imported, for a
    library with threads of its own must be loaded where those are to be.
    """
    if not WANTED or config.option.collectonly:
        return
    reason = cannot_run()
    if reason is not None:
        raise pytest.UsageError(reason)
    try:
        programs(*NODE)
        for name in ("magika-0.6.1", "magika-labels"):
            fetch(name)  # there is no way out of the cluster
        config.stash[BUILT] = {name: image_builds.build(name) for name in image_builds.DOCKERFILES}
        with contextlib.ExitStack() as stack:
            started = stack.enter_context(running_cluster())
            stack.enter_context(started.network.entered())
            config.stash[STARTED] = started
            config.add_cleanup(stack.pop_all().close)
    except (AssertionError, RuntimeError, subprocess.CalledProcessError) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not WANTED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="run by `make e2e-kubernetes`, as root"))


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """The cluster. Tests are in its network: they reach services and pods, and pods reach them at its ADDRESS."""
    return request.config.stash[STARTED]


@pytest.fixture(scope="session")
def images(cluster: Cluster, request: pytest.FixtureRequest) -> dict[str, str]:
    """References of images.DOCKERFILES by their names; its nodes have them."""
    built = request.config.stash[BUILT]
    for reference in built.values():
        cluster.add_image(reference)
    return built


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A new namespace, deleted afterwards with its pods, which nobody waits for."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.api.kubectl("create", "namespace", name)
    cluster.api.until_there("kube-controller-manager", "serviceaccount/default", f"--namespace={name}")
    yield name
    cluster.api.kubectl("delete", "namespace", name, "--wait=false")
