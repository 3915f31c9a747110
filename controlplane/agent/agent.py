"""The agent: the sync call on one side, the server on the other, a keeper for each model in between."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import structlog

from controlplane.agent.disk import BlobStore
from controlplane.agent.gate import LoadGate
from controlplane.agent.keeper import Keeper, Surroundings
from controlplane.agent.ledger import Ledger, Line
from controlplane.agent.reconcile import Held
from controlplane.agent.server import Death, Server, ServerDied
from controlplane.agent.settings import Settings
from controlplane.agent.witness import Witness
from controlplane.client.access import Access
from controlplane.client.sync import SyncLoop
from controlplane.core.errors import LoadFailed
from controlplane.core.messages import Assignment, ReplicaReport, ServerState, Wanted
from controlplane.core.names import Key
from controlplane.local.home import Home

log = structlog.get_logger(__name__)

GATHER_S = 0.02
"""Changes within this time go up in one report."""
LAST_WORD_S = 5.0
BROKEN_EVERY_S = 1.0


class Agent:
    """One replica's agent. `run` it; it ends when the controller says stop, or when `stop` is called."""

    def __init__(self, settings: Settings, server: Server, access: Callable[[], Access]) -> None:
        folder = Home(settings.home).replica(settings.replica)
        folder.mkdir(parents=True, exist_ok=True)
        self._settings = settings
        self._server = server
        self._ledger = Ledger(folder)
        self._store = BlobStore(
            folder / "blobs", budget_bytes=settings.disk_bytes, parallel=settings.parallel_downloads
        )
        self._incarnation = secrets.token_hex(8)
        self._assignment = self._ledger.assignment()
        self._left = self._ledger.lines()
        """What an earlier agent gave the server; looked at when the server is found to be up."""
        self._ledger_open = False
        self._current = False
        """Whether the assignment came from the controller, and its download addresses were good when last used."""
        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()
        self._end = asyncio.Event()
        self._ordered_to_stop = False
        self._leaked_bytes = 0
        self._keepers: dict[str, Keeper] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None]
        self._poke: asyncio.TimerHandle | None = None
        self._witness = Witness(settings)
        self._around = Surroundings(
            settings=settings,
            server=server,
            store=self._store,
            gate=LoadGate(settings.parallel_loads),
            witness=self._witness,
            is_ready=self._is_ready,
            changed=self._changed,
            leaked=self._leaks,
            expired=self._expired,
            backends=set(),
        )
        self._sync: SyncLoop[ReplicaReport, Assignment] = SyncLoop(
            path=f"/v1/replicas/{settings.replica}/sync",
            access=access,
            report=self.report,
            apply=self.apply,
            report_type=ReplicaReport,
            order_type=Assignment,
        )

    # Its life.

    async def run(self) -> bool:
        """Work until told to stop; then end the server, too. Returns whether it was the controller that said so.
        Cancelled instead, or killed, it leaves the server running for the next agent."""
        self._broken = asyncio.get_running_loop().create_future()
        if self._assignment is not None:
            self._hand_out(self._assignment.wanted)
        syncing = asyncio.create_task(self._sync.run())
        work: set[asyncio.Future[Any]] = {
            asyncio.create_task(self._server.supervise(self)),
            asyncio.create_task(self._watch_use()),
            asyncio.create_task(self._watch_broken()),
            asyncio.create_task(self._stop.wait()),
            self._broken,
        }
        try:
            done, _ = await asyncio.wait({*work, syncing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._store.close()
            await _cancel(*work, *self._tasks)
        log.info("stopping", ordered=self._ordered_to_stop)
        ending = asyncio.create_task(self._server.stop())
        await asyncio.sleep(0)
        self._sync.poke()  # "stopping"
        await ending
        self._stopped.set()
        if self._settings.pod_ip and not self._end.is_set():
            # The kubelet ends the pod, and would only start this agent again. The controller goes on hearing of it.
            self._sync.poke()
            await asyncio.wait((syncing, asyncio.ensure_future(self._end.wait())), return_when=asyncio.FIRST_COMPLETED)
        await _cancel(syncing)
        heard = await self._sync.tell(timeout_s=LAST_WORD_S)
        log.info("stopped", controller_heard=heard)
        return self._ordered_to_stop

    def stop(self) -> None:
        """End the server and then this agent."""
        self._end.set()
        self._stop.set()

    @property
    def server_state(self) -> ServerState:
        """How the server is."""
        return self._server.status.state

    async def drained(self) -> None:
        """Wait until the controller has led everything away and had the server stop."""
        await self._stopped.wait()

    # The controller's side.

    def report(self) -> ReplicaReport:
        """How things are now."""
        status, held = self._server.status, self._assignment
        return ReplicaReport(
            replica=self._settings.replica,
            fleet=self._settings.fleet,
            incarnation=self._incarnation,
            epoch=held.epoch if held and self._current else 0,
            generation=held.generation if held and self._current else 0,
            server=status.state,
            reason=status.reason,
            endpoint=status.endpoint,
            metrics_port=status.metrics_port,
            capabilities=status.capabilities,
            copies=tuple(copy for _, keeper in sorted(self._keepers.items()) for copy in keeper.copies()),
            crashes=status.crashes,
            told_to_stop=self._ordered_to_stop,
            failed_starts=status.failed_starts,
            leaked_bytes=self._leaked_bytes,
            disk_free_bytes=self._store.free_bytes(),
        )

    async def apply(self, order: Assignment) -> None:
        """Take an assignment, unless it is of an older epoch or older than what is held."""
        held = self._assignment
        if held is not None and order.epoch < held.epoch:
            log.warning("an order of an older epoch is refused", epoch=order.epoch, seen=held.epoch)
            await asyncio.sleep(1.0)  # whoever sent it is about to find out that it no longer leads
            return
        if held is not None and self._current and (order.epoch, order.generation) < (held.epoch, held.generation):
            return
        if self._ordered_to_stop:
            return  # there is no way back
        self._ledger.accept(replace(order, wanted=()) if order.stop else order)
        self._assignment, self._current = order, True
        log.info("assignment", epoch=order.epoch, generation=order.generation, versions=len(order.wanted))
        self._hand_out(order.wanted)
        if order.stop:
            self._ordered_to_stop = True
            self._stop.set()

    def _hand_out(self, wanted: tuple[Wanted, ...]) -> None:
        by_model: dict[str, dict[int, Wanted]] = defaultdict(dict)
        for each in wanted:
            by_model[each.model][each.version] = each
        for model in by_model.keys() | self._keepers.keys():
            self._keeper(model).want(by_model.get(model, {}))
        self._changed()

    def _keeper(self, model: str) -> Keeper:
        keeper = self._keepers.get(model)
        if keeper is None:
            keeper = self._keepers[model] = Keeper(model, self._around)
            if self._server.status.state == "ready":
                keeper.server_up()
            task = asyncio.create_task(self._run_keeper(keeper), name=model)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return keeper

    async def _run_keeper(self, keeper: Keeper) -> None:
        await asyncio.sleep(0)  # it is told what is wanted first
        try:
            await keeper.run()
        except Exception as error:  # noqa: BLE001 - a defect: the agent ends with it, and the next one takes over
            if not self._broken.done():
                self._broken.set_exception(error)
        finally:
            if self._keepers.get(keeper.model) is keeper:
                del self._keepers[keeper.model]
            self._changed()

    def _changed(self) -> None:
        """Something that a report shows is different: write down what must be, and report soon."""
        held = [each for keeper in self._keepers.values() for each in keeper.held.values() if each.wanted]
        self._store.kept = frozenset(file.sha256 for each in held if each.wanted for file in each.wanted.manifest.files)
        if self._ledger_open:
            self._ledger.hold(
                tuple(
                    Line(wanted=replace(each.wanted, sources={}), proved=each.proved)
                    for each in held
                    if each.wanted and (each.loaded or each.doing == "loading")
                )
            )
        for keeper in self._keepers.values():
            keeper.others_changed()
        if self._poke is None:
            self._poke = asyncio.get_running_loop().call_later(GATHER_S, self._report_now)

    def _report_now(self) -> None:
        self._poke = None
        self._sync.poke()

    def _leaks(self, size_bytes: int) -> None:
        self._leaked_bytes = max(0, self._leaked_bytes + size_bytes)

    def _expired(self) -> None:
        """A download address is refused: an agent that holds no assignment is sent a fresh one."""
        self._current = False
        self._changed()

    def _is_ready(self, key: Key) -> bool:
        keeper = self._keepers.get(key.model)
        held = keeper.held.get(key.version) if keeper else None
        return held is not None and held.proved

    # The server's side.

    def server_up(self, loaded: Mapping[Key, Literal["ready", "loading"]]) -> None:
        """Tell every keeper, and what an adopted server holds to whom it belongs."""
        broken = self._server.broken(loaded.keys())
        for key, state in loaded.items():
            # One that is broken is left to nobody, which makes its keeper unload it and load it again.
            line = self._left.get(key) if key not in broken else None
            keeper = self._keeper(key.model)
            if state == "loading" and line is not None:
                keeper.adopt(key.version, Held(wanted=line.wanted))
            else:
                keeper.adopt(
                    key.version,
                    Held(
                        wanted=line.wanted if line else None,
                        files=line is not None,
                        loaded=True,
                        proved=line is not None and line.proved,
                    ),
                )
        self._left, self._ledger_open = {}, True
        if self._assignment is not None and self._current:
            self._hand_out(self._assignment.wanted)
        for keeper in list(self._keepers.values()):
            keeper.server_up()
        self._changed()

    def server_down(self, death: Death) -> None:
        """Find out whose fault it was, as far as that can be known, and have everything loaded again but that."""
        guilty: dict[str, dict[int, str]] = defaultdict(dict)
        if death.how != "restart" and death.how != "start":  # noqa: PLR1714 - mypy narrows this form only
            verdict = self._witness.died(death.how, self._loaded(), death.key)
            log.error("the server crashed", reason=death.reason, guilty=str(verdict.guilty or "not known"))
            if verdict.guilty is not None:
                guilty[verdict.guilty.model][verdict.guilty.version] = f"{verdict.reason} ({death.reason})"
        self._witness.forget()
        self._leaked_bytes = 0
        self._around.backends.clear()
        for model, keeper in list(self._keepers.items()):
            keeper.server_down(guilty.get(model, {}))
        self._changed()

    def _loaded(self) -> Iterator[Key]:
        for keeper in self._keepers.values():
            yield from (Key(keeper.model, number) for number, each in keeper.held.items() if each.loaded)

    async def _watch_use(self) -> None:
        """Follow which versions are in use: for the controller, which makes room by it, and to blame after a crash."""
        while True:
            await asyncio.sleep(self._settings.use_every_s)
            self._ledger.write_rest()
            if self._server.status.state != "ready":
                continue
            try:
                used = await self._server.use()
            except (ServerDied, LoadFailed):
                continue
            for key, use in used.items():
                keeper = self._keepers.get(key.model)
                if keeper is not None and use.last_used_at is not None:
                    keeper.used(key.version, use.last_used_at)
            if self._witness.sees(used):
                self._changed()

    async def _watch_broken(self) -> None:
        """Notice versions that can't answer any more although the server is well."""
        while True:
            await asyncio.sleep(BROKEN_EVERY_S)
            ready = [
                Key(keeper.model, number)
                for keeper in self._keepers.values()
                for number, each in keeper.held.items()
                if each.proved
            ]
            for key in await asyncio.to_thread(self._server.broken, ready):
                keeper = self._keepers.get(key.model)
                if keeper is not None:
                    keeper.broke(key.version)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
