"""What `ctl doctor` concludes, and what it finds on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient

from controlplane.cli.checks import dns, nodes, pods
from controlplane.cli.checks.clocks import compared
from controlplane.cli.checks.finding import Finding, found
from controlplane.cli.checks.prometheus import prometheus
from controlplane.cli.checks.registry import claimed, conditional_writes
from controlplane.cli.checks.running import running
from controlplane.core.errors import InvalidEntry, InvalidInput, NotFound, Unauthenticated
from controlplane.registry import Registry, open_registry
from controlplane.registry.claims import of_release
from controlplane.registry.directory import DirectoryStore
from tests.cli.conftest import Ctl
from tests.prometheus import prometheus as running_prometheus

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def parsed(kind: str, data: dict[str, Any]) -> Any:
    """What the client makes of the API server's answer."""
    return ApiClient().deserialize(json.dumps(data), kind, "application/json")


def pod(*, age_s: float = 600, **status: Any) -> Any:
    created = (NOW - timedelta(seconds=age_s)).isoformat()
    metadata = {"name": "serving-cpu-0", "namespace": "models", "creationTimestamp": created}
    return parsed("V1Pod", {"metadata": metadata, "status": {"phase": "Pending", **status}})


def container(name: str = "triton", *, ready: bool = False, restarts: int = 0, **states: Any) -> dict[str, Any]:
    state, last = states.get("state", {"running": {}}), states.get("last", {})
    fields = {"name": name, "image": "i", "imageID": "i", "ready": ready, "restartCount": restarts}
    return {**fields, "state": state, "lastState": last}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
}
NOT_READY = {
    "type": "ContainersReady",
    "status": "False",
    "reason": "ContainersNotReady",
    "message": "containers with unready status: [triton]",
}


@pytest.mark.parametrize(
    ("seen", "state", "what", "remedy"),
    [
        (pod(conditions=[UNSCHEDULABLE]), "problem", "3 Insufficient nvidia.com/gpu", "node that fits"),
        (
            pod(containerStatuses=[container(state=waiting("ImagePullBackOff", "Back-off pulling image"))]),
            "problem",
            "container triton: ImagePullBackOff: Back-off pulling image",
            "imagePullSecrets",
        ),
        (
            pod(initContainerStatuses=[container("agent", state=waiting("CreateContainerConfigError", "no secret"))]),
            "problem",
            "container agent: CreateContainerConfigError: no secret",
            "Secret",
        ),
        (
            pod(
                containerStatuses=[
                    container(
                        state=waiting("CrashLoopBackOff", "back-off 5m0s"),
                        last={"terminated": {"exitCode": 1, "reason": "Error"}},
                    )
                ]
            ),
            "problem",
            "CrashLoopBackOff: back-off 5m0s; the last one ended with exit code 1 (Error)",
            "logs --container triton --previous serving-cpu-0",
        ),
        (
            pod(containerStatuses=[container(state=waiting("CrashLoopBackOff", "back-off"), last=OOM)]),
            "problem",
            "exit code 137 (OOMKilled)",
            "more memory",
        ),
        (
            pod(phase="Running", containerStatuses=[container(restarts=2, last=OOM)]),
            "problem",
            "was started 3 times; it ended with exit code 137 (OOMKilled)",
            "more memory",
        ),
        (
            pod(phase="Failed", reason="Evicted", message="low on memory"),
            "problem",
            "Evicted: low on memory",
            "another",
        ),
        (
            pod(phase="Running", containerStatuses=[container()], conditions=[NOT_READY]),
            "problem",
            "containers with unready status: [triton]",
            "kubectl --namespace models describe pod serving-cpu-0",
        ),
        (
            pod(age_s=20, containerStatuses=[container(state=waiting("ContainerCreating"))], conditions=[NOT_READY]),
            "warning",
            "containers with unready status",
            "look again",
        ),
    ],
)
def test_pods_that_are_not_ready(seen: Any, state: str, what: str, remedy: str) -> None:
    (finding,) = pods.pods([seen], now=NOW)
    assert finding.state == state
    assert what in finding.what
    assert remedy in (finding.remedy or "")


def test_pods_that_are_ready() -> None:
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    assert [each.state for each in pods.pods([ready, ready], now=NOW)] == ["ok"]
    assert list(pods.pods([], now=NOW)) == []


