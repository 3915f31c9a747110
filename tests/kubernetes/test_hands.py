"""Sizes and pods of a fleet that somebody else has changed: followed, told, and not written over."""

from __future__ import annotations

import asyncio
import copy

import pytest
import yaml

from controlplane.core.errors import Conflict
from controlplane.core.models import FleetShape
from controlplane.fleet.protocol import News
from tests.fleet.contract import CPU, names
from tests.kubernetes.using_fleet import Made, deployment, labelled, make, true

__all__ = ["make"]


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
