"""The contract of fleet backends, with replicas as pods; and what happens on a cluster besides."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import threading
from collections.abc import AsyncIterator, Callable
from functools import wraps
from typing import Any

import pytest
import yaml
from kubernetes.client import CoreV1Api
from structlog.testing import capture_logs

from controlplane.core.errors import Conflict, NotFound, Unauthenticated, Unavailable
from controlplane.core.models import FleetShape
from controlplane.fleet import informer
from controlplane.fleet.cluster import client_of, configured
from controlplane.fleet.events import BURST, SOURCE, WAITING
from controlplane.fleet.kubernetes import COST, FLEET_LABEL, GATEWAY, LEAST_COST, KubernetesFleet
from controlplane.fleet.protocol import FleetBackend, FleetReplica, News
from tests.fleet.contract import *  # noqa: F403 - its tests
from tests.fleet.contract import CPU, names
from tests.kubernetes.control_plane import ControlPlane
from tests.waiting import until

INSTANCE = "app.kubernetes.io/instance"


def deployment(fleet: str, release: str = "serving") -> str:
    labels = {INSTANCE: release, FLEET_LABEL: fleet}
    return yaml.safe_dump(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": f"{release}-{fleet}", "labels": labels},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "automountServiceAccountToken": False,
                        "containers": [{"name": "triton", "image": "triton:none"}],
                    },
                },
            },
        }
    )


def labelled(fleet: str) -> dict[str, Any]:
    return {"labels": {INSTANCE: "serving", FLEET_LABEL: fleet}}


async def true(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    await asyncio.to_thread(until, condition)


class Made:
    """Backends over one namespace, and what they heard."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.changed = threading.Event()
        self.made: list[KubernetesFleet] = []

    async def __call__(self, release: str = "serving") -> KubernetesFleet:
        backend = KubernetesFleet(
            client_of(configured(self.cluster.kubeconfig)),
            namespace=self.namespace,
            selector=f"{INSTANCE}={release}",
            changed=self.changed.set,
        )
        self.made.append(backend)
        await backend.open()
        return backend

    async def settled(self, backend: FleetBackend) -> None:
        """Until the cluster has done what the Deployments say, and the backend has heard of it."""

        def deployed() -> bool:
            found = self.kubectl_get("deployments")
            return all(
                each["status"].get("observedGeneration") == each["metadata"]["generation"]
                and each["status"].get("replicas", 0) == each["spec"]["replicas"]
                for each in found
            )

        def heard() -> bool:
            return {each.name for each in asyncio.run(backend.list())} == self.pods()

        await true(deployed)
        await true(heard)

    def pods(self) -> set[str]:
        return {each["metadata"]["name"] for each in self.kubectl_get("pods")}

    def kubectl_get(self, kind: str) -> list[Any]:
        return list(self.cluster.get(kind, f"--namespace={self.namespace}")["items"])

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", given=given)


@pytest.fixture
async def make(api_server: ControlPlane, namespace: str) -> AsyncIterator[Made]:
    made = Made(api_server, namespace)
    for fleet in ("cpu", "other"):
        made.kubectl("apply", "-f", "-", given=deployment(fleet))
    yield made
    for each in made.made:
        each.close()


async def test_a_change_is_heard_of_and_not_asked_for(make: Made) -> None:
    backend = await make()
    make.changed.clear()
    make.kubectl("scale", "deployment/serving-cpu", "--replicas=2")
    assert await asyncio.to_thread(make.changed.wait, 30)
    assert list((await names(make, backend)).values()) == ["cpu", "cpu"], "scaled by hand: what is there is there"
    assert "kubectl set serving-cpu to 2" in backend.notes()["cpu"]
    await backend.start(CPU, "cpu-0")
    await names(make, backend)
    assert "cpu" not in backend.notes(), "its size is ours again"


