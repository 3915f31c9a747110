"""The product on a real cluster: used by `ctl` and tritonclient, changed under load with no failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton

from tests.e2e.system import infer
from tests.kubernetes.cluster import kill
from tests.kubernetes.e2e.release import CHART, LONG_S, MODEL, RELEASE, Installed, installed, model
from tests.waiting import until

__all__ = ["installed", "model"]


def test_a_first_inference(installed: Installed, model: Path) -> None:
    with triton.InferenceServerClient(installed.gateway) as client:
        until(client.is_server_ready, timeout_s=60)
        assert infer(client, MODEL, 3.0) == (6.0, "1")


def test_helm_test_asks_the_gateway(installed: Installed, model: Path) -> None:
    installed.helm.test(RELEASE, timeout=int(LONG_S))


def test_one_to_three_to_one_under_load(installed: Installed, model: Path) -> None:
    with installed.load() as load:
        installed.ctl("scale", "cpu", "3")
        until(lambda: installed.fleet() == 3, timeout_s=LONG_S, every_s=0.5, what="three are not ready")
        load.more(200)
        installed.ctl("scale", "cpu", "1")
        until(lambda: installed.fleet() == 1, timeout_s=LONG_S, every_s=0.5, what="two do not go")
        load.more(200)
    assert load.failures == []
    told = installed.kubectl("describe", f"deployment/{RELEASE}-cpu")
    assert "Scaling" in told and "3 → 1 replicas" in told


def test_promote_and_roll_back_under_load(installed: Installed, model: Path) -> None:
    installed.register(model / "two", 3)
    with installed.load() as load:
        installed.promote(2)
        load.more(100)
        installed.ctl("rollback", MODEL, "--no-wait")
        until(lambda: installed.stable() == 1, timeout_s=LONG_S)
        load.more(100)
    assert load.failures == []
    assert load.values == {("1", 6.0), ("2", 9.0)}


def test_a_pod_is_deleted_under_load(installed: Installed, model: Path) -> None:
    installed.ctl("scale", "cpu", "2")
    until(lambda: installed.fleet() == 2, timeout_s=LONG_S, every_s=0.5)
    with installed.load() as load:
        pods = installed.get("pods", "--selector=app.kubernetes.io/component=fleet")["items"]
        installed.kubectl("delete", "pod", pods[0]["metadata"]["name"], "--wait=false")
        until(lambda: installed.fleet() == 2, timeout_s=LONG_S, every_s=0.5, what="nobody comes for it")
        load.more(200)
    assert load.failures == []


@pytest.mark.parametrize(
    ("component", "word"),
    [("fleet", "tritonserver"), ("fleet", "controlplane.agent"), ("controller", "controlplane.server")],
    ids=["server", "agent", "leader"],
)
def test_a_process_is_killed_under_load(installed: Installed, model: Path, component: str, word: str) -> None:
    installed.ctl("scale", "cpu", "2")
    until(lambda: installed.fleet() == 2, timeout_s=LONG_S, every_s=0.5)
    pods = installed.get("pods", f"--selector=app.kubernetes.io/component={component}")["items"]
    leader = installed.leader()
    victim = next(each for each in pods if component == "fleet" or each["metadata"]["name"] == leader)
    before = _restarts(victim)
    with installed.load() as load:
        load.more(50)
        assert kill(victim["metadata"]["uid"], word)

        def again() -> bool:
            now = installed.get("pod", victim["metadata"]["name"])
            return _restarts(now) > before and installed.fleet() == 2

        until(again, timeout_s=LONG_S, every_s=0.5, what="it is not started again")
        load.more(200)
    assert load.failures == []
    if component == "controller":
        until(lambda: installed.leader() not in ("", leader), timeout_s=LONG_S, every_s=0.5, what="nobody leads")


def _restarts(pod: Any) -> int:
    status = pod["status"]
    return sum(
        each["restartCount"] for name in ("initContainerStatuses", "containerStatuses") for each in status.get(name, ())
    )


def test_the_chart_is_upgraded_and_rolled_back_under_load(installed: Installed, model: Path) -> None:
    """To a version that makes every pod anew."""
    values = installed.values()
    for part in (values["controller"], values["gateway"], *values["fleets"]):
        part["podAnnotations"] = {"round": "2"}
    size = installed.fleet()
    with installed.load() as load:
        installed.helm.upgrade(CHART, RELEASE, values, namespace=installed.namespace)
        installed.rolled_out()
        load.more(200)
        installed.helm.rollback(RELEASE)
        installed.rolled_out()
        load.more(200)
        until(lambda: installed.fleet() == size, timeout_s=LONG_S, every_s=0.5)
    assert load.failures == []
