"""A right that the chart's Role gives is missing: it is named, the rest goes on; all comes right when it is there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.core.errors import NotFound
from controlplane.core.messages import ReplicaReport
from controlplane.core.models import FleetRecord, FleetShape, ManualScale
from controlplane.core.snapshot import Settings
from controlplane.fleet import events, informer
from controlplane.fleet.cluster import client_of, configured
from controlplane.fleet.kubernetes import KubernetesFleet
from controlplane.fleet.protocol import News
from controlplane.registry import Registry, open_registry
from controlplane.render.sharing import compatible
from controlplane.server import explain
from controlplane.server.acting import record_shapes
from controlplane.server.claiming import claim
from controlplane.server.controller import Controller
from tests.helm.rendering import objects, one, tiny
from tests.kubernetes.candidates import Candidate, permissions
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.using_ctl import may
from tests.kubernetes.using_fleet import INSTANCE, deployment
from tests.waiting import until

ACCOUNT = "serving-controller"
CPU = FleetShape(name="cpu", memory_bytes=1 << 30, min_replicas=0, max_replicas=3)
RULES: list[dict[str, Any]] = one(objects(tiny()), "Role", ACCOUNT)["rules"]
OF_THE_LEASE = "leases"
"""Without it nobody leads: tests of the election."""
FIRST_ALONE = {("get", "deployments"), ("get", "deployments/scale"), ("get", "pods")}
"""What a controller that leads asks for nothing by."""
RIGHTS = [
    (verb, resource)
    for rule in RULES
    for resource in rule["resources"]
    for verb in rule["verbs"]
    if resource != OF_THE_LEASE and (verb, resource) not in FIRST_ALONE
]


def without(verb: str, resource: str) -> list[dict[str, Any]]:
    return [
        {**rule, "verbs": [each for each in rule["verbs"] if (each, rule["resources"]) != (verb, [resource])]}
        for rule in RULES
        if (rule["resources"], rule["verbs"]) != ([resource], [verb])
    ]


class Led:
    """A controller that leads the release `serving`, with the chart's rights, in this process."""

    def __init__(self, cluster: ControlPlane, namespace: str, registry: Registry) -> None:
        self.cluster, self.namespace, self.registry = cluster, namespace, registry
        self.task: asyncio.Task[None] | None = None
        self.backend: KubernetesFleet | None = None
        self.controller: Controller | None = None

    def may(self, rules: list[dict[str, Any]]) -> None:
        metadata = {"name": ACCOUNT, "namespace": self.namespace}
        subject = {"kind": "ServiceAccount", **metadata}
        group = "rbac.authorization.k8s.io"
        role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
        binding = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": metadata, "subjects": [subject]}
        binding |= {"roleRef": {"apiGroup": group, "kind": "Role", "name": ACCOUNT}}
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all([account, role, binding]))

    def has(self, verb: str, resource: str) -> bool:
        group = "apps" if resource.startswith("deployments") else ""
        only = "serving-cpu" if resource == "deployments/scale" else ""
        return may(self.cluster, self.namespace, verb, resource, group=group, only=only, name=ACCOUNT)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", given=given)

    async def start(self) -> None:
        backend = KubernetesFleet(
            client_of(configured(self.cluster.kubeconfig_of(self.namespace, ACCOUNT))),
            namespace=self.namespace,
            selector=f"{INSTANCE}=serving",
            changed=lambda: None,
        )
        epoch = await claim(self.registry, "test")
        await record_shapes(self.registry, [CPU])
        await backend.open()
        self.backend = backend
        self.controller = Controller(
            registry=self.registry,
            epoch=epoch,
            shapes={CPU.name: CPU},
            backend=backend,
            settings=Settings(settle_s=0.1),
            poll_s=0.1,
            clash=compatible,
        )
        self.task = asyncio.create_task(self.controller.run(tick_s=0.1))

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
        if self.backend is not None:
            self.backend.close()

    def scale(self, size: int) -> None:
        manual = ManualScale(replicas=size, actor="test", at=datetime.now(UTC))
        self.registry.update_fleet("cpu", lambda present: replace(present or FleetRecord(shape=CPU), manual=manual))

    @property
    def leader(self) -> Controller:
        assert self.controller is not None
        assert self.task is not None
        if self.task.done():
            self.task.result()
        return self.controller

    def size(self) -> int:
        deployment = self.cluster.get("deployment", "serving-cpu", f"--namespace={self.namespace}")
        return int(deployment["spec"]["replicas"])

    def problems(self) -> str:
        """As `ctl status` shows them."""
        return "\n".join(explain.status(self.leader, time.time())["problems"].values())

    def reasons(self) -> str:
        """As `ctl explain fleet cpu` shows them."""
        return "\n".join(each["text"] for each in explain.fleet(self.leader, "cpu", time.time())["reasons"])

    def replicas(self) -> list[str]:
        """Those that have a pod."""
        return [each.name for each in self.leader.memory.backend_replicas.values() if each.name.startswith("serving-")]

    async def stopped(self) -> None:
        """The agents of those who are to leave say that their servers have ended."""
        for each in explain.replicas(self.leader, time.time()):
            if each["stopping"]:
                report = ReplicaReport(
                    replica=each["name"], fleet="cpu", incarnation="1", epoch=0, generation=0, server="stopped"
                )
                with suppress(NotFound):  # it is gone already
                    await self.leader.sync_replica(report, 0)


