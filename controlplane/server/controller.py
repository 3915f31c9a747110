"""The loop: observe → plan → act. One per prefix of the registry at a time; its epoch rides on every order."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from controlplane.client.calls import set_within
from controlplane.core.errors import ControlPlaneError, InvalidInput, NotFound, NotLeader
from controlplane.core.messages import Assignment, GatewayOrder, GatewayReport, ReplicaReport, Wanted
from controlplane.core.models import FleetShape, Manifest
from controlplane.core.names import Key
from controlplane.core.plan import Plan, plan
from controlplane.core.snapshot import Settings, Snapshot
from controlplane.fleet.protocol import FleetBackend
from controlplane.metrics.scrape import Scraper
from controlplane.metrics.source import Source
from controlplane.registry.registry import Registry
from controlplane.server.acting import Actor
from controlplane.server.measuring import Measuring
from controlplane.server.memory import Memory, Start
from controlplane.server.metrics import Metrics
from controlplane.server.names import Names
from controlplane.server.news import tell
from controlplane.server.orders import Orders
from controlplane.server.watching import RegistryWatch

log = structlog.get_logger(__name__)

MAX_COPIES = 10_000
"""More versions than this no replica can hold."""

STEP_S = 2.0
"""A clock that is set by less harms nobody."""
SOURCES_EXPIRE_S = 3600
"""How long the download addresses of an assignment are good for."""


def collect_garbage_seldom() -> None:
    """Set this process up for cycles that make very many small objects of which hardly any refer to each other: to look
    for such at Python's own pace takes a third of the time of a large fleet's cycle. They are still looked for."""
    gc.set_threshold(50_000, 20, 100)


class Controller:
    """One controller of one epoch. All its state lives in the event loop's thread; `plan` runs beside it."""

    def __init__(
        self,
        *,
        registry: Registry,
        epoch: int,
        shapes: dict[str, FleetShape],
        backend: FleetBackend,
        settings: Settings,
        poll_s: float,
        clash: Callable[[Manifest, Manifest], str | None],
        source: Source | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """`names`: those of our own Services, where they have some."""
        self.memory = Memory(started_at=time.time(), settings=settings, shapes=shapes)
        self.orders = Orders(epoch, self._wanted)
        self.metrics = Metrics()
        self.planned_at: float | None = None
        self.problem = ""
        """Why planning fails at present."""
        self.names = Names(names)
        self.unlisted = ""
        """Why it is not known at present which replicas there are."""
        self.snapshot = Snapshot()
        self.measuring = Measuring(self.memory, lambda: self.snapshot, self.wake, source or Scraper())
        self._registry = registry
        self.backend = backend
        self._clash = clash
        self.watch = RegistryWatch(registry, self.memory, poll_s=poll_s, changed=self.wake)
        self.actor = Actor(registry, backend, self.memory, self.orders, done=self._acted)
        self._wake = asyncio.Event()
        self._looked_at = (time.time(), time.monotonic())
        self._sources: dict[str, tuple[float, dict[str, str]]] = {}

    # The loop.

    async def run(self, *, tick_s: float = 1.0, pause_s: float = 0.05) -> None:
        """Run until cancelled, or until a newer controller has taken over (NotLeader).

        Reports and registry changes wake the loop; `tick_s` is how long it sleeps without any, `pause_s` how long it
        collects news before it plans.
        """
        await self.watch.first()
        await self._remove_undeployed()
        beside = {
            asyncio.create_task(self.watch.run(self.orders.epoch)),
            asyncio.create_task(self.measuring.run()),
        }
        self.names.start()
        try:
            while True:
                for task in beside:
                    if task.done():
                        task.result()
                await self._cycle()
                try:
                    async with asyncio.timeout(tick_s):  # unlike wait_for, it never swallows a cancellation
                        await self._wake.wait()
                except TimeoutError:
                    pass
                else:
                    await asyncio.sleep(pause_s)
                self._wake.clear()
        finally:
            self.names.stop()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            self.orders.close()
            await self.actor.close()

    async def _remove_undeployed(self) -> None:
        """Remove replicas of fleets that the deployment does not have any more: nothing is routed to them."""
        for each in await self.backend.list():
            if each.fleet not in self.memory.shapes:
                log.info("replica is removed: its fleet is not deployed any more", replica=each.name, fleet=each.fleet)
                await self.backend.remove(each.name)
            else:
                self.memory.backend_replicas[each.name] = each

    def wake(self) -> None:
        """There is something new to plan for."""
        self._wake.set()

    def _time(self) -> float:
        """The present, in seconds since 1970. Whatever sets the clock ages nobody whom this controller has heard."""
        now, steady = time.time(), time.monotonic()
        step_s = (now - self._looked_at[0]) - (steady - self._looked_at[1])
        self._looked_at = (now, steady)
        if abs(step_s) > STEP_S:
            log.warning("the clock was set, or this machine slept", step_s=round(step_s, 1))
            self.memory.clock_stepped(step_s, now)
        return now

    async def _cycle(self) -> None:
        started = time.perf_counter()
        try:
            listed = {each.name: each for each in await self.backend.list()}
        except (ControlPlaneError, OSError) as error:
            log.warning("the fleet's replicas can't be listed; what was known of them is used", reason=str(error))
            self.unlisted = str(error)
        else:
            self.unlisted = ""
            for name in self.memory.backend_replicas.keys() - listed:  # ended by somebody else
                self.memory.forget_replica(name)
                self.orders.forget(name)
            for name in listed.keys() - self.memory.backend_replicas:
                self.memory.starts.setdefault(name, Start(time.time()))
            self.memory.backend_replicas = listed
        now = self._time()
        self.memory.take_gateways(self.backend.gateways(), now)
        self.snapshot = self.memory.snapshot(self.orders, self._clash, now)
        try:
            made = await asyncio.to_thread(plan, self.snapshot, now)
        except Exception as error:
            if self.problem != repr(error):
                log.exception("planning failed; what was ordered before stays in force")
            self.problem = repr(error)
            return
        self.problem = ""
        await self._fetch_sources(made)
        tell(self.memory.last_plan, made, self.snapshot, self.backend)
        self.memory.last_plan = made
        self.memory.note_starts(made, now)
        if self.memory.may_order:
            self.orders.issue(made)
        self.orders.keep_tables(
            each.report
            for each in self.memory.gateways.values()
            if now - each.heard_at <= self.memory.settings.gateway_lost_s  # nothing is kept for who is lost
        )
        self.actor.act(made.actions)
        self.planned_at = now
        self.metrics.cycle(self.snapshot, made, time.perf_counter() - started)

    def _acted(self) -> None:
        self.watch.look_now()
        self.wake()

    # What an assignment says of a version.

    async def _fetch_sources(self, made: Plan) -> None:
        """Have download addresses ready for whatever an assignment is about to name: signing them may do I/O."""
        news = {name: keys for name, keys in made.holds.items() if self.orders.ordered(name) != keys}
        now = time.time()
        self._sources = {digest: each for digest, each in self._sources.items() if each[0] > now - SOURCES_EXPIRE_S}
        await self._sign({key for keys in news.values() for key in keys}, since=now - SOURCES_EXPIRE_S / 2)

    async def _sign(self, keys: Iterable[Key], *, since: float) -> None:
        """Have download addresses that are not older than `since` for each of these versions."""
        for digest, manifest in dict(found for key in keys if (found := self._manifest(key)) is not None).items():
            if self._sources.get(digest, (0.0, {}))[0] < since:
                try:
                    sources = await asyncio.to_thread(self._registry.sources, manifest, SOURCES_EXPIRE_S)
                except ControlPlaneError as error:
                    log.warning("a version's files can't be located", model=manifest.entry.name, reason=str(error))
                    continue
                self._sources[digest] = (time.time(), sources)

    def _manifest(self, key: Key) -> tuple[str, Manifest] | None:
        digest = self.snapshot.digest(key) or self._reported_digest(key)
        manifest = self.memory.manifests.get(digest) if digest is not None else None
        return (digest, manifest) if digest is not None and manifest is not None else None

    def _reported_digest(self, key: Key) -> str | None:
        """The digest of a version that a replica holds, where the model's document can't tell it."""
        for replica in self.snapshot.replicas.values():
            if key in replica.copies:
                return replica.copies[key].digest
        return None

    def _wanted(self, key: Key) -> Wanted | None:
        found = self._manifest(key)
        if found is None:
            log.warning(
                "a version that is held can't be named: its manifest is gone", model=key.model, version=key.version
            )
            return None
        digest, manifest = found
        _, sources = self._sources.get(digest, (0.0, {}))
        return Wanted(model=key.model, version=key.version, digest=digest, manifest=manifest, sources=sources)

    # The sync calls.

    async def sync_replica(self, report: ReplicaReport, wait_s: float) -> Assignment | None:
        """Take a report; answer with an assignment that is newer than the one it names, or None after `wait_s`."""
        self._check_epoch(report.epoch)
        self._check_replica(report)
        before = self.memory.reports.get(report.replica)
        self.memory.hear_replica(report, time.time())
        if before is None or before[0] != report:
            self.wake()
        event = self.orders.event(f"replica/{report.replica}")
        if report.generation == 0 and self.orders.assignment(report.replica) is not None:
            await self._sign(self.orders.ordered(report.replica) or (), since=time.time())
            self.orders.renew(report.replica)
        deadline = time.monotonic() + wait_s
        while True:
            event.clear()
            assignment = self.orders.assignment(report.replica)
            if assignment is not None and (assignment.epoch, assignment.generation) != (
                report.epoch,
                report.generation,
            ):
                return assignment
            if self.orders.closed or not await set_within(event, deadline - time.monotonic()):
                self._still_there(report)
                return None

    async def sync_gateway(self, report: GatewayReport, wait_s: float) -> GatewayOrder | None:
        """Take a report; answer with a newer table, with a request for the one it serves, or None after `wait_s`."""
        self._check_epoch(report.epoch)
        if report.gone:
            self.memory.gateway_ended(report.gateway)
            self.wake()
            return None
        before = self.memory.gateways.get(report.gateway)
        changed = before is None or before.report != report
        heard = self.memory.hear_gateway(report, self.orders, time.time())
        if heard.confirmed is None:
            return GatewayOrder(epoch=self.orders.epoch, generation=report.generation, send_table=True)
        if changed:
            self.wake()
        event = self.orders.event(f"gateway/{report.gateway}")
        deadline = time.monotonic() + wait_s
        while True:
            event.clear()
            table = self.orders.table
            if table is not None and (table.epoch, table.generation) != (report.epoch, report.generation):
                return GatewayOrder(epoch=table.epoch, generation=table.generation, table=table)
            if self.orders.closed or not await set_within(event, deadline - time.monotonic()):
                return None

    def _still_there(self, report: ReplicaReport) -> None:
        """A long poll that ended on time is a sign of life as good as a report."""
        latest = self.memory.reports.get(report.replica)
        if latest is not None and latest[0].incarnation == report.incarnation:
            self.memory.reports[report.replica] = (latest[0], time.time())

    def _check_replica(self, report: ReplicaReport) -> None:
        """Refuse what no agent of this deployment would say: it must not lead requests, or other replicas, astray."""
        known = self.memory.backend_replicas.get(report.replica)
        if known is None or known.fleet != report.fleet:
            raise NotFound(
                f"the deployment has no replica {report.replica!r} of a fleet {report.fleet!r} (yet)", field="replica"
            )
        if len(report.copies) > MAX_COPIES:
            raise InvalidInput(f"more than {MAX_COPIES} copies on one replica", field="copies")
        if report.endpoint is not None:
            ports = (report.endpoint.grpc_port, report.endpoint.http_port, report.metrics_port or 1)
            if not all(0 < port < 1 << 16 for port in ports):
                raise InvalidInput("a port is out of range", field="endpoint")
            try:
                ipaddress.ip_address(report.endpoint.host)
            except ValueError as error:
                raise InvalidInput(f"{report.endpoint.host!r} is no IP address", field="endpoint.host") from error

    def _check_epoch(self, seen: int) -> None:
        if seen > self.orders.epoch:
            raise NotLeader(
                f"this controller has epoch {self.orders.epoch}, the caller has seen {seen}",
                remedy="ask the controller that has taken over",
            )
