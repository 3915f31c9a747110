"""The contract of fleet backends, with replicas as pods; and what happens on a cluster besides."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from controlplane.core.errors import NotFound, Unauthenticated
from controlplane.core.models import FleetShape
from controlplane.fleet.cluster import client_of, configured
from controlplane.fleet.events import BURST, SOURCE, WAITING
from controlplane.fleet.kubernetes import COST, GATEWAY, LEAST_COST, KubernetesFleet
from controlplane.fleet.protocol import FleetReplica, News
from tests.fleet.contract import *  # noqa: F403 - its tests
from tests.fleet.contract import CPU, names
from tests.kubernetes.using_fleet import INSTANCE, Made, deployment, make, true

__all__ = ["make"]


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
    assert backend.gateways() == [], "what has not begun leads nowhere"
    for release in ("serving", "another"):
        status = '--patch={"status": {"phase": "Running"}}'
        make.kubectl("patch", "pod", f"{release}-gateway", "--subresource=status", "--type=merge", status)
    await true(lambda: backend.gateways() == ["serving-gateway"])
    make.kubectl("delete", "pod", "serving-gateway", "--now")
    await true(lambda: backend.gateways() == [])


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
