"""A fleet of 1,000 pods: how long until the controller sees them all, what it asks of the API server, what it takes.

`python -m benchmarks.kubernetes_scale [pods] [seconds at rest]`

The API server, etcd and Kubernetes' own controllers are real, and so is ours, with the rights that the chart gives it.
No pod runs: their nodes, agents and servers pretend. The peer is a bare Deployment of the same pods on the same control
plane, scaled by one call. Calls are counted by the API server's audit log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

from benchmarks.ending import scratch
from benchmarks.kubernetes_parts import COMPONENT, Agents, Audited, Call, Nodes, Pod, calls
from controlplane.core.entry import Entry, Resources, Serving
from controlplane.core.models import FleetRecord, ManualScale
from controlplane.local import processes
from controlplane.registry import open_registry
from controlplane.registry.registry import Registry
from controlplane.server.identity_tokens import AUDIENCE
from examples.interrupts import interruptible
from tests.helm.rendering import CHART, containers, objects, read
from tests.kubernetes.control_plane import running
from tests.registry.servers import versitygw

NAMESPACE, RELEASE, PEER, FLEET = "models", "serving", "peer", "cpu"
REGISTRY = "s3://registry/fleet"
LOG, LOST = "controller.log", "leads no more"
MODELS = 20
BATCH = 0.25
"""Seconds between two looks."""
SETTLE_S = 45.0
"""What comes after the scale-up is over by then: longer than two long polls of an agent."""
WAIT_S = 150.0

SEEN_LIMIT = 1.5
"""Until the controller reports all replicas up, against the API server's own time until all pods are ready."""
ORDER_LIMIT = 100
"""Calls of the controller in a scale-up, but for reviews of tokens."""
REST_LIMIT = 60.0
"""Calls of the controller a minute at rest, but for reviews of tokens: its lease, and watches."""
REVIEW_LIMIT = 2.0
"""Reviews of tokens a minute at rest, for each pod."""
REVIEWS = "create tokenreviews"
OURS = f"system:serviceaccount:{NAMESPACE}:{RELEASE}-controller"
THEIRS = "system:serviceaccount:kube-system:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The controller's process at one instant. `at`: seconds since 1970."""

    at: float
    cpu_s: float
    resident_bytes: int
    peak_bytes: int
    cycles: float
    cycles_s: float


@dataclass(slots=True, kw_only=True)
class Controller:
    """The controller's process, and a reader's token."""

    url: str
    token: str
    process: psutil.Process
    http: aiohttp.ClientSession

    async def text(self, path: str) -> str:
        """What it answers."""
        headers = {"authorization": f"Bearer {self.token}"}
        async with self.http.get(f"{self.url}{path}", headers=headers) as answer:
            return await answer.text() if answer.ok else ""

    async def leads(self) -> bool:
        """Whether it leads."""
        with contextlib.suppress(aiohttp.ClientError):
            return '"leader"' in await self.text("/readyz")
        return False

    async def up(self) -> int:
        """How many replicas' servers are ready, by its own account."""
        found = json.loads(await self.text("/v1/fleets") or "[]")  # it may lead no more
        return sum(int(fleet["ready"]) for fleet in found)

    async def sample(self) -> Sample:
        """How it is now."""
        metrics = (line.split() for line in (await self.text("/metrics")).splitlines() if line[:1] != "#")
        counted = {name: float(value) for name, value in metrics if name.startswith("ctl_controller_cycle_seconds_")}
        used = self.process.cpu_times()
        return Sample(
            at=time.time(),
            cpu_s=used.user + used.system,
            resident_bytes=self.process.memory_info().rss,
            peak_bytes=_peak_bytes(self.process.pid),
            cycles=counted.get("ctl_controller_cycle_seconds_count", math.nan),
            cycles_s=counted.get("ctl_controller_cycle_seconds_sum", math.nan),
        )


def _peak_bytes(pid: int) -> int:
    """The most that was ever resident of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds from the order; samples around the scale-up and around a while at rest. `made`: pods that there ever
    were of the fleet. `lost`: how often the controller led no more."""

    pods: int
    made: int
    lost: int
    bare_s: float
    ready_s: float
    up_s: float
    loaded_s: float
    scaling: tuple[Sample, Sample]
    rest: tuple[Sample, Sample]
    calls: list[Call]


def values(pods: int) -> dict[str, Any]:
    """The chart's: the smallest there are, but for the fleet's size."""
    tiny = read(CHART / "ci" / "tiny-values.yaml")
    fleet = {**tiny["fleets"][0], "replicas": {"min": 1, "max": pods}, "memory_bytes": "4Gi"}
    return {**tiny, "registry": REGISTRY, "fleets": [fleet]}


