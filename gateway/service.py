"""One gateway, put together: Envoy, the Python side, the writer of its files, the talk with the controller."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio
import httpx2
import structlog

from controlplane.client.access import Access, read_access
from controlplane.client.calls import set_within
from controlplane.client.sync import SyncLoop
from controlplane.core.errors import ControlPlaneError
from controlplane.core.messages import GatewayOrder, GatewayReport
from controlplane.core.routes import RouteTable
from controlplane.local.home import Home
from controlplane.local.processes import free_ports
from gateway import grpc_side, http_side, status
from gateway.admin import Admin
from gateway.config.names import Files
from gateway.envoy import Envoy
from gateway.failures import Failures
from gateway.forwarding import Forwarding
from gateway.holding import Holding
from gateway.replicas import Replicas
from gateway.sequences import Sequences
from gateway.settings import Settings
from gateway.state import Epoch, Kept, Ports, Served
from gateway.xds import Rejected, Xds

log = structlog.get_logger(__name__)

LARGE_TABLE = 1000
"""Routes from which on updates are joined: at most two a second."""
LARGE_PAUSE_S = 0.5
TICK_S = 1.0
SILENT_S = 15.0
"""While Envoy takes a table up, the controller hears at least so often that this gateway is there."""
RETRY_S = 2.0
COUNT_EVERY_S = 5.0
"""How often Envoy's counts of answers are read."""
ENVOYS_PAGE_S = 1.5
"""How long the local page waits for Envoy's part: the Prometheus of `ctl up` gives a scrape up after 2 s, whole."""
ENVOYS_PAGE_MOST_S = 5.0
"""How long a pod's page does: Prometheus' own limit is 10 s."""
LINGER_S = 3.0
LAST_WORD_S = 2.0
"""For so long clients may still come after this gateway has said that it drains: word of it has to get around."""