def node(name: str, *, gpus: int = 0, ready: bool = True, cordoned: bool = False, **labels: str) -> Any:
    return parsed(
        "V1Node",
        {
            "metadata": {"name": name, "labels": labels},
            "spec": {"unschedulable": cordoned},
            "status": {
                "allocatable": {"cpu": "8", **({"nvidia.com/gpu": str(gpus)} if gpus else {})},
                "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
            },
        },
    )


def wish(each: int = 1, at_least: int = 1, at_most: int = 2, **labels: str) -> nodes.Wish:
    return nodes.Wish("gpu", "nvidia.com/gpu", each, at_least, at_most, labels)


@pytest.mark.parametrize(
    ("asked", "state", "what"),
    [
        (wish(), "ok", "places for 5"),
        (wish(at_most=8), "warning", "places for 5 at present"),
        (wish(at_least=6, at_most=8), "problem", "6 replicas at least; the nodes have places for 5"),
        (wish(each=2), "ok", "places for 2"),
        (wish(each=8), "problem", "no node has more than 4"),
        (wish(zone="a"), "warning", "places for 1"),
        (wish(zone="z"), "problem", "none of 0 nodes that are ready with zone=z has any"),
    ],
)
def test_gpus_of_nodes(asked: nodes.Wish, state: str, what: str) -> None:
    there = [
        node("a", gpus=4),
        node("b", gpus=1, zone="a"),
        node("plain"),
        node("away", gpus=8, ready=False),
        node("cordoned", gpus=8, cordoned=True),
    ]
    finding = nodes.fits(asked, nodes.usable(there))
    assert (finding.state, what in finding.what) == (state, True), finding


def test_what_a_fleet_asks_for() -> None:
    def deployment(limits: dict[str, str]) -> Any:
        spec = {
            "containers": [{"name": "triton", "resources": {"limits": limits}}],
            "nodeSelector": {"gpu": "a100"},
        }
        return parsed("V1Deployment", {"spec": {"selector": {}, "template": {"spec": spec}}})

    asked = nodes.wish_of("f", deployment({"memory": "1Gi", "nvidia.com/mig-1g.10gb": "2"}), at_least=0, at_most=3)
    assert asked == nodes.Wish("f", "nvidia.com/mig-1g.10gb", 2, 0, 3, {"gpu": "a100"})
    assert nodes.wish_of("f", deployment({"memory": "1Gi"}), at_least=0, at_most=3) is None


@pytest.mark.parametrize(
    ("ours", "state", "what"),
    [(1000.0, "ok", "agree"), (1060.0, "warning", "60 s ahead of"), (400.0, "problem", "600 s behind")],
)
def test_clocks(ours: float, state: str, what: str) -> None:
    finding = compared("the store", ours=ours, theirs=1000.0)
    assert (finding.state, what in finding.what) == (state, True), finding


def test_what_stops_a_check_is_a_finding() -> None:
    def stopped(error: Exception) -> Iterator[Finding]:
        yield Finding("some", "ok", "first")
        raise error

    problems = (InvalidInput("no number", field="fleets[0].gpus", remedy="give one"),)
    for error, state, what in (
        (NotFound("gone", remedy="make it"), "problem", "gone"),
        (Unauthenticated("not yours"), "unchecked", "not yours"),
        (InvalidEntry("the system", problems), "problem", "the system: fleets[0].gpus: no number"),
    ):
        first, second = found("some", lambda error=error: stopped(error))  # type: ignore[misc]
        assert first.state == "ok"
        assert (second.state, second.what) == (state, what)
    with pytest.raises(ZeroDivisionError):
        list(found("some", lambda: stopped(ZeroDivisionError())))


def test_what_the_controller_tells() -> None:
    fine = {"problems": {}, "replicas_ready": 2, "replicas_wanted": 2, "gateways_ready": 1}
    assert [each.state for each in running(fine)] == ["ok"]
    assert [each.state for each in running({**fine, "replicas_ready": 1})] == ["warning"]
    assert [each.state for each in running({**fine, "gateways_ready": 0})] == ["ok", "problem"]
    (finding,) = running({**fine, "problems": {"registry": "it is away"}})
    assert (finding.state, finding.what) == ("problem", "registry: it is away")


