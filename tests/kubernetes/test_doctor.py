"""`ctl doctor` of releases on a real API server, without a node."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.cli.checks.clocks import FINE_S
from controlplane.cli.cluster.api import Api
from controlplane.cli.cluster.release import Release
from tests.cli.conftest import Answer
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.using_ctl import Ctl, alone, ctl, install, lease, looked, may, person, states, told
from tests.waiting import until

__all__ = ["alone", "ctl", "install", "looked"]


def test_doctor_of_a_release_whose_pods_never_run(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer]
) -> None:
    install(fleets=[{"name": "gpu", "replicas": {"min": 1, "max": 2}, "gpus": 1}])
    selector = "--selector=app.kubernetes.io/name=triton-controlplane"
    until(lambda: len(api_server.get("pods", selector, f"--namespace={namespace}")["items"]) >= 3)
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, "serving-controller-gone_x"))
    answer = looked("--write")
    assert answer.status == 1
    assert states(answer, "api") == ["ok"]
    assert states(answer, "your rights") == ["ok"], told(answer, "your rights")
    assert states(answer, "controller's rights") == ["ok"], told(answer, "controller's rights")
    assert states(answer, "clock") == ["ok"]
    assert states(answer, "config") == ["ok"]
    assert set(states(answer, "deployments")) == {"warning"}
    assert "serving-gpu has 0 of 1 pods available" in told(answer, "deployments")
    assert set(states(answer, "pods")) == {"warning"}
    assert "no node has taken it up" in told(answer, "pods")
    assert "pod serving-controller-gone holds it, and is gone" in told(answer, "lease")
    assert states(answer, "controller") == ["problem"]
    assert "pod serving-controller-gone is gone" in told(answer, "controller")
    assert "asks for 1 nvidia.com/gpu for each replica, and none of 0 nodes" in told(answer, "gpus")
    assert states(answer, "registry") == ["ok"]
    assert states(answer, "registry writes") == ["ok"]
    assert states(answer, "dns") == ["unchecked"]


def test_doctor_tells_of_a_lease_that_nobody_renews(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer]
) -> None:
    install()
    selector = "--selector=app.kubernetes.io/component=controller"
    until(lambda: api_server.get("pods", selector, f"--namespace={namespace}")["items"])
    (pod,) = api_server.get("pods", selector, f"--namespace={namespace}")["items"]
    holder = pod["metadata"]["name"]
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, f"{holder}_x", age_s=3650))
    answer = looked()
    assert states(answer, "lease") == ["problem"]
    assert re.search(rf"pod {holder} holds it, and has not renewed it for 3[67]\d\d s", told(answer, "lease"))
    assert "whether their clocks and the API server's agree" in told(answer, "lease")
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, f"{holder}_x"))
    assert "is not ready" in told(looked(), "lease"), "it is renewed, and its pod never runs"


def test_doctor_compares_our_clock_with_the_api_servers(
    api_server: ControlPlane,
    namespace: str,
    install: Callable[..., None],
    looked: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    right = time.time
    for off_s, state in ((60, "warning"), (-60, "warning"), (3600, "problem"), (-3600, "problem")):
        api_server.kubectl("apply", "--filename=-", given=lease(namespace, "serving-controller-gone_x"))
        monkeypatch.setattr(time, "time", lambda off_s=off_s: right() + off_s)
        answer = looked()
        assert states(answer, "clock") == [state]
        found = re.search(r"our clock is (\d+) s (ahead of|behind) that of the API server", told(answer, "clock"))
        assert found is not None
        assert abs(int(found[1]) - abs(off_s)) <= FINE_S
        assert found[2] == ("ahead of" if off_s > 0 else "behind")
        assert "is gone" in told(answer, "lease"), "its age is told by the API server's clock, not by ours"


def test_doctor_sees_nodes_with_gpus(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer]
) -> None:
    install(fleets=[{"name": "gpu", "replicas": {"min": 2, "max": 4}, "gpus": 1, "nodeSelector": {"test": namespace}}])
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": namespace, "labels": {"test": namespace}}}
    api_server.kubectl("apply", "--filename=-", given=json.dumps(node))
    try:
        assert "and none of 0 nodes" in told(looked(), "gpus"), "a node that is not ready has nothing"
        resources = {"nvidia.com/gpu": "3"}
        status = {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Tested", "message": "it is"}],
        }
        api_server.kubectl(
            "patch",
            "node",
            namespace,
            "--subresource=status",
            "--type=merge",
            f"--patch={json.dumps({'status': status})}",
        )
        answer = looked()
        assert states(answer, "gpus") == ["warning"]
        assert "the nodes have places for 3" in told(answer, "gpus")
    finally:
        api_server.kubectl("delete", "node", namespace)


def test_doctor_names_rights_that_are_missing(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer]
) -> None:
    install()
    somebody = person(api_server, namespace)
    answer = looked("--release=serving", kubeconfig=somebody)
    assert answer.status == 1
    assert f"you may not create serviceaccounts/token serving-ctl in namespace {namespace}" in told(
        answer, "your rights"
    )
    assert states(answer, "controller's rights") == ["unchecked"]
    assert states(answer, "registry") == ["ok"], "what needs no rights is looked at all the same"
    until(lambda: may(api_server, namespace, "patch", "pods", name="serving-controller"))
    api_server.kubectl("delete", "rolebinding", "serving-controller", f"--namespace={namespace}")
    until(lambda: not may(api_server, namespace, "patch", "pods", name="serving-controller"))
    answer = looked()
    assert "serviceaccount serving-controller may not patch pods" in told(answer, "controller's rights")
    assert "may not patch deployments/scale.apps serving-" in told(answer, "controller's rights")
    assert "helm upgrade" in told(answer, "controller's rights")


def test_doctor_speaks_in_kubernetes_words(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer]
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "nothing", "namespace": namespace},
        "spec": {"hard": {"pods": "0"}},
    }
    api_server.kubectl("apply", "--filename=-", given=json.dumps(quota))
    until(lambda: "used" in api_server.get("resourcequota", "nothing", f"--namespace={namespace}")["status"])
    install()

    def failed() -> bool:
        found = api_server.get("deployment", "serving-gateway", f"--namespace={namespace}")
        return any("exceeded quota" in each["message"] for each in found["status"].get("conditions", ()))

    until(failed, what="no quota holds")
    answer = looked()
    assert "exceeded quota: nothing" in told(answer, "deployments")
    assert "kubectl" in told(answer, "deployments")
    assert "problem" in states(answer, "deployments")


def test_doctor_quotes_the_last_words_of_a_controller(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer]
) -> None:
    install()
    selector = "--selector=app.kubernetes.io/component=controller"
    pods = until(lambda: api_server.get("pods", selector, f"--namespace={namespace}")["items"])
    last = {"event": "controller ends", "code": "INVALID", "reason": "registry: there is no bucket 'nowhere' (make it)"}
    ended = {"exitCode": 2, "reason": "Error", "message": f"the line before\n{json.dumps(last)}\n"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
    status = {"name": "controller", "image": "none", "imageID": "", "ready": False, "restartCount": 3}
    status |= {"state": {"waiting": waiting}, "lastState": {"terminated": ended}}
    # What a kubelet writes there: here is none.
    patch = json.dumps({"status": {"containerStatuses": [status]}})
    name = pods[0]["metadata"]["name"]
    api_server.kubectl("patch", "pod", name, "--subresource=status", "-p", patch, f"--namespace={namespace}")
    answer = looked()
    assert states(answer, "controller") == ["problem"]
    said = "ended with exit code 2 (Error): controller ends: registry: there is no bucket 'nowhere' (make it)"
    assert said in told(answer, "controller")
    assert said in told(answer, "pods")


def test_doctor_of_a_config_that_was_spoiled_by_hand(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer], ctl: Ctl
) -> None:
    install()
    spoiled = json.dumps({"data": {"system.yaml": "registry: s3://registry/fleet\nfleets: 5\n"}})
    api_server.kubectl("patch", "configmap", "serving-config", f"--patch={spoiled}", f"--namespace={namespace}")
    answer = looked()
    assert states(answer, "config") == ["problem"]
    assert "fleets" in told(answer, "config")
    api_server.kubectl("delete", "deployment", "serving-gateway", f"--namespace={namespace}")
    answer = looked()
    assert "deployment serving-gateway is not there" in told(answer, "deployments")
    assert Release(Api(kubeconfig=api_server.kubeconfig, context="test", namespace=namespace), "serving").registry()


def test_doctor_is_read_by_people(ctl: Ctl, install: Callable[..., None], tmp_path: Path) -> None:
    install()
    answer = ctl("doctor", f"--registry={tmp_path / 'registry'}")
    assert answer.status == 1
    lines = answer.out.splitlines()
    assert any(line.startswith("ok") and "Kubernetes v" in line for line in lines)
    assert any(line.startswith("problem") and "leads at present" in line for line in lines)
    assert any(line.strip().startswith("→") for line in lines)
    assert "problem" in answer.err