async def test_whose_hand_was_at_a_deployment_is_told_once(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    await make.settled(backend)
    assert backend.notes() == {}, "neither who made it nor this controller is a hand"
    make.kubectl("scale", "deployment/serving-cpu", "--replicas=2")
    make.kubectl("set", "env", "deployment/serving-cpu", "A=b")
    make.kubectl("label", "deployment/serving-cpu", "of=no-pod")

    def noted() -> str:
        return backend.notes().get("cpu", "")

    edited = "kubectl-set changed serving-cpu (env of container triton) at "
    await true(lambda: "kubectl set serving-cpu to 2 at " in noted() and edited in noted())

    def told() -> list[tuple[str, str, int]]:
        backend.notes()
        found = [each for each in make.kubectl_get("events") if each["reason"].endswith("ByHand")]
        return sorted((each["reason"], each["message"], each["count"]) for each in found)

    await true(lambda: len(told()) == 2)
    events = await asyncio.to_thread(told)
    assert [(reason, count) for reason, _, count in events] == [("EditedByHand", 1), ("ScaledByHand", 1)]
    assert edited in events[0][1] and "kubectl set serving-cpu to 2 at " in events[1][1]
    backend.close()

    backend = await make()  # the next controller
    assert "kubectl set serving-cpu to 2 before " in noted(), "who sets a size leaves no time"
    backend.tell(News(fleet="cpu", code="SCALING", text="after that"))
    await true(lambda: any(each["reason"] == "Scaling" for each in make.kubectl_get("events")))
    assert await asyncio.to_thread(told) == events

    make.kubectl("set", "env", "deployment/serving-cpu", "A-")
    await true(lambda: "kubectl-set" not in noted())
    await backend.start(CPU, "cpu-one-more")
    await true(lambda: not noted())
    assert all(each in backend.past()["cpu"] for each in ("kubectl set serving-cpu to 2 before ", edited))
    assert await asyncio.to_thread(told) == events


async def test_who_scales_what_was_applied_without_a_size_is_recorded(make: Made) -> None:
    """As Helm does."""
    applied = {**yaml.safe_load(deployment("cpu")), "metadata": {"name": "applied", **labelled("applied")}}
    del applied["spec"]["replicas"]
    applied["spec"] |= {"selector": {"matchLabels": labelled("applied")["labels"]}}
    applied["spec"]["template"]["metadata"] = labelled("applied")
    make.kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump(applied))
    backend = await make()
    assert "applied" in backend.fleets()
    make.kubectl("scale", "deployment/applied", "--replicas=2")
    await true(lambda: "kubectl set applied to 2 at " in backend.notes().get("applied", ""))
    await backend.start(FleetShape(name="applied"), "applied-0")
    await true(lambda: "applied" not in backend.notes())
    found = [each for each in make.kubectl_get("deployments") if each["metadata"]["name"] == "applied"]
    assert [each["spec"]["replicas"] for each in found] == [3]


