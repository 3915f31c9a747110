"""A real controller over HTTP, with a directory registry; agents and gateways are the tests themselves."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from pydantic import TypeAdapter

from controlplane.core.entry import Entry, Resources
from controlplane.core.messages import (
    Assignment,
    Copy,
    GatewayOrder,
    GatewayReport,
    ReplicaReport,
)
from controlplane.core.models import Capabilities, FleetShape
from controlplane.core.routes import Endpoint, RouteTable
from controlplane.core.snapshot import Settings
from controlplane.fleet.protocol import FleetBackend, FleetReplica, News
from controlplane.registry import Registry, open_registry
from controlplane.render.sharing import compatible
from controlplane.server.acting import record_shapes
from controlplane.server.api import make_app
from controlplane.server.claiming import claim
from controlplane.server.controller import Controller

TOKEN = "a-token-for-the-test"
SETTINGS = Settings(drain_s=0.2, warm_s=60, settle_s=4.0)


class Service:
    """A controller that serves in a thread of its own, until `kill`."""

    def __init__(self, registry: Registry, shape: FleetShape, backend: FleetBackend) -> None:
        self._registry, self._shape, self._backend = registry, shape, backend
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.ended: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._up.wait(30)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except (asyncio.CancelledError, Exception) as error:  # noqa: BLE001 - the test looks at it
            self.ended = error

    async def _serve(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        epoch = await claim(self._registry, "test", "first")
        await record_shapes(self._registry, [self._shape])
        controller = Controller(
            registry=self._registry,
            epoch=epoch,
            shapes={self._shape.name: self._shape},
            backend=self._backend,
            settings=SETTINGS,
            poll_s=0.05,
            clash=compatible,
        )
        server = uvicorn.Server(uvicorn.Config(make_app(controller, TOKEN), log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        running = asyncio.create_task(controller.run(tick_s=0.1, pause_s=0.01))
        try:
            for _ in range(1000):  # who is told "not yet" asks again, but no test does
                if controller.planned_at is not None or running.done():
                    break
                await asyncio.sleep(0.01)
            self._up.set()
            await running
        finally:
            server.should_exit = server.force_exit = True
            await asyncio.gather(serving, return_exceptions=True)

    def waiting(self) -> int:
        """How many calls of agents wait for an answer at this moment."""
        assert self._loop is not None
        calls = [name for task in asyncio.all_tasks(self._loop) for name in _awaited(task.get_coro())]
        return calls.count("Controller.sync_replica")

    def kill(self) -> None:
        """End it without a word to anybody."""
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)
        self._listener.close()


def _awaited(job: Any) -> Iterator[str]:
    """The names of a task's coroutine, of the one that it awaits, and so on."""
    while job is not None:
        yield getattr(job, "__qualname__", "")
        job = getattr(job, "cr_await", None)


@dataclass
class Pretender:
    """The replica's and the gateway's end of the protocol: they say that they have done whatever they were told."""

    http: httpx2.Client
    replica: str = "cpu-0"
    assignment: Assignment = field(default_factory=lambda: Assignment(epoch=0, generation=0))
    table: RouteTable = field(default_factory=RouteTable)
    send_table: bool = False
    failing: str = ""

    def report(self) -> ReplicaReport:
        copies = tuple(
            Copy(
                model=each.model,
                version=each.version,
                digest=each.digest,
                state="failed" if self.failing else "ready",
                reason=self.failing,
                blames="model" if self.failing else "",
            )
            for each in self.assignment.wanted
        )
        return ReplicaReport(
            replica=self.replica,
            fleet="cpu",
            incarnation="1",
            epoch=self.assignment.epoch,
            generation=self.assignment.generation,
            server="ready",
            endpoint=Endpoint(replica=self.replica, host="127.0.0.1", grpc_port=1, http_port=2),
            capabilities=Capabilities(server_version="2.51.0", backends=("python",)),
            copies=copies,
        )

    def sync(self) -> None:
        answer = self.post(f"/v1/replicas/{self.replica}/sync", TypeAdapter(ReplicaReport), self.report())
        if answer.status_code == 200:
            self.assignment = TypeAdapter(Assignment).validate_json(answer.content)

    def sync_gateway(self) -> None:
        report = GatewayReport(
            gateway="gw",
            incarnation="1",
            epoch=self.table.epoch,
            generation=self.table.generation,
            table=self.table if self.send_table else None,
        )
        answer = self.post("/v1/gateways/gw/sync", TypeAdapter(GatewayReport), report)
        if answer.status_code == 200:
            order = TypeAdapter(GatewayOrder).validate_json(answer.content)
            self.send_table = order.send_table
            self.table = order.table or self.table

    def post(self, path: str, schema: TypeAdapter[Any], message: object) -> httpx2.Response:
        answer = self.http.post(path, content=schema.dump_json(message))
        assert answer.status_code in (200, 204), answer.text
        return answer

    def turn(self) -> bool:
        self.sync()
        self.sync_gateway()
        return True


class FixedFleet:
    """A fleet whose one replica is the test itself."""

    async def list(self) -> tuple[FleetReplica, ...]:
        return (FleetReplica(name="cpu-0", fleet="cpu"),)

    async def start(self, shape: FleetShape, replica: str) -> None:
        pass

    def notes(self) -> Mapping[str, str]:
        return {}

    def past(self) -> Mapping[str, str]:
        return {}

    def problems(self) -> Mapping[str, str]:
        return {}

    def tell(self, news: News) -> None:
        pass

    def gateways(self) -> None:
        return

    async def remove(self, replica: str) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return open_registry(str(tmp_path / "registry"))


@pytest.fixture
def shape() -> FleetShape:
    return FleetShape(name="cpu", memory_bytes=1 << 30)


@pytest.fixture
def service(registry: Registry, shape: FleetShape) -> Iterator[Service]:
    made = Service(registry, shape, FixedFleet())
    yield made
    made.kill()


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30) as client:
        yield client


@pytest.fixture
def pretender(http: httpx2.Client) -> Pretender:
    return Pretender(http)


def register(registry: Registry, tmp_path: Path, name: str, content: str = "1") -> int:
    file = tmp_path / f"{name}.py"
    file.write_text(content)
    entry = Entry(name=name, backend="python", resources=Resources(memory_bytes=1 << 20))
    return registry.register(entry, {"model.py": file}, actor="test").version