def install(cluster: Audited, pods: int) -> dict[str, list[str]]:
    """Apply the chart, and of another release only what a fleet is made of, without pods as yet. Returns the names of
    each component's containers."""
    ours = [each for each in objects(values(pods), name=RELEASE, namespace=NAMESPACE) if not _is_hook(each)]
    peers = [
        each
        for each in objects(values(pods), name=PEER, namespace=NAMESPACE)
        if each["metadata"].get("labels", {}).get(COMPONENT) == "fleet" and each["kind"] != "NetworkPolicy"
    ]
    for each in peers:
        if each["kind"] == "Deployment":
            each["spec"]["replicas"] = 0
    cluster.kubectl("create", "namespace", NAMESPACE)
    found = sorted([*ours, *peers], key=lambda each: each["kind"] == "Deployment")  # after what their pods need
    cluster.kubectl("apply", "--filename=-", given=yaml.safe_dump_all(found))
    return {
        each["metadata"]["labels"][COMPONENT]: [one["name"] for one in containers(each["spec"]["template"]["spec"])]
        for each in ours
        if each["kind"] == "Deployment"
    }


def _is_hook(each: dict[str, Any]) -> bool:
    return "helm.sh/hook" in (each["metadata"].get("annotations") or {})


def register(pods: int) -> Registry:
    """So many models that each replica has something to do."""
    registry = open_registry(REGISTRY)
    copies = max(pods // MODELS, 1)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(b"no model: nobody loads it")
        file.flush()
        for number in range(MODELS):
            entry = Entry(
                name=f"model-{number}",
                backend="onnxruntime",
                serving=Serving(load="always", min_copies=copies, max_copies=copies),
                resources=Resources(memory_bytes=1 << 20),
            )
            registry.register(entry, {"model.onnx": Path(file.name)}, actor="benchmark")
            registry.promote(entry.name, 1, actor="benchmark")
    return registry


def order(registry: Registry, pods: int) -> None:
    """What `ctl scale` writes."""
    manual = ManualScale(replicas=pods, actor="benchmark", at=datetime.now(UTC))

    def change(present: FleetRecord | None) -> FleetRecord:
        assert present is not None, "the controller has not recorded its fleet"
        return replace(present, manual=manual)

    registry.update_fleet(FLEET, change)


class TooLate(Exception):
    """It did not come."""


async def until(condition: Callable[[], Awaitable[bool]], nodes: Nodes, what: str) -> None:
    """Wait for it. Raises TooLate."""
    ends = time.monotonic() + WAIT_S
    while not await condition():
        if nodes.failed:
            raise RuntimeError(f"the pretended nodes failed while {what}") from nodes.failed[0]
        if time.monotonic() > ends:
            raise TooLate(f"waited {WAIT_S:g} s: {what}")
        await asyncio.sleep(BATCH)


async def seconds(condition: Callable[[], Awaitable[bool]], began: float, nodes: Nodes, what: str) -> float:
    """Seconds from `began` until it is so; infinite when that takes too long. What came before is worth a look then."""
    try:
        await until(condition, nodes, what)
    except TooLate as error:
        _say(str(error))
        return math.inf
    return time.monotonic() - began


async def bare(nodes: Nodes, pods: int) -> float:
    """The peer: seconds until as many pods of a Deployment that nobody of ours looks after are ready."""

    async def ready() -> bool:
        return len(nodes.ready_at.get(PEER, ())) == pods

    apps = f"/apis/apps/v1/namespaces/{NAMESPACE}"
    began = time.monotonic()
    merge = {"content_type": "application/merge-patch+json"}
    await nodes.call("PATCH", f"{apps}/deployments/{PEER}-{FLEET}/scale", {"spec": {"replicas": pods}}, **merge)
    await until(ready, nodes, "the bare Deployment's pods do not become ready")
    took_s = max(nodes.ready_at[PEER]) - began
    # All at once; through their owners it would take as long as it took to make them.
    which = f"labelSelector=app.kubernetes.io%2Finstance%3D{PEER}"
    for kind in ("deployments", "replicasets"):
        await nodes.call("DELETE", f"{apps}/{kind}?{which}&propagationPolicy=Orphan")

    async def gone() -> bool:
        found = await nodes.call("GET", f"{apps}/replicasets?{which}")
        return not found["items"]

    await until(gone, nodes, "the bare Deployment does not go")
    await nodes.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods?{which}&gracePeriodSeconds=0")
    await asyncio.sleep(5)  # what the cluster's controllers have to do about it
    return took_s


def start(cluster: Audited, folder: Path, environment: dict[str, str]) -> tuple[psutil.Process, str]:
    """Start the controller as the chart runs it; its process, and a token for reading."""
    (pod,) = cluster.get("pods", f"--namespace={NAMESPACE}", f"--selector={COMPONENT}=controller")["items"]
    config = folder / "system.yaml"
    config.write_text(cluster.get("configmap", f"{RELEASE}-config", f"--namespace={NAMESPACE}")["data"]["system.yaml"])
    _, record = processes.start(
        [
            sys.executable,
            "-m",
            "controlplane.server",
            "--kubernetes",
            f"--config={config}",
            f"--kubeconfig={cluster.kubeconfig_of(NAMESPACE, f'{RELEASE}-controller')}",
        ],
        home=folder,
        log_file=folder / LOG,
        environment={
            **processes.scrubbed_environment(folder),
            **environment,
            "POD_NAME": pod["metadata"]["name"],
            "POD_NAMESPACE": NAMESPACE,
            "POD_IP": "127.0.0.1",
            "RELEASE": RELEASE,
        },
    )
    process = record.process()
    assert process is not None, (folder / LOG).read_text(errors="replace")
    return process, cluster.token(NAMESPACE, f"{RELEASE}-ctl", audience=AUDIENCE)


async def measure(folder: Path, cluster: Audited, s3: dict[str, str], pods: int, rest_s: float) -> Measured:
    """Everything, in one run."""
    port, metrics_port = processes.free_ports(2)
    agents = Agents(fleet=FLEET, url=f"http://127.0.0.1:{port}")

    async def run(pod: Pod) -> None:
        if pod.instance == RELEASE:
            await agents.live(pod)

    nodes = Nodes(cluster, NAMESPACE, await asyncio.to_thread(install, cluster, pods), run)
    async with agents.opened(), nodes.opened():
        _say("a bare Deployment")
        bare_s = await bare(nodes, pods)
        registry = await asyncio.to_thread(register, pods)
        process, token = await asyncio.to_thread(
            start, cluster, folder, {"PORT": str(port), "METRICS_PORT": str(metrics_port), **s3}
        )
        async with aiohttp.ClientSession() as http:
            controller = Controller(url=agents.url, token=token, process=process, http=http)
            await until(controller.leads, nodes, "the controller does not lead")

            async def promoted() -> bool:
                return all(each.stable == 1 for each in await asyncio.to_thread(registry.models))

            await until(promoted, nodes, "the models do not become stable on the first replica")
            await asyncio.sleep(5)
            _say("the scale-up")
            before, began = await controller.sample(), time.monotonic()
            await asyncio.to_thread(order, registry, pods)

            async def up() -> bool:
                return await controller.up() == pods

            up_s = await seconds(up, began, nodes, "not all replicas are up")
            after = await controller.sample()

            async def loaded() -> bool:
                return agents.copies == MODELS * max(pods // MODELS, 1)

            loaded_s = await seconds(loaded, began, nodes, "not every model is where it shall be")
            await asyncio.sleep(SETTLE_S)
            _say("at rest")
            first = await controller.sample()
            await asyncio.sleep(rest_s)
            last = await controller.sample()
        ready = nodes.ready_at[RELEASE]
        return Measured(
            pods=pods,
            bare_s=bare_s,
            ready_s=ready[pods - 1] - began if len(ready) >= pods else math.inf,
            made=len(ready),
            lost=(await asyncio.to_thread((folder / LOG).read_text)).count(LOST),
            up_s=up_s,
            loaded_s=loaded_s,
            scaling=(before, after),
            rest=(first, last),
            calls=calls(cluster.audit),
        )


def _say(what: str) -> None:
    print(f"… {what}", file=sys.stderr, flush=True)


def counted(found: list[Call], between: tuple[Sample, Sample], user: str = OURS) -> Counter[str]:
    """Calls between two samples, by verb and resource."""
    first, last = (each.at for each in between)
    return Counter(each.what for each in found if each.user.startswith(user) and first <= each.at < last)


def show(found: Measured) -> int:
    """Print it; 1 when a limit is missed."""
    print(f"{found.pods} pods, {MODELS} models on {max(found.pods // MODELS, 1)} replicas each")
    print(f"{'from the order until':58} {'seconds':>8} {'ratio':>6} {'limit':>6}")
    print(f"{'a bare Deployment has all its pods ready':58} {found.bare_s:8.1f}")
    # No limit: our controller shares the cores with what pretends to be a thousand agents.
    print(f"{'the fleet has all its pods ready':58} {found.ready_s:8.1f} {found.ready_s / found.bare_s:6.2f}")
    seen = found.up_s / found.ready_s
    print(f"{'the controller has all its replicas up':58} {found.up_s:8.1f} {seen:6.2f} {SEEN_LIMIT:6}")
    print(f"{'every model is on its replicas':58} {found.loaded_s:8.1f}")

    scaling, rest = counted(found.calls, found.scaling), counted(found.calls, found.rest)
    minutes = tuple((last.at - first.at) / 60 for first, last in (found.scaling, found.rest))
    print(f"\n{'calls of the controller':38} {'scale-up':>9} {'a minute':>9} {'at rest, a minute':>18}")
    for what in sorted(scaling.keys() | rest.keys()):
        print(f"{what:38} {scaling[what]:9} {scaling[what] / minutes[0]:9.0f} {rest[what] / minutes[1]:18.1f}")
    theirs = [counted(found.calls, between, THEIRS).total() for between in (found.scaling, found.rest)]
    print(
        f"{'(all of Kubernetes’ own controllers)':38} {theirs[0]:9} {theirs[0] / minutes[0]:9.0f} "
        f"{theirs[1] / minutes[1]:18.1f}"
    )
    refused = Counter(f"{each.what}: {each.code}" for each in found.calls if each.user == OURS and each.code >= 400)
    print(f"refused since its start: {', '.join(f'{count} × {what}' for what, count in refused.items()) or 'none'}")

    print(f"\n{'the controller':38} {'scale-up':>9} {'at rest':>9}")
    cpu, cycles, cycle_s = [], [], []
    for first, last in (found.scaling, found.rest):
        cpu.append((last.cpu_s - first.cpu_s) / (last.at - first.at))
        cycles.append((last.cycles - first.cycles) / (last.at - first.at))
        cycle_s.append((last.cycles_s - first.cycles_s) / (last.cycles - first.cycles or 1))
    first, last = found.scaling[0], found.rest[1]
    print(f"{'CPU, share of a core':38} {cpu[0]:9.2f} {cpu[1]:9.2f}")
    print(f"{'cycles a second':38} {cycles[0]:9.1f} {cycles[1]:9.1f}")
    print(f"{'seconds a cycle':38} {cycle_s[0]:9.3f} {cycle_s[1]:9.3f}")
    print(f"{'memory (MB): with one replica':38} {first.resident_bytes / 1e6:9.0f}")
    print(f"{'memory (MB): peak, and at rest':38} {last.peak_bytes / 1e6:9.0f} {last.resident_bytes / 1e6:9.0f}")

    ordered, quiet = scaling.total() - scaling[REVIEWS], (rest.total() - rest[REVIEWS]) / minutes[1]
    reviews = rest[REVIEWS] / minutes[1] / found.pods
    bounds = [
        ("the controller has all its replicas up", seen, SEEN_LIMIT),
        ("pods that were made, for each that was ordered", found.made / found.pods, 1.0),
        ("how often it led no more", found.lost, 0),
        ("calls in the scale-up, without reviews of tokens", ordered, ORDER_LIMIT),
        ("calls a minute at rest, without reviews of tokens", quiet, REST_LIMIT),
        ("reviews of tokens a minute at rest, for each pod", reviews, REVIEW_LIMIT),
    ]
    print()
    for what, value, limit in bounds:
        print(f"{what:58} {value:8.2f} (limit {limit}) {'ok' if value <= limit else 'MISSED'}")
    return 1 if any(value > limit for _, value, limit in bounds) else 0


def main(pods: int, rest_s: float) -> int:
    """Measure and print; 1 when a limit is missed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with scratch() as folder, versitygw(folder / "s3") as store, running(Audited(folder / "kubernetes")) as cluster:
        s3 = {**store.environment, "AWS_REGION": "us-east-1"}
        os.environ.update(s3)
        try:
            found = asyncio.run(measure(folder, cluster, s3, pods, rest_s))
        except (RuntimeError, TooLate, AssertionError):
            if (folder / LOG).exists():
                print((folder / LOG).read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
        return show(found)


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:]]
    defaults: list[float] = [1000, 80]
    pods, rest = given + defaults[len(given) :]
    sys.exit(interruptible(lambda: main(int(pods), rest)))
