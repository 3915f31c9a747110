"""What the benchmark on Kubernetes is made of: a control plane that writes down who calls it, nodes that only pretend,
and agents and servers that have done at once whatever they are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from pydantic import TypeAdapter

from controlplane.core.messages import Copy, GatewayReport, ReplicaReport
from controlplane.core.models import Capabilities
from controlplane.core.routes import Endpoint
from controlplane.metrics.counters import FIELDS
from controlplane.server.identity_tokens import AUDIENCE
from tests.kubernetes.control_plane import ControlPlane

INSTANCE, COMPONENT = "app.kubernetes.io/instance", "app.kubernetes.io/component"
NODES = 10
KUBELETS = 8
"""So many pods are started at once."""
LONG_POLL_S = 20.0
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
"""As agents have them."""
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
EVENTS = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
CAPABILITIES = Capabilities(server_version="2.60.0", backends=("onnxruntime",))
Json = dict[str, Any]


class Audited(ControlPlane):
    """Writes down what controllers call. No node is taken for dead because its kubelet is silent: there is none."""

    @property
    def audit(self) -> Path:
        """The log: a line when a call comes and one when it was answered."""
        return self.folder / "audit.log"

    def begin(self) -> None:
        """Start everything."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Who is no ServiceAccount is the benchmark itself.
        rules = [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["ResponseStarted"], "rules": rules}
        (self.folder / "audit.yaml").write_text(yaml.safe_dump(policy))
        super().begin()

    def run(self, name: str, *options: str, command: Sequence[str] | None = None) -> None:
        """Start a daemon."""
        more = {
            "kube-apiserver": (f"--audit-policy-file={self.folder / 'audit.yaml'}", f"--audit-log-path={self.audit}"),
            # Its default lets it make 20 pods a second: then nobody else's time could be seen behind its own.
            "kube-controller-manager": (
                "--controllers=*,-node-lifecycle-controller",
                "--kube-api-qps=200",
                "--kube-api-burst=300",
            ),
        }
        super().run(name, *options, *more.get(name, ()), command=command)


@dataclass(slots=True, kw_only=True)
class Call:
    """A call of the API. `at`: seconds since 1970. `code`: its HTTP status; 0 while it is not answered (a watch)."""

    at: float
    user: str
    what: str
    code: int = 0