def test_where_more_is_told() -> None:
    fine = {"problems": {}, "replicas_ready": 2, "replicas_wanted": 2, "gateways_ready": 1}
    about = {"models/m.json": "`ctl explain model m`", "fleet cpu": "`ctl explain fleet cpu`", "events": "log tells"}
    for key, remedy in about.items():
        (finding,) = running({**fine, "problems": {key: "it fails"}})
        assert remedy in (finding.remedy or "")


def test_what_the_controller_has_found_of_names() -> None:
    known, unknown = {"serving-gateway.models": None}, {"serving-gateway.models": "Name or service not known"}
    (finding,) = dns.looked_up(known, alias=None)
    assert (finding.state, finding.what) == ("ok", "serving-gateway.models is known inside the cluster")
    (finding,) = dns.looked_up(unknown, alias=None)
    assert finding.state == "problem"
    assert "Name or service not known" in finding.what
    assert "set controllerHostAlias" in (finding.remedy or "")
    (finding,) = dns.looked_up(unknown, alias="10.96.7.7")
    assert finding.state == "warning"
    assert "at 10.96.7.7, by controllerHostAlias" in finding.what
    assert "gateway.service.clusterIP" in (finding.remedy or "")


def test_whose_registry_it_is(tmp_path: Path) -> None:
    registry = open_registry(str(tmp_path / "registry"))

    def found(installation: str | None = "here") -> Finding:
        (finding,) = claimed(registry.url, name=of_release("models", "serving"), installation=installation)
        return finding

    assert found().state == "warning", "nobody's"
    registry.claim(of_release("models", "serving"))
    assert found().state == "ok", "as earlier releases have claimed it"
    registry.claim(of_release("models", "serving"), "here")
    assert found().state == found(None).state == "ok"
    assert found("there").state == "problem"
    assert "another installation of kubernetes:models/serving" in found("there").what
    (finding,) = claimed(registry.url, name=of_release("models", "second"), installation="here")
    assert finding.state == "problem"
    assert "belongs to another control plane (kubernetes:models/serving)" in finding.what


def test_a_store_without_conditions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "registry")
    (finding,) = conditional_writes(url, write=True)
    assert finding.state == "ok"
    assert not list(DirectoryStore(tmp_path / "registry").list("")), "something stays behind"
    put = DirectoryStore.put
    monkeypatch.setattr(DirectoryStore, "put", lambda self, key, content, **_: put(self, key, content))
    (finding,) = conditional_writes(url, write=True)
    assert finding.state == "problem"
    assert "overwrites an object that was to be made anew" in finding.what
    assert "changed meanwhile" in finding.what
    (finding,) = conditional_writes(url, write=False)
    assert finding.state == "unchecked"


def test_a_prometheus_that_answers_and_one_that_does_not(tmp_path: Path) -> None:
    with running_prometheus(tmp_path / "prometheus") as server:
        assert [each.state for each in prometheus(server.url, ours=True)] == ["ok"]
    (finding,) = prometheus("http://127.0.0.1:9", ours=True)
    assert finding.state == "problem"
    (finding,) = prometheus("http://someone:secret@127.0.0.1:9", ours=False)
    assert finding.state == "warning"
    assert "secret" not in finding.what
    (finding,) = prometheus("http://prometheus.monitoring.svc.cluster.invalid:9090", ours=False)
    assert finding.state == "unchecked"
    assert list(prometheus(None, ours=True)) == []


def test_doctor_without_a_home(ctl: Ctl, home: Any, tmp_path: Path) -> None:
    home.root.rmdir()
    answer = ctl("doctor")
    assert answer.status == 1
    assert "`ctl up` makes one" in answer.err
    answer = ctl("doctor", f"--registry={tmp_path / 'registry'}", "-o", "json", "--write")
    assert answer.status == 0
    assert {each["state"] for each in answer.data} == {"ok"}


def test_doctor_of_a_home(ctl: Ctl, controller: object, registry: Registry) -> None:
    answer = ctl("doctor", "-o", "json")
    assert answer.status == 1
    by_check = {each["check"]: each for each in answer.data}
    assert by_check["home"]["state"] == "problem"
    assert "`ctl up`" in by_check["home"]["remedy"]
    assert by_check["gateway"]["state"] == "problem"
    assert by_check["registry"]["state"] == "ok"
    assert by_check["registry writes"]["state"] == "unchecked"
    assert "no gateway is ready" in [each["what"] for each in answer.data if each["check"] == "controller"][-1]
    answer = ctl("doctor")
    assert answer.status == 1
    assert "→" in answer.out and "problem" in answer.err
