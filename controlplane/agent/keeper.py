"""Keeps one model on this replica as it is wanted: one step after the other, never two at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from controlplane.agent.disk import BlobStore, SourceExpired
from controlplane.agent.gate import LoadGate, Pass
from controlplane.agent.reconcile import Failure, Forget, Held, Keep, Load, Prove, died, next_retry, next_step, to_fetch
from controlplane.agent.server import ModelStuck, Server, ServerDied
from controlplane.agent.settings import Settings
from controlplane.agent.witness import Witness
from controlplane.backoff import backoff_s
from controlplane.core.errors import ControlPlaneError, DeadlineExceeded, LoadFailed
from controlplane.core.messages import Copy, Wanted
from controlplane.core.models import Manifest
from controlplane.core.names import Key

log = structlog.get_logger(__name__)

SERVER_MOVES_S = 10.0
"""How long to wait for word that the server is down, after a call to it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the keepers of a replica share.

    `changed` is called at each change that a report shows, `leaked` with the bytes that an unloading did not give back
    (negative: more than was expected), `expired` when a download address is refused. `backends` have had a model loaded
    since the server's start.
    """

    settings: Settings
    server: Server
    store: BlobStore
    gate: LoadGate
    witness: Witness
    is_ready: Callable[[Key], bool]
    changed: Callable[[], None]
    leaked: Callable[[int], None]
    expired: Callable[[], None]
    backends: set[str]


class Keeper:
    """One model. `want` says what shall be; `run` makes it so and ends when nothing is wanted and nothing is left."""

    def __init__(self, model: str, surroundings: Surroundings) -> None:
        self.model = model
        self.held: dict[int, Held] = {}
        self._around = surroundings
        self._wanted: dict[int, Wanted] | None = None
        self._moved = asyncio.Event()
        self._server_up = False
        self._life = 0
        self._blocked: frozenset[int] = frozenset()
        self._fetches: dict[int, asyncio.Task[None]] = {}
        self._log = log.bind(model=model, replica=surroundings.settings.replica)

    # What others tell it.

    def want(self, wanted: Mapping[int, Wanted]) -> None:
        """All versions that shall be held."""
        self._wanted = dict(wanted)
        for number, each in wanted.items():
            present = self.held.get(number)
            if present is None:
                self.held[number] = Held(wanted=each)
            elif present.digest == each.digest:
                self.held[number] = replace(present, wanted=each)  # its sources may be fresher
        for number, task in self._fetches.items():
            if number not in wanted:
                task.cancel()
        self._around.changed()
        self._moved.set()

    def adopt(self, version: int, held: Held) -> None:
        """The server has this version already, or is loading it."""
        wanted = self._wanted.get(version) if self._wanted else None
        if wanted and not held.loaded and held.digest != wanted.digest:
            held = Held(wanted=None, loaded=True)  # something else under this number: it has to go first
        self.held[version] = held
        self._moved.set()

    def server_up(self) -> None:
        """Loads can be done."""
        self._server_up = True
        self._moved.set()

    def server_down(self, guilty: Mapping[int, str]) -> None:
        """Nothing is loaded any more. `guilty`: versions that took the server down, with the reason."""
        self._server_up = False
        self._life += 1
        for number, each in list(self.held.items()):
            bare = replace(each, loaded=False, proved=False, memory_bytes=None, load_s=None)
            if number in guilty:
                self._log.error("version crashed the server", version=number, reason=guilty[number])
                bare = replace(bare, failure=Failure(reason=guilty[number], blames="crash"))
            self.held[number] = bare
        self._moved.set()

    def broke(self, version: int) -> None:
        """The version can't answer any more, although the server is well. If something is being done with it anyway,
        that finds out by itself."""
        held, settings = self.held.get(version), self._around.settings
        if held is None or not held.proved or held.doing is not None or held.failure is not None:
            return
        self.held[version] = held = died(
            held,
            now=time.monotonic(),
            window_s=settings.crash_window_s,
            pause_s=lambda deaths: backoff_s(deaths - 1, settings.retry_min_s, settings.retry_max_s),
        )
        self._log.error("version's process died", version=version, deaths=held.deaths)
        self._around.changed()
        self._moved.set()

    def used(self, version: int, at: float) -> None:
        """The time of the last inference (seconds since 1970)."""
        if version in self.held:
            self.held[version] = replace(self.held[version], last_used_at=at)

    def others_changed(self) -> None:
        """Look again, if this one waits for other models."""
        if self._blocked:
            self._moved.set()

    # What it says.

    def copies(self) -> tuple[Copy, ...]:
        """Its versions, as the controller is told of them."""
        return tuple(self._copy(number, each, each.wanted) for number, each in sorted(self.held.items()) if each.wanted)

    def _copy(self, number: int, held: Held, wanted: Wanted) -> Copy:
        failure, missing = held.failure, self._missing_steps(wanted.manifest)
        failed = failure is not None and not held.may_try(time.monotonic())
        copy = Copy(
            model=self.model,
            version=number,
            digest=wanted.digest,
            state=held.doing or ("failed" if failed else "ready" if held.proved and not missing else "pending"),
            memory_bytes=held.memory_bytes,
            load_s=held.load_s,
            last_used_at=held.last_used_at,
        )
        if failure and copy.state == "failed":
            return replace(copy, reason=failure.reason, blames=failure.blames)
        if copy.state == "pending":
            waits = "waits for the server" if not self._server_up else "waits its turn"
            if failure:
                return replace(copy, reason=failure.reason)
            return replace(copy, reason=f"waits for {missing[0]}" if missing else waits)
        return copy

    # What it does.

    async def run(self) -> None:
        """Step by step, until nothing is wanted and nothing is left."""
        try:
            while self.held or self._wanted:
                self._moved.clear()
                now = time.monotonic()  # before anything is looked at: what becomes due meanwhile is not overlooked
                self._begin_fetches()
                step = self._next_step()
                if step is None:
                    await self._wait(next_retry(self.held, now=now))
                else:
                    await self._do(step)
        finally:
            for task in self._fetches.values():
                task.cancel()
            await asyncio.gather(*self._fetches.values(), return_exceptions=True)

    async def _wait(self, timeout_s: float | None) -> None:
        try:
            await asyncio.wait_for(self._moved.wait(), timeout_s)
        except TimeoutError:
            return

    def _next_step(self) -> Forget | Keep | Load | Prove | None:
        if self._wanted is None:
            return None  # nothing has been ordered yet: unknown is not unwanted
        wanted = {number: each.digest for number, each in self._wanted.items()}
        self._blocked = frozenset(n for n, each in self._wanted.items() if self._missing_steps(each.manifest))
        step = next_step(wanted, self.held, now=time.monotonic(), blocked=self._blocked)
        return step if self._server_up or isinstance(step, Forget) else None

    def _missing_steps(self, manifest: Manifest) -> list[Key]:
        needed = (
            Key(step.model_name, step.model_version)
            for step in manifest.entry.ensemble
            if step.model_version is not None
        )
        return [key for key in needed if not self._around.is_ready(key)]

    def _change(self, version: int, **changes: Any) -> None:
        if version in self.held:
            self.held[version] = replace(self.held[version], **changes)
            self._around.changed()

    def _fail(self, version: int, error: Exception, *, model: bool) -> None:
        """Note a failure. The model's own are not tried again; others are, ever more slowly."""
        held = self.held.get(version)
        if held is None or (held.failure is not None and held.failure.blames == "crash"):
            return
        settings = self._around.settings
        delay_s = backoff_s(held.attempts + 1, settings.retry_min_s, settings.retry_max_s)
        failure = Failure(
            reason=str(error),
            blames="model" if model else "environment",
            retry_at=None if model else time.monotonic() + delay_s,
        )
        self._log.warning("version failed", version=version, reason=failure.reason, blames=failure.blames)
        self._change(version, failure=failure, attempts=held.attempts + 1, doing=None)

    # Downloads.

    def _begin_fetches(self) -> None:
        for number in to_fetch(self.held, now=time.monotonic()):
            wanted = self.held[number].wanted
            if number not in self._fetches and wanted is not None:
                self._change(number, doing="downloading", failure=None)
                self._fetches[number] = asyncio.create_task(self._fetch(number, wanted))

    async def _fetch(self, number: int, wanted: Wanted) -> None:
        store = self._around.store
        try:
            began = time.monotonic()
            await store.fetch(wanted.manifest.files, wanted.sources)
            self._log.info("files are here", version=number, seconds=round(time.monotonic() - began, 3))
            self._change(number, files=True, doing=None, failure=None, attempts=0)
        except SourceExpired as error:
            self._fail(number, error, model=False)
            self._around.expired()
        except (ControlPlaneError, OSError) as error:
            self._fail(number, error, model=False)
        finally:
            del self._fetches[number]
            if number in self.held and self.held[number].doing == "downloading":
                self._change(number, doing=None)
            self._moved.set()

    # Loads.

    async def _do(self, step: Forget | Keep | Load | Prove) -> None:
        if isinstance(step, Forget):
            gone = self.held.pop(step.version)
            if gone.wanted is not None:
                self._around.store.touch(gone.wanted.manifest.files)
            if self._wanted and step.version in self._wanted:
                self.held[step.version] = Held(wanted=self._wanted[step.version])
            self._around.changed()
        elif isinstance(step, Keep):
            await self._keep(step)
        elif isinstance(step, Load):
            await self._load(step)
        else:
            await self._prove(step.version)

    async def _keep(self, step: Keep) -> None:
        going = [number for number, each in self.held.items() if each.loaded and number not in step.versions]
        for number in going:
            if self.held[number].failure is None:
                self._change(number, doing="unloading", proved=False)
        self._log.info("unloading", versions=going)
        expected = _comes_back([self.held[number] for number in going])
        try:
            with self._around.gate.unload() as way:
                before = await self._memory_bytes(way) if expected else None
                if step.versions:
                    await self._around.server.serve(self.model, self._manifests(step.versions), self._around.store.path)
                else:
                    await self._around.server.give_up(self.model)
                after = await self._memory_bytes(way) if before is not None else None
        except ServerDied:
            await self._server_moves()
        except (ControlPlaneError, OSError) as error:
            self._log.warning("unloading failed, and is tried again", versions=going, reason=str(error))
            await self._wait(self._around.settings.retry_min_s)
        else:
            if before is not None and after is not None:
                # No more than it took, whatever others (who share a GPU, say) took meanwhile.
                self._around.leaked(expected - max(0, before - after))
            for number in going:
                self._change(number, loaded=False, proved=False, memory_bytes=None, load_s=None)
        finally:
            for number in going:
                self._change(number, doing=None)

    def _manifests(self, versions: frozenset[int]) -> dict[int, Manifest]:
        known = {number: self.held[number].wanted for number in versions}
        return {number: wanted.manifest for number, wanted in known.items() if wanted is not None}

    async def _load(self, step: Load) -> None:
        key, around = Key(self.model, step.version), self._around
        async with around.gate.enter(alone=key in around.witness.careful) as way:
            before = await self._memory_bytes(way)
            if self._next_step() != step:
                return  # the world has changed while this waited
            manifests = self._manifests(step.present | {step.version})
            if not all(around.store.has(file) for file in manifests[step.version].files):
                self._change(step.version, files=False)
                return
            around.witness.load_begins(key)
            life, backend = self._life, manifests[step.version].entry.backend
            self._change(step.version, doing="loading", failure=None, first=backend not in around.backends)
            began = time.monotonic()
            try:
                await around.server.serve(self.model, manifests, around.store.path)
                if self._life != life:
                    raise ServerDied("the server ended meanwhile")
                self._change(step.version, loaded=True)
                await around.server.prove(self.model, step.version, manifests[step.version])
                if self._life != life:
                    raise ServerDied("the server ended meanwhile")
                load_s = round(time.monotonic() - began, 3)
                around.witness.load_succeeds(key)
                around.backends.add(backend)
                took = await self._measure(key, before, way)
                if self._life != life:
                    raise ServerDied("the server ended meanwhile")
                self._change(step.version, proved=True, attempts=0, doing=None, memory_bytes=took, load_s=load_s)
                self._log.info("version is ready", version=step.version, seconds=load_s, memory_bytes=took)
                if key in around.witness.careful:
                    await self._settle(life)
                    around.witness.careful.discard(key)
            except ServerDied:
                await self._server_moves()
            except (ModelStuck, LoadFailed) as error:
                self._fail(step.version, error, model=True)
            except (DeadlineExceeded, ControlPlaneError, OSError) as error:
                self._fail(step.version, error, model=False)
            finally:
                around.witness.load_ends(key)
                self._change(step.version, doing=None)

    async def _measure(self, key: Key, before: int | None, way: Pass) -> int | None:
        """What a load took: the difference of the whole, or, where others loaded at the same time, what is beyond doubt
        the version's own. None where that can't be told."""
        after = await self._memory_bytes(way) if before is not None else None
        if before is None or after is None:
            return await asyncio.to_thread(self._around.server.memory_bytes, key) or None
        return max(0, after - before) or None

    async def _memory_bytes(self, way: Pass) -> int | None:
        """What the server takes; None where that can't be told, or whose it is that comes or goes."""
        found = await asyncio.to_thread(self._around.server.memory_bytes) if way.alone else None
        return found if way.alone else None

    async def _settle(self, life: int) -> None:
        """Hold the gate for a while after a careful load: a server that dies now has one suspect."""
        deadline = time.monotonic() + self._around.settings.settle_s
        while self._life == life and time.monotonic() < deadline:
            self._moved.clear()
            await self._wait(deadline - time.monotonic())
        self._moved.set()

    async def _prove(self, version: int) -> None:
        life = self._life
        try:
            await self._around.server.prove(self.model, version, self._manifests(frozenset({version}))[version])
            if self._life == life:
                self._change(version, proved=True)
        except ServerDied:
            await self._server_moves()
        except LoadFailed as error:
            self._fail(version, error, model=True)

    async def _server_moves(self) -> None:
        """A call found no server: wait for word of its end, so as not to ask it again and again."""
        deadline = time.monotonic() + SERVER_MOVES_S
        while self._server_up and time.monotonic() < deadline:
            self._moved.clear()
            await self._wait(deadline - time.monotonic())


def _comes_back(going: Sequence[Held]) -> int:
    """What unloading these versions should give back, in bytes; 0 where that can't be told. What came with the first
    model of a backend (libraries, what a GPU needs for it) stays, and would on a new server as well."""
    sizes = [each.memory_bytes for each in going if each.memory_bytes and not each.first]
    return sum(sizes) if len(sizes) == len(going) else 0
