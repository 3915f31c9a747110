"""What can't be had, and an API server that is away: it is told in so many words, and serving goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.system import Load
from tests.kubernetes.control_plane import freeze
from tests.kubernetes.crowd import crowded
from tests.kubernetes.e2e.release import CHART, LONG_S, RELEASE, Installed, installed, model
from tests.waiting import until

__all__ = ["installed", "model"]

SHORT_S, LONG_AWAY_S = 12.0, 30.0
"""Longer than a Lease lasts; and than Kubernetes here waits to hear from its nodes."""


@pytest.fixture
def load(installed: Installed, model: Path) -> Iterator[Load]:
    """Clients that ask meanwhile, none of whom fails."""
    with installed.load() as load:
        yield load
        load.more(100)
    assert load.failures == []


def upgrade(installed: Installed, load: Load, values: dict[str, Any], told: Callable[[], str], expected: str) -> None:
    """Install what can't run, and go back when that is told."""
    installed.helm.upgrade(CHART, RELEASE, values, namespace=installed.namespace)
    try:
        wait_told(told, expected)
        load.more(50)
    finally:
        installed.helm.rollback(RELEASE)
        installed.rolled_out()
    until(lambda: installed.fleet() == 1, timeout_s=LONG_S, every_s=0.5)


def of_controller(installed: Installed) -> str:
    """What the controllers themselves have met."""
    found = json.loads(installed.doctor("-o", "json") or "[]")
    return "\n".join(each["what"] for each in found if each["check"] == "controller")


def wait_told(told: Callable[[], str], expected: str) -> None:
    said = ""

    def is_told() -> bool:
        nonlocal said
        said = told()
        return expected in said

    try:
        until(is_told, timeout_s=LONG_S, every_s=0.5)
    except AssertionError as error:
        raise AssertionError(f"{expected} is not in {said}") from error


def test_an_image_that_can_not_be_pulled(installed: Installed, load: Load) -> None:
    values = installed.values()
    values["fleets"][0]["image"]["registry"] = "127.0.0.1:1"  # nobody listens there
    upgrade(installed, load, values, installed.explain, "ErrImagePull")


def test_gpus_that_no_node_has(installed: Installed, load: Load) -> None:
    values = installed.values()
    values["fleets"][0]["gpus"] = 1
    upgrade(installed, load, values, installed.explain, "Insufficient nvidia.com/gpu")


def test_a_quota(installed: Installed, load: Load) -> None:
    installed.kubectl("create", "quota", "full", "--hard=pods=0")  # those that are there stay
    try:
        until(lambda: "used" in installed.get("resourcequota", "full").get("status", {}), what="it is not enforced")
        installed.ctl("scale", "cpu", "2")
        wait_told(installed.explain, "exceeded quota: full")
    finally:
        installed.kubectl("delete", "quota", "full")
    until(lambda: installed.fleet() == 2, timeout_s=LONG_S, every_s=0.5)
    installed.ctl("scale", "cpu", "1")
    until(lambda: installed.fleet() == 1, timeout_s=LONG_S, every_s=0.5)


def test_a_bucket_that_is_not_there(installed: Installed, load: Load) -> None:
    values = {**installed.values(), "registry": "s3://nowhere/fleet"}
    # In doctor's own words it is not there either, by its own credentials.
    upgrade(installed, load, values, lambda: of_controller(installed), "there is no bucket 'nowhere'")


def test_a_secret_that_is_not_there(installed: Installed, load: Load) -> None:
    values = installed.values()
    values["s3"]["existingSecret"] = "nothing"
    upgrade(installed, load, values, installed.doctor, 'secret "nothing" not found')


def test_by_hand(installed: Installed, load: Load) -> None:
    installed.ctl("scale", "cpu", "1")
    until(lambda: installed.fleet() == 1, timeout_s=LONG_S, every_s=0.5)
    installed.kubectl("scale", f"deployment/{RELEASE}-cpu", "--replicas=2")
    wait_told(installed.explain, f"kubectl set {RELEASE}-cpu to 2 at ")
    load.more(50)
    until(lambda: installed.fleet() == 1, timeout_s=LONG_S, every_s=0.5, what="it is to have one")
    installed.kubectl("set", "env", f"deployment/{RELEASE}-cpu", "--containers=triton", "EDITED=by-hand")
    wait_told(installed.explain, f"kubectl-set changed {RELEASE}-cpu (env of container triton) at ")
    installed.rolled_out()
    load.more(50)
    told = installed.kubectl("describe", f"deployment/{RELEASE}-cpu")
    assert "ScaledByHand" in told and "EditedByHand" in told
    installed.kubectl("set", "env", f"deployment/{RELEASE}-cpu", "--containers=triton", "EDITED-")
    installed.rolled_out()
    until(lambda: installed.fleet() == 1, timeout_s=LONG_S, every_s=0.5)


@contextlib.contextmanager
def faulty(installed: Installed, fault: str) -> Iterator[None]:
    """An API server that is away, or can't do what it is asked."""
    api = installed.cluster.api
    match fault:
        case "it answers nothing":
            api.pause()
            try:
                yield
            finally:
                api.restart_manager()
                api.go_on()
        case "its store is away":  # what is asked takes too long, and ends with 500
            freeze(api.daemons["etcd"])
            try:
                yield
            finally:
                api.daemons["etcd"].send_signal(signal.SIGCONT)
        case "it has too much to do":
            client = httpx2.Client(
                base_url=f"{api.url}/apis/coordination.k8s.io/v1/namespaces/{installed.namespace}",
                headers={"Authorization": f"Bearer {api.token(installed.namespace, f'{RELEASE}-controller')}"},
                verify=ssl.create_default_context(cafile=str(api.ca)),
                trust_env=False,
            )

            def ask() -> None:
                with contextlib.suppress(httpx2.TimeoutException):  # late answers are part of the crowd
                    client.get("leases")

            with client, crowded(api, installed.namespace, ask):
                wait_told(lambda: logs_of_controllers(installed), "HTTP status 429")
                yield


def logs_of_controllers(installed: Installed) -> str:
    return installed.kubectl("logs", "--selector=app.kubernetes.io/component=controller", "--tail=-1")


@pytest.mark.parametrize(
    ("fault", "away_s"),
    [("it answers nothing", LONG_AWAY_S), ("its store is away", SHORT_S), ("it has too much to do", SHORT_S)],
)
def test_an_api_server_that_is_away(installed: Installed, load: Load, fault: str, away_s: float) -> None:
    with faulty(installed, fault):
        end = time.monotonic() + away_s
        while time.monotonic() < end:
            load.more(20)
    installed.ctl("scale", "cpu", "2")
    until(lambda: installed.fleet() == 2, timeout_s=LONG_S, every_s=0.5)
    installed.ctl("scale", "cpu", "1")
    until(lambda: installed.fleet() == 1, timeout_s=LONG_S, every_s=0.5)