class Gateway:
    """A running gateway. Make one with `run`. `access`: how to reach the controller; default: as the home says."""

    def __init__(self, home: Home, settings: Settings, access: Callable[[], Access] | None = None) -> None:
        folder = home.gateway
        folder.mkdir(parents=True, exist_ok=True)
        self._home = home
        self._files = Files(folder.resolve())
        self._ports = Kept(folder / "ports.json", Ports)
        self._served = Kept(home.served_file, Served)
        self._epoch = Kept(folder / "epoch.json", Epoch)
        self.settings = self._with_ports(settings)
        self.incarnation = secrets.token_hex(8)
        self._admin = Admin(self._files.admin_address)
        self.envoy = Envoy(home=home, settings=self.settings, files=self._files, admin=self._admin)
        self.replicas = Replicas(self.settings)
        self.holding = Holding(self.settings, self._served.value.table, self._poke)
        self.sequences = Sequences(self.settings.sequences)
        self.forwarding = Forwarding(self.settings, self.holding, self.replicas, self.sequences)
        self._own_metrics = status.metrics(self)
        self._newest: RouteTable | None = None
        self._news = asyncio.Event()
        self._settled = asyncio.Event()
        self._urgent = asyncio.Event()
        self._reason = ""
        self._refused: tuple[int, int] | None = None
        self._under_way: tuple[int, int] | None = None
        self._send_table = False
        self._draining = self._gone = False
        self._active: Mapping[str, int] = {}
        self._failures = Failures()
        self._background: set[asyncio.Task[None]] = set()
        self._sync = SyncLoop(
            path=f"/v1/gateways/{self.settings.name}/sync",
            access=access or (lambda: read_access(home.controller_file, home.token_file)),
            report=self.report,
            apply=self.take,
            report_type=GatewayReport,
            order_type=GatewayOrder,
        )

    @property
    def served(self) -> RouteTable:
        """The table that Envoy has confirmed."""
        return self._served.value.table

    @property
    def reason(self) -> str:
        """Why a newer table is not served; empty when none is waiting."""
        return self._reason

    async def run(self) -> None:
        """Serve until cancelled. Raises Conflict for a port in use, Unavailable when Envoy does not start."""
        async with self._side() as side_ports:
            self._xds = Xds(
                settings=self.settings,
                files=self._files,
                admin=self._admin,
                kept=self._served,
                side_ports={"grpc": side_ports.side_grpc, "http": side_ports.side_http},
                envoy_log=self.envoy.log_file,
            )
            self._xds.restore()
            if not self.envoy.adopt():
                await self.envoy.start()
            log.info("gateway ready", grpc=self.settings.grpc_port, http=self.settings.http_port)
            async with asyncio.TaskGroup() as tasks:
                jobs = (self.envoy.keep_alive(), self._sync.run(), self._apply_newest(), self._tick(), self._count())
                for job in jobs:
                    tasks.create_task(job)

    @property
    def unready(self) -> str:
        """Why no client should be sent here; empty when there is no such reason."""
        if self._draining:
            return "draining"
        if not self.envoy.running:
            return "Envoy does not run"
        return "" if self.served.epoch else "no route table from the controller yet"

    async def drain(self, timeout_s: float) -> int:
        """Have clients go elsewhere, and wait until nothing is in flight, for `timeout_s` at most; what still is.

        There is no way back. Whoever comes all the same is served, until `stop`.
        """
        if not self._draining:
            log.info("draining")
        self._draining = True
        try:
            await self.envoy.drain()
            linger_s = min(LINGER_S, timeout_s)
            await asyncio.sleep(linger_s)
            left = await self.envoy.idle(timeout_s - linger_s)
        except (OSError, httpx2.HTTPError) as error:
            log.warning("Envoy does not answer; nothing is waited for", error=str(error))
            return 0
        log.info("drained", in_flight=left)
        return left

    async def metrics(self, *, within_s: float = ENVOYS_PAGE_MOST_S) -> bytes:
        """In Prometheus' text format: this part's, and Envoy's if it answers `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                return self._own_metrics() + await self._admin.prometheus()
        except (OSError, httpx2.HTTPError):
            return self._own_metrics()

    async def stop(self, grace_s: float) -> None:
        """End Envoy too; what is in flight gets up to `grace_s`. The controller is told, which else would wait for word
        from this gateway before it takes anything away."""
        await self.envoy.stop(grace_s)
        self._gone = True
        await self._sync.tell(timeout_s=LAST_WORD_S)

    def report(self) -> GatewayReport:
        """What the controller is told."""
        table = self.served
        sent, self._send_table = self._send_table, False
        return GatewayReport(
            gateway=self.settings.name,
            incarnation=self.incarnation,
            gone=self._gone,
            epoch=table.epoch,
            generation=table.generation,
            ready=not self.unready,
            reason=self._reason or self.unready,
            table=table if sent else None,
            refused=self._refused or (0, 0),
            demand=self.holding.demand,
            failing=self._failures.failing,
            active=self._active,
        )

    async def take(self, order: GatewayOrder) -> None:
        """Take an order; the table is put into force in the background."""
        if order.epoch < self._epoch.value.epoch:
            log.warning("refused an order of an older epoch", epoch=order.epoch, seen=self._epoch.value.epoch)
            await asyncio.sleep(TICK_S)
            return
        if order.epoch > self._epoch.value.epoch:
            self._epoch.keep(Epoch(epoch=order.epoch))
        if order.send_table:
            self._send_table = True
            self._poke()
        if order.table is not None:
            await self._hand_over(replace(order.table, epoch=order.epoch, generation=order.generation))

    async def _hand_over(self, table: RouteTable) -> None:
        """Have `table` put into force; wait for it, or until there is something to report first.

        The controller answers every report that does not name its newest table with that table, whole. So a refused
        one is tried again, but not at once, and reports are not sent while there is nothing new in them, but for a
        sign of life.
        """
        self._urgent.clear()
        name = (table.epoch, table.generation)
        if name == self._refused and await set_within(self._urgent, RETRY_S):
            return
        if name != self._under_way:
            self._newest, self._under_way = table, name
            self._settled.clear()
            self._news.set()
        waits = [asyncio.ensure_future(event.wait()) for event in (self._settled, self._urgent)]
        await asyncio.wait(waits, timeout=SILENT_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _apply_newest(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            table, self._newest = self._newest, None
            if table is None:
                continue
            try:
                # The Python side first: what waits for a model need not wait for Envoy.
                self.holding.update(table)
                await self._xds.apply(table)
                self._reason, self._refused = "", None
                log.info("table in force", epoch=table.epoch, generation=table.generation, routes=len(table.routes))
            except Rejected as error:
                self._reason, self._refused = str(error), (table.epoch, table.generation)
                self.holding.update(self.served)
                log.error("table refused", epoch=table.epoch, generation=table.generation, reason=self._reason)
            await self._look()
            self._spawn(self.replicas.forget_others(self.holding.table.endpoints.values()))
            if self._newest is None:
                self._under_way = None
                self._settled.set()
            if len(table.routes) >= LARGE_TABLE:
                await asyncio.sleep(LARGE_PAUSE_S)

    async def _tick(self) -> None:
        """What is looked after once a second."""
        told = ""
        while True:
            await asyncio.sleep(TICK_S)
            before, unready = self._active, self.unready
            await self._look()
            if (before, told) != (self._active, unready):
                self._poke()
            told = unready
            self.sequences.forget_idle(asyncio.get_running_loop().time())
            for kept in (self._ports, self._served, self._epoch):
                kept.write()
            with contextlib.suppress(OSError, httpx2.HTTPError):
                await self._xds.reap()
                await self._rotate()

    async def _count(self) -> None:
        """Look after which requests fail."""
        while True:
            before = self._failures.failing
            now = asyncio.get_running_loop().time()
            try:
                self._failures.take(await self._admin.failed(), now)
            except (OSError, httpx2.HTTPError):
                self._failures.missed(now)
            if self._failures.failing != before:
                self._sync.poke()
            await asyncio.sleep(COUNT_EVERY_S)

    async def _look(self) -> None:
        """Count what is in flight at draining replicas."""
        draining = [name for name, each in self.served.endpoints.items() if each.draining]
        if not draining:
            self._active = {}
            return
        with contextlib.suppress(OSError, httpx2.HTTPError):
            counts = await self._admin.active()
            of_envoy = {name: sum(n for (_, host), n in counts.items() if host == name) for name in draining}
            self._active = {name: of_envoy[name] + self.replicas.in_flight.get(name, 0) for name in draining}

    async def _rotate(self) -> None:
        """Put a grown access log aside."""
        path = self._files.access_log
        if path.exists() and path.stat().st_size > self.settings.access_log_bytes:
            path.replace(path.with_suffix(".log.1"))
            await self._admin.reopen_logs()

    @contextlib.asynccontextmanager
    async def _side(self) -> AsyncIterator[Ports]:
        """The Python side's two servers, on the ports that they had before where these are free."""
        ports = self._ports.value
        grpc_server, grpc_port = await grpc_side.serve(self.forwarding, self.settings, ports.side_grpc)
        side = http_side.HttpSide(self.forwarding, self.settings)
        page = status.exposed(partial(self.metrics, within_s=ENVOYS_PAGE_S))
        app = http_side.application(side, status.health(self), page)
        server, listener = http_side.server(app, ports.side_http)
        self._ports.keep(replace(ports, side_grpc=grpc_port, side_http=listener.getsockname()[1]))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield self._ports.value
        finally:
            server.should_exit = server.force_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            listener.close()
            await _quietly(grpc_server.stop(grace=0.5))
            await self.replicas.close()
            await self._admin.close()

    def _with_ports(self, settings: Settings) -> Settings:
        """The settings with real ports: those that the system gives are kept."""
        kept = self._ports.value
        free = free_ports(2, settings.address)
        grpc_port = settings.grpc_port or ("grpc_port" in kept.from_system and kept.grpc) or free[0]
        http_port = settings.http_port or ("http_port" in kept.from_system and kept.http) or free[1]
        chosen = frozenset(name for name in ("grpc_port", "http_port") if not getattr(settings, name))
        self._ports.keep(replace(kept, grpc=grpc_port, http=http_port, from_system=chosen))
        return replace(settings, grpc_port=grpc_port, http_port=http_port)

    def _poke(self) -> None:
        """There is something that the controller should hear of at once."""
        self._urgent.set()
        self._sync.poke()

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(job)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _quietly(job: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(ControlPlaneError, grpc.aio.AioRpcError, asyncio.CancelledError):
        await job