async def test_pods_that_somebody_deletes_leave_and_are_replaced(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    (before,) = await names(make, backend)
    make.kubectl("delete", "pod", before, "--wait=false")
    await true(lambda: before not in make.pods())
    (after,) = await names(make, backend)
    assert after != before


async def test_a_pod_on_its_way_out_leaves(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    (name,) = await names(make, backend)
    make.kubectl("patch", "pod", name, "-p", '{"metadata": {"finalizers": ["test.example/hold"]}}')
    make.kubectl("delete", "pod", name, "--wait=false")

    def leaving() -> list[FleetReplica]:
        return [each for each in asyncio.run(backend.list()) if each.state == "leaving"]

    await true(lambda: bool(leaving()))
    found = await asyncio.to_thread(leaving)
    assert [(each.name, each.reason) for each in found] == [(name, "its pod is deleted")]
    assert sum(each.state == "running" for each in await backend.list()) == 1, "the one that comes for it"
    await backend.remove(name)
    assert [each["spec"]["replicas"] for each in make.kubectl_get("deployments")] == [1, 0], "it goes anyway"
    make.kubectl("patch", "pod", name, "-p", '{"metadata": {"finalizers": null}}')


async def test_what_a_rolling_update_adds_is_not_ours_to_remove(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    (old,) = await names(make, backend)
    make.kubectl("set", "image", "deployment/serving-cpu", "triton=triton:another")
    await true(lambda: len(make.pods()) == 2)
    (new,) = make.pods() - {old}
    await true(lambda: sum(each.extra for each in asyncio.run(backend.list())) == 1)
    await backend.remove(new)
    assert [each["spec"]["replicas"] for each in make.kubectl_get("deployments")] == [1, 0]
    assert not any("annotations" in each["metadata"] for each in make.kubectl_get("pods"))


async def test_a_mark_on_who_stayed_counts_no_more(make: Made) -> None:
    backend = await make()
    for number in range(3):
        await backend.start(CPU, f"cpu-{number}")
    one, two, three = sorted(await names(make, backend))
    make.kubectl("annotate", "pod", one, f"{COST}={LEAST_COST}")
    await true(lambda: COST in (backend._pods.objects()[one].metadata.annotations or {}))
    await backend.remove(two)
    await make.settled(backend)
    assert make.pods() == {one, three}


@pytest.mark.parametrize("size", [0, 1])
async def test_what_was_decided_on_an_old_size_is_refused(make: Made, size: int) -> None:
    """So a call of a leader that was long under way undoes nothing of the next one's."""
    backend = await make()
    if size:
        await backend.start(CPU, "cpu-0")
        await names(make, backend)
    old = copy.deepcopy(backend._deployment("cpu"))
    make.kubectl("scale", "deployment/serving-cpu", "--replicas=3")
    await true(lambda: backend._size("cpu") == 3)
    backend._deployments.put(old)
    with pytest.raises(Conflict, match=f"Deployment serving-cpu to {size + 1}: it has 3 by now, not {size}"):
        await backend.start(CPU, "cpu-1")
    assert make.cluster.get("deployment/serving-cpu", f"--namespace={make.namespace}")["spec"]["replicas"] == 3


async def test_releases_do_not_see_each_other(make: Made) -> None:
    make.kubectl("apply", "-f", "-", given=deployment("cpu", "second"))
    first, second = await make(), await make("second")
    await second.start(CPU, "cpu-0")
    assert (len(await second.list()), len(await first.list())) == (1, 0)


async def test_a_fleet_without_a_deployment_is_told(make: Made) -> None:
    backend = await make()
    make.kubectl("delete", "deployment", "serving-cpu")

    await true(lambda: "cpu" not in backend.fleets())
    with pytest.raises(NotFound, match=r"no Deployment of the fleet 'cpu'.*helm upgrade"):
        await backend.start(CPU, "cpu-0")


async def test_while_the_api_server_is_away_what_was_known_stays(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    before = await names(make, backend)
    make.cluster.kill()
    try:
        assert {each.name: each.fleet for each in await backend.list()} == before
        with pytest.raises(Unavailable, match=r"scaling Deployment serving-cpu to 2.*can't be reached"):
            await backend.start(CPU, "cpu-1")
    finally:
        make.cluster.start()
    await backend.start(CPU, "cpu-1")
    assert len(await names(make, backend)) == 2, "the watch goes on"


async def test_a_right_that_is_missing_is_named(make: Made) -> None:
    make.kubectl("create", "serviceaccount", "poor")
    make.kubectl("create", "role", "reader", "--verb=list,watch", "--resource=pods,deployments.apps")
    make.kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={make.namespace}:poor")
    backend = KubernetesFleet(
        client_of(configured(make.cluster.kubeconfig_of(make.namespace, "poor"))),
        namespace=make.namespace,
        selector=f"{INSTANCE}=serving",
        changed=lambda: None,
    )
    make.made.append(backend)
    await backend.open()
    with pytest.raises(Unauthenticated, match=r'cannot get resource "deployments/scale".*Role'):
        await backend.start(CPU, "cpu-0")


async def test_why_a_pod_does_not_come_up_is_told_in_the_clusters_words(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    (name,) = await names(make, backend)
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    # What the scheduler writes there: here is none.
    status = json.dumps({"status": {"conditions": [unschedulable]}})
    make.kubectl("patch", "pod", name, "--subresource=status", "-p", status)
    await true(lambda: any("Insufficient nvidia.com/gpu" in each.reason for each in asyncio.run(backend.list())))


async def test_why_there_is_no_pod_is_told_in_the_clusters_words(make: Made) -> None:
    make.kubectl("create", "quota", "none", "--hard=pods=0")
    await true(lambda: any("used" in each["status"] for each in make.kubectl_get("resourcequotas")))
    backend = await make()
    await backend.start(CPU, "cpu-0")
    await true(lambda: any("exceeded quota: none" in each.reason for each in asyncio.run(backend.list())))
    make.kubectl("delete", "quota", "none")
    await make.settled(backend)
    assert [each.reason for each in await backend.list()] == [""]


async def test_news_are_events_on_what_they_are_about(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    await make.settled(backend)
    (pod,) = make.pods()
    for _ in range(2):
        backend.tell(News(fleet="cpu", code="ROLLOUT_FAILED", text="it did not load", warning=True))
    backend.tell(News(fleet="cpu", replica=pod, code="SCALE_DOWN", text="it leaves: " + "x" * 2000))
    backend.tell(News(fleet="none", code="SCALING", text="nobody sees this"))
    backend.tell(News(fleet="cpu", replica="gone", code="SCALE_DOWN", text="nor this"))

    def ours() -> set[tuple[str, str, str, str, int]]:
        return {
            (of["kind"], of["name"], each["type"], each["reason"], each["count"])
            for each in make.kubectl_get("events")
            if each["source"].get("component") == SOURCE
            for of in [each["involvedObject"]]
        }

    expected = {("Deployment", "serving-cpu", "Warning", "RolloutFailed", 2), ("Pod", pod, "Normal", "ScaleDown", 1)}
    await true(lambda: ours() == expected)
    assert "RolloutFailed" in make.kubectl("describe", "deployment/serving-cpu")


async def test_one_object_gets_no_flood_of_events(make: Made) -> None:
    backend = await make()
    for number in range(100):
        backend.tell(News(fleet="cpu", code="SCALING", text=f"to {number}"))
    backend.tell(News(fleet="other", code="SCALING", text="the last"))

    def on(fleet: str) -> int:
        found = make.kubectl_get("events")
        return sum(
            each["involvedObject"]["name"] == f"serving-{fleet}" and each["reason"] == "Scaling" for each in found
        )

    await true(lambda: on("other") == 1)
    assert on("cpu") == BURST


@pytest.mark.parametrize("away", ["kill", "pause"])
async def test_who_tells_does_not_wait_for_an_api_server_that_is_away(make: Made, away: str) -> None:
    backend = await make()
    getattr(make.cluster, away)()

    def tell() -> None:
        for number in range(2 * WAITING):  # more than may wait to be written
            backend.tell(News(fleet="cpu", code="SCALING", text=f"to {number}"))

    try:
        async with asyncio.timeout(60):  # each call may take CALL_S
            await asyncio.to_thread(tell)
    finally:
        if away == "kill":
            make.cluster.start()
        else:
            make.cluster.go_on()

    def told() -> bool:
        backend.tell(News(fleet="other", code="SCALING", text="it is back"))
        return any(each["involvedObject"]["name"] == "serving-other" for each in make.kubectl_get("events"))

    await true(told)


async def test_which_gateways_there_are(make: Made) -> None:
    backend = await make()
    assert backend.gateways() == []
    for release in ("serving", "another"):
        labels = f"--labels={INSTANCE}={release},{GATEWAY}"
        make.kubectl("run", f"{release}-gateway", "--image=gateway:none", labels)
    await true(lambda: backend.gateways() == ["serving-gateway"])
    make.kubectl("delete", "pod", "serving-gateway", "--now")
    await true(lambda: backend.gateways() == [])


async def test_a_watch_is_followed_past_its_bookmarks(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sends one a little before each watch ends."""
    monkeypatch.setattr(informer, "WATCH_S", 4)
    core = CoreV1Api(client_of(configured(make.cluster.kubeconfig)))
    calls: list[str | None] = []

    @wraps(core.list_namespaced_pod)  # the client reads from it what it returns
    def listed(**options: Any) -> Any:
        calls.append(options.get("resource_version"))
        return core.list_namespaced_pod(**options)

    followed = informer.Informer("pods", listed, {"namespace": make.namespace}, lambda: None)
    followed.start()
    try:
        await true(lambda: len(calls) == 4)  # a list and three watches
        assert calls.count(None) == 1, "nothing is listed anew"
        make.kubectl("run", "late", "--image=none:none")
        await true(lambda: "late" in followed.objects())
        assert followed.problem is None
    finally:
        followed.stop()


async def test_what_is_too_old_for_a_watch_is_listed_anew(make: Made) -> None:
    """The server answers 410 to who asks for what was before its cache begins, or before etcd was compacted."""
    make.cluster.kill()
    make.cluster.start()
    core = CoreV1Api(client_of(configured(make.cluster.kubeconfig)))
    calls: list[str | None] = []

    @wraps(core.list_namespaced_pod)  # the client reads from it what it returns
    def listed(**options: Any) -> Any:
        calls.append(options.get("resource_version"))
        if len(calls) == 2:
            options["resource_version"] = "1"
        return core.list_namespaced_pod(**options)

    followed = informer.Informer("pods", listed, {"namespace": make.namespace}, lambda: None)
    followed.start()
    try:
        await true(lambda: len(calls) == 4)  # list, watch, list, watch
        assert [each is None for each in calls] == [True, False, True, False]
        make.kubectl("run", "late", "--image=none:none")
        await true(lambda: "late" in followed.objects())
        assert followed.problem is None
    finally:
        followed.stop()


async def test_a_fleet_that_was_away_when_etcd_was_compacted_goes_on(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between one watch and the next: no history is left that would lead from what it knows to the present."""
    monkeypatch.setattr(informer, "WATCH_S", 1)
    list_pods = CoreV1Api.list_namespaced_pod
    away, back = threading.Event(), threading.Event()
    versions: list[int] = []

    @functools.wraps(list_pods)
    def held(api: CoreV1Api, *arguments: Any, **options: Any) -> Any:
        if options.get("watch") and away.is_set() and not back.is_set():
            versions.append(int(options["resource_version"]))
            assert back.wait(120)
        return list_pods(api, *arguments, **options)

    monkeypatch.setattr(CoreV1Api, "list_namespaced_pod", held)
    backend = await make()
    away.set()
    await true(lambda: len(versions) == 2)  # of pods, and of gateways' pods
    with capture_logs() as logs:
        make.kubectl("scale", "deployment/serving-cpu", "--replicas=1")
        await true(lambda: len(make.pods()) == 1)
        assert make.cluster.compact() > max(versions)
        make.cluster.kill()
        make.cluster.start()
        back.set()
        assert list((await names(make, backend)).values()) == ["cpu"]
        await true(lambda: len([each for each in logs if "the watch is too old" in each["event"]]) >= 2)
    make.kubectl("scale", "deployment/serving-cpu", "--replicas=2")
    assert list((await names(make, backend)).values()) == ["cpu", "cpu"], "the same backend hears what comes next"


async def test_everything_is_listed_anew_from_time_to_time(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the watch has told, or has not."""
    monkeypatch.setattr(informer, "WATCH_S", 1)
    monkeypatch.setattr(informer, "RESYNC_S", 2.0)
    backend = await make()
    await backend.start(CPU, "cpu-0")
    (name,) = await names(make, backend)
    ghost = copy.deepcopy(backend._pods.objects()[name])
    ghost.metadata.name = "ghost"
    backend._pods.put(ghost)
    await true(lambda: {each.name for each in asyncio.run(backend.list())} == {name})
    assert backend._pods.problem is None


async def test_many_that_are_asked_for_at_once_are_one_call(make: Made) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    (before,) = (each["metadata"]["generation"] for each in make.kubectl_get("deployments") if _is_cpu(each))
    asked = [asyncio.create_task(backend.start(CPU, f"cpu-{number}")) for number in range(1, 40)]
    await asyncio.sleep(0)
    while not all(each.done() for each in asked):
        assert len(await backend.list()) == 40, "each is there from when it is asked for"
        await asyncio.sleep(0.005)
    await asyncio.gather(*asked)
    assert len(await names(make, backend)) == 40
    (after,) = (each["metadata"]["generation"] for each in make.kubectl_get("deployments") if _is_cpu(each))
    assert after == before + 1


async def test_a_call_that_fails_fails_for_all_whom_it_was_for(make: Made) -> None:
    backend = await make()
    gone = FleetShape(name="gone", memory_bytes=1 << 30)
    asked = await asyncio.gather(*(backend.start(gone, f"gone-{n}") for n in range(3)), return_exceptions=True)
    assert [type(each) for each in asked] == [NotFound] * 3
    assert await backend.list() == ()


def _is_cpu(deployment: Any) -> bool:
    return bool(deployment["metadata"]["name"] == "serving-cpu")