async def true(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Wait for it in the event loop, in whose thread it may look at everything."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.05)


@pytest.fixture
async def led(api_server: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[Led]:
    made = Led(api_server, namespace, open_registry(str(tmp_path / "registry")))
    made.may(RULES)
    made.kubectl("apply", "-f", "-", given=deployment("cpu"))
    await asyncio.to_thread(until, lambda: made.has("create", "events"))
    yield made
    await made.end()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An API server looks at rights when a watch begins, which is every four minutes, and tries again are rare."""
    monkeypatch.setattr(informer, "WATCH_S", 1)
    monkeypatch.setattr(informer, "RESYNC_S", 1.5)
    monkeypatch.setattr(informer, "RETRY_MAX_S", 1.0)
    monkeypatch.setattr(events, "RETRY_MAX_S", 1.0)
    yield


@pytest.mark.parametrize(("verb", "resource"), RIGHTS, ids=lambda part: str(part).replace("/", "-"))
async def test_it_is_named_and_the_rest_goes_on(led: Led, verb: str, resource: str) -> None:
    led.scale(1)
    await led.start()
    await true(lambda: len(led.replicas()) == 1 and not led.problems(), led.problems)

    led.may(without(verb, resource))
    await asyncio.to_thread(until, lambda: not led.has(verb, resource))
    removing = (verb, resource) == ("patch", "pods")
    then = 0 if removing else 2
    led.scale(then)
    refused = f'cannot {verb} resource "{resource}"'

    def named() -> bool:
        for _ in range(2):  # the second is counted up
            led.leader.backend.tell(News(fleet="cpu", code="TOO_LARGE", text="a test", warning=True))
        return refused in led.problems() and refused in led.reasons()

    if removing:
        await true(lambda: any(each["stopping"] for each in explain.replicas(led.leader, time.time())), led.reasons)
        await led.stopped()
    await true(named, lambda: (led.problems(), led.reasons()))
    assert "the chart's Role" in led.problems()
    assert all(each in led.problems() for each in (f"{led.namespace}:{ACCOUNT}", "helm upgrade"))
    assert led.replicas(), "what is there is known"
    if resource in ("events", "deployments") or (resource == "pods" and not removing):
        await asyncio.to_thread(until, lambda: led.size() == 2, what="what may be done is done")

    led.may(RULES)
    await true(lambda: not led.problems() and len(led.replicas()) == then, lambda: (led.problems(), led.replicas()))
    assert "ACTION_FAILS" not in {each["code"] for each in explain.fleet(led.leader, "cpu", time.time())["reasons"]}


@pytest.mark.parametrize("verb", ["get", "create", "patch"])
def test_so_is_one_on_the_lease(api_server: ControlPlane, namespace: str, tmp_path: Path, verb: str) -> None:
    """Who leads needs it. Nobody leads meanwhile; agents and gateways go on."""
    kubeconfig = permissions(api_server, namespace)

    def allow(*verbs: str) -> None:
        change = json.dumps([{"op": "replace", "path": "/rules/0/verbs", "value": verbs}])
        api_server.kubectl("patch", "role", ACCOUNT, "--type=json", f"-p={change}", f"--namespace={namespace}")

    def has() -> bool:
        return may(api_server, namespace, verb, "leases", group="coordination.k8s.io", name=ACCOUNT)

    until(has)
    verbs = ["get", "create", "update", "patch"]
    allow(*(each for each in verbs if each != verb))
    until(lambda: not has())
    candidate = Candidate(tmp_path, "one", namespace, kubeconfig)
    try:
        until(lambda: f'cannot {verb} resource "leases"' in candidate.log.read_text().replace("\\", ""))
        until(lambda: not candidate.leads, what="it leads without a lease")
        allow(*verbs)
        until(lambda: candidate.leads, what="it does not lead when it may")
    finally:
        candidate.end()
