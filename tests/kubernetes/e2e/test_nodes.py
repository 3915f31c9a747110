"""Nodes come and go: pods are preempted, a node is drained, one vanishes without a word and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.cluster import WORKERS
from tests.kubernetes.e2e.release import CHART, LONG_S, RELEASE, Installed, installed, model
from tests.waiting import until

__all__ = ["installed", "model"]

ONE, TWO = (each.name for each in WORKERS)
FLEET, GATEWAY = (f"--selector=app.kubernetes.io/component={each}" for each in ("fleet", "gateway"))


@pytest.fixture(scope="module")
def doubled(installed: Installed, model: Path) -> Installed:
    """Two of each, so that one of each may go."""
    installed.helm.upgrade(CHART, RELEASE, installed.values(replicas=2), namespace=installed.namespace)
    installed.ctl("scale", "cpu", "2")
    _all_there(installed)
    return installed


def _all_there(installed: Installed) -> None:
    def there() -> bool:
        kinds = (each["status"] for each in installed.get("deployments")["items"])
        return all(each.get("readyReplicas") == each.get("updatedReplicas") == each["replicas"] == 2 for each in kinds)

    until(there, timeout_s=LONG_S, every_s=0.5, what="there are not two of each")


def _nodes(installed: Installed) -> dict[str, str]:
    """Where each pod is that is to stay."""
    pods = installed.get("pods")["items"]
    return {
        each["metadata"]["name"]: each["spec"].get("nodeName", "")
        for each in pods
        if "deletionTimestamp" not in each["metadata"]
    }


def _spread(installed: Installed, component: str) -> None:
    """Have a pod on each node: the scheduler may put both on one."""

    def is_spread() -> bool:
        pods = installed.get("pods", component)["items"]
        if len({each["spec"].get("nodeName") for each in pods}) == 2:
            return True
        installed.kubectl("delete", "pod", pods[0]["metadata"]["name"])
        _all_there(installed)
        return False

    until(is_spread, timeout_s=LONG_S, what="both are on one node")


def test_a_node_vanishes_without_a_word_and_comes_back(doubled: Installed) -> None:
    cluster, network = doubled.cluster, doubled.cluster.network
    for component in (FLEET, GATEWAY):
        _spread(doubled, component)
    lost, left = WORKERS
    gateways = doubled.get("pods", GATEWAY, f"--field-selector=spec.nodeName={left.name}")["items"]
    with doubled.load(f"{gateways[0]['status']['podIP']}:8001") as load:
        lost.vanish(cluster.api, network)
        load.more(200)
        until(
            lambda: set(_nodes(doubled).values()) == {left.name}, timeout_s=LONG_S, every_s=0.5, what="pods stay there"
        )
        _all_there(doubled)
        load.more(200)
        # Who was sent elsewhere by the Service has to find that out without a word, too; who comes now is not.
        with doubled.load() as later:
            later.more(100)
        assert later.failures == []

        lost.come_back(cluster.api, network)
        cluster.wait_ready(lost)
        until(
            lambda: set(_nodes(doubled)) == set(doubled.pods()),
            timeout_s=LONG_S,
            every_s=0.5,
            what="its pods do not go",
        )
        load.more(100)
    # What had been sent there and had no answer was asked of the other one.
    assert load.failures == []


def test_a_pod_is_preempted_under_load(doubled: Installed) -> None:
    """Somebody more important needs all of the CPU that is left on a node, and a little more."""
    node = doubled.get("pods", FLEET)["items"][0]["spec"]["nodeName"]
    doubled.cluster.api.kubectl("create", "priorityclass", "important", "--value=1000000")
    try:
        with doubled.load() as load:
            doubled.cluster.api.kubectl(
                "apply", f"--namespace={doubled.namespace}", "--filename=-", given=_important(doubled, node)
            )
            until(lambda: _nodes(doubled).get("important") == node, timeout_s=LONG_S, every_s=0.5)
            _all_there(doubled)
            load.more(100)
        assert load.failures == []
        assert doubled.get("events", "--field-selector=reason=Preempted")["items"]
    finally:
        doubled.kubectl("delete", "pod", "important", "--ignore-not-found", "--grace-period=0", "--force")
        doubled.cluster.api.kubectl("delete", "priorityclass", "important")


def _important(installed: Installed, node: str) -> str:
    """A pod that fits on the node only when one of a fleet goes."""
    pods = installed.cluster.api.get("pods", "--all-namespaces", f"--field-selector=spec.nodeName={node}")["items"]
    taken = sum(_milli(pod) for pod in pods if "deletionTimestamp" not in pod["metadata"])
    room = installed.cluster.api.get("node", node)["status"]["allocatable"]["cpu"]
    container = {
        "name": "important",
        "image": installed.images["agent"],
        "command": ["sleep", "3600"],
        "resources": {"requests": {"cpu": f"{1000 * int(room) - taken + 20}m"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "priorityClassName": "important",
        "nodeSelector": {"kubernetes.io/hostname": node},
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
    }
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "important"}, "spec": spec})


def _milli(pod: Any) -> int:
    """What a pod requests of CPU while it runs: other than its sidecars, containers that ended before count no more."""
    sidecars = [each for each in pod["spec"].get("initContainers", ()) if each.get("restartPolicy") == "Always"]
    requests = [each["resources"].get("requests", {}) for each in (*pod["spec"]["containers"], *sidecars)]
    texts = [each.get("cpu", "0m") for each in requests]
    return sum(int(text[:-1]) if text.endswith("m") else 1000 * int(text) for text in texts)


def test_a_node_is_drained_under_load(doubled: Installed) -> None:
    """As by who maintains it."""
    before = _nodes(doubled)
    drain = ("drain", ONE, f"--pod-selector=app.kubernetes.io/instance={RELEASE}", "--delete-emptydir-data")
    with doubled.load() as load:
        doubled.cluster.api.kubectl(*drain, "--timeout=110s")
        _all_there(doubled)
        load.more(100)
    assert load.failures == []
    assert {name for name, node in before.items() if node == ONE} & set(doubled.pods()) == set()
    assert set(_nodes(doubled).values()) == {TWO}
    doubled.cluster.api.kubectl("uncordon", ONE)
