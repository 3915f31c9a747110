from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from stamina.instrumentation import set_on_retry_hooks

TOGETHER = ("tests/kubernetes/", "tests/helm/", "tests/gateway/", "tests/registry/")
"""Folders whose tests share servers that are costly to start; elsewhere only the tests of one file do."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests have to run in one process, where several share the work."""
    for item in items:
        folder = next((each for each in TOGETHER if item.nodeid.startswith(each)), None)
        group = "kubernetes" if folder == "tests/helm/" else folder or item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """What a test sets up for the whole process (`ctl` does, when it is called in this one) ends with it: its streams
    are closed then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
    set_on_retry_hooks(None)
