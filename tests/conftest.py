from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings
from stamina.instrumentation import set_on_retry_hooks
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "tests/kubernetes/": "kubernetes",
    "tests/helm/": "kubernetes",
    "tests/gateway/": "gateway",
    "tests/registry/": "registry",
}
"""Folders whose tests share servers that are costly to start; elsewhere only the tests of one file do. Being the
longest, they are given out first, and the files fill the processes to the end."""

ON_VERSITYGW = ("tests/registry/", "tests/kubernetes/test_system.py", "tests/kubernetes/e2e/")

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


class Groups(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """Gives each group of tests to one of the processes that share the work."""

    def _split_scope(self, nodeid: str) -> str:
        folder = next((each for each in TOGETHER if nodeid.startswith(each)), None)
        return TOGETHER[folder] if folder is not None else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = (*TOGETHER, "tests/e2e/")
    items.sort(key=lambda each: next((n for n, folder in enumerate(first) if each.nodeid.startswith(folder)), 9))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build versitygw before the first test, if any needs it: it takes longer than a test may."""
    wanted = any(each.nodeid.startswith(ON_VERSITYGW) for each in session.items)
    if not wanted or session.config.option.collectonly:
        return
    from tests.registry.servers import has_versitygw, versitygw_program

    if has_versitygw():
        with contextlib.suppress(subprocess.CalledProcessError):  # the tests that need it fail of it, and no others
            versitygw_program()


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