def calls(log: Path) -> list[Call]:
    """Every call of an audit log."""
    found: dict[str, Call] = {}
    with log.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            said = json.loads(line)
            if said["stage"] == "RequestReceived":
                about = said.get("objectRef") or {}
                parts = (about.get("resource", said["requestURI"]), about.get("subresource"))
                found[said["auditID"]] = Call(
                    at=datetime.fromisoformat(said["requestReceivedTimestamp"]).timestamp(),
                    user=said["user"]["username"],
                    what=f"{said['verb']} {'/'.join(part for part in parts if part)}",
                )
            elif said["auditID"] in found:
                found[said["auditID"]].code = int(said.get("responseStatus", {}).get("code", 0))
    return list(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that is said to run. `token`: its ServiceAccount's, bound to it, as a kubelet would have put it there."""

    name: str
    uid: str
    instance: str
    component: str
    ip: str
    token: str = field(default="", repr=False)


@dataclass(slots=True)
class Nodes:
    """Binds each pod of a namespace, and says at once that it runs and is ready. Three calls a pod, as one of a
    scheduler and two of a kubelet. `containers`: the names of each component's. `run` is called with each pod that is
    ready, and cancelled when the pod is deleted."""

    cluster: ControlPlane
    namespace: str
    containers: dict[str, list[str]]
    run: Callable[[Pod], Awaitable[None]]
    ready_at: dict[str, list[float]] = field(default_factory=dict)
    """By instance, when the API server had taken in that a pod of its fleet is ready (monotonic)."""
    failed: list[BaseException] = field(default_factory=list)
    """What went wrong here: then nothing that is measured means anything."""
    _known: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _ending: set[str] = field(default_factory=set)
    _limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(KUBELETS))
    _http: aiohttp.ClientSession = field(init=False)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """While this lasts, they are there."""
        pair = self.cluster.authority.issue("pretended-kubelet", group="system:masters")
        context = ssl.create_default_context(cafile=str(self.cluster.ca))
        context.load_cert_chain(pair.certificate, pair.key)
        connector = aiohttp.TCPConnector(ssl=context, limit=KUBELETS + 4)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as self._http:
            for number in range(NODES):
                node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{number}"}}
                await self.call("POST", "/api/v1/nodes", node)
            following = asyncio.create_task(self._follow())
            following.add_done_callback(self._done)
            try:
                yield
            finally:
                tasks = [following, *self._known.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        listed = await self.call("GET", self._path("pods"), accept=METADATA)
        for each in listed["items"] or ():
            self._take(each["metadata"])
        version = listed["metadata"]["resourceVersion"]
        while True:
            version = await self._watch(version)

    async def _watch(self, version: str) -> str:
        url = f"{self.cluster.url}{self._path('pods')}"
        options = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "600"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._http.get(url, params=options, headers={"accept": EVENTS}, timeout=timeout) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                event = json.loads(line)
                metadata = event["object"]["metadata"]
                version = metadata["resourceVersion"]
                if event["type"] == "DELETED":
                    self._forget(metadata["uid"])
                else:
                    self._take(metadata)
        return version

    def _take(self, metadata: Json) -> None:
        uid, ends = metadata["uid"], "deletionTimestamp" in metadata
        if uid not in self._known and not ends:
            self._begin(uid, self._live(metadata, len(self._known) + 1))
        elif ends and uid not in self._ending:
            self._ending.add(uid)
            self._forget(uid)
            self._begin(uid, self._end(metadata["name"]))

    def _begin(self, uid: str, work: Coroutine[Any, Any, None]) -> None:
        self._known[uid] = task = asyncio.create_task(work)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed.append(error)

    def _forget(self, uid: str) -> None:
        if uid in self._known:
            self._known[uid].cancel()

    async def _live(self, metadata: Json, number: int) -> None:
        name, labels = metadata["name"], metadata["labels"]
        instance, component = labels[INSTANCE], labels[COMPONENT]
        # A server's address leads to this machine. Nothing leads to the others', and Services want no such address.
        ip = f"{127 if component == 'fleet' else 10}.{1 + (number >> 8)}.{number & 255}.1"
        path = self._path("pods", name)
        async with self._limit:
            target = {"apiVersion": "v1", "kind": "Node", "name": f"node-{number % NODES}"}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
            await self.call("POST", f"{path}/binding", binding)
            bound = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": metadata["uid"]}
            spec = {"audiences": [AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}
            account = f"{instance}-{component}"
            asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
            made = await self.call("POST", self._path("serviceaccounts", account, "token"), asked)
            status = {"status": self._status(component, ip)}
            await self.call("PATCH", f"{path}/status", status, content_type="application/merge-patch+json")
        if component == "fleet":
            self.ready_at.setdefault(instance, []).append(time.monotonic())
        token = made["status"]["token"]
        await self.run(Pod(name=name, uid=metadata["uid"], instance=instance, component=component, ip=ip, token=token))

    async def _end(self, name: str) -> None:
        async with self._limit:
            await self.call("DELETE", f"{self._path('pods', name)}?gracePeriodSeconds=0")

    def _status(self, component: str, ip: str) -> Json:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
        conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds]
        statuses = [
            {
                "name": name,
                "ready": True,
                "started": True,
                "restartCount": 0,
                "image": f"registry.example/{name}:1",
                "imageID": f"registry.example/{name}@sha256:{'0' * 64}",
                "containerID": f"containerd://{'0' * 64}",
                "state": {"running": {"startedAt": now}},
            }
            for name in self.containers[component]
        ]
        return {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "startTime": now,
            "conditions": conditions,
            "containerStatuses": statuses,
        }

    def _path(self, *parts: str) -> str:
        return "/".join(("/api/v1/namespaces", self.namespace, *parts))

    async def call(
        self, method: str, path: str, body: Json | None = None, *, accept: str = "application/json", **headers: str
    ) -> Any:
        """What the API server answers, as the administrator of everything."""
        said = {"accept": accept, "content-type": headers.get("content_type", "application/json")}
        content = json.dumps(body).encode() if body is not None else None
        async with self._http.request(method, f"{self.cluster.url}{path}", data=content, headers=said) as answer:
            text = await answer.read()
            if not answer.ok and answer.status != 404:
                raise RuntimeError(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
            return json.loads(text)


@dataclass(slots=True)
class Agents:
    """The agents of one fleet, their servers, and a gateway: each has done at once whatever it was told. `url`: the
    controller's."""

    fleet: str
    url: str
    held: dict[str, tuple[Copy, ...]] = field(default_factory=dict)
    """By replica's address."""
    _port: int = 0
    _http: aiohttp.ClientSession = field(init=False)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """While this lasts, they can run; the servers' pages are at any address of this machine, the pods' too."""
        server = await asyncio.start_server(self._page, "0.0.0.0", 0, backlog=1024)  # noqa: S104
        self._port = server.sockets[0].getsockname()[1]
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=LONG_POLL_S + 10)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._http:
                yield
        finally:
            server.close()

    async def live(self, pod: Pod) -> None:
        """What runs in a pod."""
        if pod.component == "fleet":
            await self._replica(pod)
        elif pod.component == "gateway":
            await self._gateway(pod)

    @property
    def copies(self) -> int:
        """Versions that are loaded, on all replicas together."""
        return sum(map(len, self.held.values()))

    async def _replica(self, pod: Pod) -> None:
        report = ReplicaReport(
            replica=pod.name,
            fleet=self.fleet,
            incarnation=pod.uid,
            server="ready",
            endpoint=Endpoint(replica=pod.name, host=pod.ip, grpc_port=8001, http_port=self._port),
            metrics_port=self._port,
            capabilities=CAPABILITIES,
        )
        while True:
            order = await self._sync(f"/v1/replicas/{pod.name}/sync", pod.token, _REPLICA.dump_json(report))
            if order is None:
                continue
            copies = tuple(
                Copy(model=each["model"], version=each["version"], digest=each["digest"], state="ready")
                for each in order["wanted"]
            )
            self.held[pod.ip] = copies
            report = replace(report, epoch=order["epoch"], generation=order["generation"], copies=copies)

    async def _gateway(self, pod: Pod) -> None:
        report = GatewayReport(gateway=pod.name, incarnation=pod.uid)
        while True:
            order = await self._sync(f"/v1/gateways/{pod.name}/sync", pod.token, _GATEWAY.dump_json(report))
            if order is not None:
                report = replace(report, epoch=order["epoch"], generation=order["generation"])

    async def _sync(self, path: str, token: str, report: bytes) -> Json | None:
        """The order that is the answer; None when there is none yet. Tries again as agents do."""
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        failures = 0
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                url = f"{self.url}{path}?wait_s={LONG_POLL_S}"
                async with self._http.post(url, data=report, headers=headers) as answer:
                    content = await answer.read()
                    if answer.ok:
                        return json.loads(content) if content else None
            failures += 1
            delay_s = min(RETRY_MIN_S * 2 ** min(failures - 1, 10), RETRY_MAX_S)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret

    async def _page(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A server's metrics, or its statistics; which server's is told by the address that was called."""
        copies = self.held.get(writer.get_extra_info("sockname")[0], ())
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                body = (_metrics if asked.startswith(b"GET /metrics") else _statistics)(copies)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        writer.close()


_REPLICA, _GATEWAY = TypeAdapter(ReplicaReport), TypeAdapter(GatewayReport)


def _metrics(copies: tuple[Copy, ...]) -> bytes:
    """As Triton writes them: nobody has asked for anything."""
    lines = []
    for name in FIELDS:
        lines += [f"# HELP {name} What Triton counts", f"# TYPE {name} {'gauge' if 'pending' in name else 'counter'}"]
        lines += [f'{name}{{model="{each.model}",version="{each.version}"}} 0' for each in copies]
    for name in ("nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes"):
        lines += [f"# HELP {name} What Triton measures", f"# TYPE {name} gauge", f"{name} 0.25"]
    return ("\n".join(lines) + "\n").encode()


def _statistics(copies: tuple[Copy, ...]) -> bytes:
    stats = [{"name": each.model, "version": str(each.version), "batch_stats": []} for each in copies]
    return json.dumps({"model_stats": stats}).encode()
