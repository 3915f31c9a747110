"""Triton as the agent's `Server`: kept up, given model directories, loaded over gRPC."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Mapping
from typing import Literal

import structlog

from controlplane.agent.server import BlobPath, Death, Listener, ModelStuck, ServerDied, ServerStatus, Use
from controlplane.agent.settings import Settings
from controlplane.agent.triton import proof
from controlplane.agent.triton.client import Deadline, TritonClient
from controlplane.agent.triton.http import answers, pending_requests
from controlplane.agent.triton.process import HOST, Ports, TritonProcess
from controlplane.agent.triton.repository import ModelRepository
from controlplane.agent.triton.stubs import Stubs
from controlplane.backoff import backoff_s
from controlplane.core.errors import ControlPlaneError, DeadlineExceeded, InvalidInput, LoadFailed
from controlplane.core.models import Capabilities, Manifest
from controlplane.core.names import Key
from controlplane.core.routes import Endpoint
from controlplane.local.home import Home
from controlplane.render.render import render_model
from controlplane.render.rendered import RenderedModel

log = structlog.get_logger(__name__)

POLL_S = 0.05
UNSTICK_S = 15.0
DEAD_S = 5.0
"""What the requests of a version whose process died are given to end: they fail at once, or hang for ever."""
RESTART_MIN_S, RESTART_MAX_S = 0.1, 30.0
STEADY_S = 60.0
"""A server that has lived this long is started again at once; the back-off is for those that don't."""
REASON_LENGTH = 1500
_STATE = re.compile(r"version \d+ is at UNAVAILABLE state: ")


class TritonServer:
    """A tritonserver beside this agent. See `controlplane.agent.server.Server` for what its methods promise."""

    def __init__(self, settings: Settings, process: TritonProcess) -> None:
        """`process` is the server's."""
        self._settings = settings
        folder = Home(settings.home).replica(settings.replica)
        folder.mkdir(parents=True, exist_ok=True)
        self._process = process
        self._repository = ModelRepository(self._process.repository, folder / "staging")
        self._stubs = Stubs(self._process)
        self._client: TritonClient | None = None
        self._status = ServerStatus()
        self._kill_reason: Death | None = None
        self._changed_at = time.monotonic()

    @property
    def status(self) -> ServerStatus:
        """How it is now."""
        return self._status

    # Keeping it up.

    async def supervise(self, listener: Listener) -> None:
        """Adopt or start it, and start it again whenever it ends, until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                loaded = await self._adopt_or_start()
            except (OSError, ControlPlaneError) as error:
                # In a pod there may be no server yet: its image is being fetched, say. Then none has failed to start.
                failed = self._process.running or not isinstance(error, DeadlineExceeded)
                self._process.kill()
                reason = f"it can't be started: {error}"
                await self._end(listener, Death(reason=reason, how="start"), failed_start=failed)
            else:
                listener.server_up(loaded)
                death = await self._watch()
                await self._end(listener, death)
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            if failures > 1:
                await asyncio.sleep(backoff_s(failures, RESTART_MIN_S, RESTART_MAX_S))

    async def _adopt_or_start(self) -> Mapping[Key, Literal["ready", "loading"]]:
        self._kill_reason = None
        ports = self._process.adopt()
        adopted = ports is not None
        if ports is None:
            self._process.clean_up()
            self._repository.clear()
            ports = self._process.start()
        self._client = TritonClient(HOST, ports.grpc)
        await self._wait_up(self._client, ports)
        loaded = {key: _LOADED[state] for key, state in (await self._client.index()).items() if state in _LOADED}
        for model in self._repository.models():
            for version in self._repository.versions(model):
                if Key(model, version) not in loaded:
                    self._repository.remove(model, version)
        for key, state in loaded.items():
            if state == "ready":
                config_text = self._repository.config_text(key.model)
                await asyncio.to_thread(self._stubs.adopt, key, config_text)
        log.info("server is up", adopted=adopted, grpc_port=ports.grpc, http_port=ports.http, loaded=len(loaded))
        settings, self._changed_at = self._settings, time.monotonic()
        self._status = ServerStatus(
            state="ready",
            endpoint=Endpoint(
                replica=settings.replica, host=self._process.host, grpc_port=ports.grpc, http_port=ports.http
            ),
            metrics_port=ports.metrics,
            capabilities=Capabilities(
                server_version=await self._client.server_version(),
                backends=self._process.backends,
                gpus=await asyncio.to_thread(self._process.gpus),
                response_cache=self._process.response_cache,
                python_packages=await asyncio.to_thread(self._process.python_packages),
            ),
            crashes=self._status.crashes,
        )
        return loaded

    async def _wait_up(self, client: TritonClient, ports: Ports) -> None:
        """Raises InvalidInput when the server ends (a port was taken), DeadlineExceeded when it does not come up."""
        offset = self._process.log_size()
        ended = asyncio.ensure_future(self._process.ended())
        deadline = time.monotonic() + self._settings.start_timeout_s
        try:
            # In a pod it may answer before it is found; only then is it known what it has.
            while not (
                self._process.running
                and await client.live(self._settings.live_timeout_s)
                and await answers(HOST, ports.http, ports.metrics, self._settings.replica)
            ):
                if ended.done():
                    raise InvalidInput(f"{ended.result().reason}: {_errors_in(self._process.log_since(offset))}")
                if time.monotonic() > deadline:
                    raise DeadlineExceeded(f"it does not answer after {self._settings.start_timeout_s:g} s")
                await asyncio.wait((ended,), timeout=POLL_S)
        finally:
            ended.cancel()

    async def _watch(self) -> Death:
        """Until it ends, or has to be ended because it no longer answers."""
        client, settings = self._running(), self._settings
        ended = asyncio.ensure_future(self._process.ended())
        missed = 0
        try:
            while not ended.done():
                await asyncio.wait((ended,), timeout=settings.live_every_s)
                if ended.done() or await client.live(settings.live_timeout_s):
                    missed = 0
                else:
                    missed += 1
                if missed >= settings.live_failures:
                    reason = f"the server did not answer {missed} checks in a row and was killed"
                    self._kill_reason = Death(reason=reason, how="hang")
                    self._process.kill()
                    break
            how = await ended
        finally:
            ended.cancel()
        return self._kill_reason or Death(reason=how.reason, how=how.how)

    async def _end(self, listener: Listener, death: Death, *, failed_start: bool = False) -> None:
        crashes = self._status.crashes + (death.how not in ("restart", "start"))
        failed_starts = self._status.failed_starts + failed_start
        self._status = ServerStatus(state="down", reason=death.reason, crashes=crashes, failed_starts=failed_starts)
        log.warning("server is down", reason=death.reason)
        if self._client is not None:
            await self._client.close()
            self._client = None
        self._stubs.clear()
        await asyncio.to_thread(self._process.clean_up)
        listener.server_down(death)

    def _restart(self, death: Death) -> None:
        """Kill it; `supervise` starts it again."""
        self._kill_reason = death
        self._process.kill()

    async def stop(self) -> None:
        """SIGTERM, the exit time-out, SIGKILL; then the traces are removed. One that is not ours is left to whoever
        ends it."""
        self._status = ServerStatus(state="stopping", reason="told to stop", crashes=self._status.crashes)
        if self._process.ours:
            ended = asyncio.ensure_future(self._process.ended())
            self._process.terminate()
            await asyncio.wait((ended,), timeout=self._settings.exit_timeout_s + 10)
            self._process.kill()
            await ended
        if self._client is not None:
            await self._client.close()
            self._client = None
        if self._process.ours:
            await asyncio.to_thread(self._process.clean_up)
        self._status = ServerStatus(state="stopped", reason="told to stop", crashes=self._status.crashes)

    def _running(self) -> TritonClient:
        if self._client is None:
            raise ServerDied(self._status.reason or "the server is not up")
        return self._client

    # Models.

    async def serve(self, model: str, versions: Mapping[int, Manifest], blobs: BlobPath) -> None:
        """Make it hold exactly `versions` of `model`."""
        client = self._running()
        for number, manifest in versions.items():
            if manifest.entry.name != model:
                raise LoadFailed(
                    f"version {number} of {model} is an entry of another model, {manifest.entry.name!r}",
                    field="name",
                    remedy="register the version again",
                )
        rendered = self._render(versions)
        before = await self._states(client, model)
        old = {number for number, state in before.items() if state == "READY"}
        await asyncio.to_thread(self._repository.place, rendered, blobs, old)
        offset = self._process.log_size()
        try:
            await client.load(model, self._settings.load_timeout_s)
        except Deadline as error:
            new = sorted(set(versions) - old)
            await self._unstick(client, model, new)
            await self._back_to(model, {number: versions[number] for number in old & set(versions)}, blobs)
            raise ModelStuck(f"loading did not end within {self._settings.load_timeout_s:g} s") from error
        except LoadFailed as error:
            reason = _reason(error.what, self._process.log_since(offset))
            await self._back_to(model, {number: versions[number] for number in old & set(versions)}, blobs)
            raise LoadFailed(reason) from error
        finally:
            self._changed_at = time.monotonic()
        gone = self._repository.versions(model) - set(versions)
        await self._wait_gone(client, model, gone)
        for number in gone:
            await self._remove(model, number)
        states = await self._states(client, model)
        if missing := [number for number in versions if states.get(number) != "READY"]:
            await self._back_to(model, {number: versions[number] for number in old & set(versions)}, blobs)
            raise LoadFailed(
                f"Triton accepted the load, but version {missing[0]} is {states.get(missing[0], 'not there')}"
            )
        for number in set(versions) - old:
            await asyncio.to_thread(self._stubs.remember, Key(model, number))
        self._changed_at = time.monotonic()

    def _render(self, versions: Mapping[int, Manifest]) -> RenderedModel:
        capabilities = self._status.capabilities
        if capabilities is None:
            raise ServerDied(self._status.reason or "the server is not up")
        try:
            return render_model(versions, capabilities)
        except InvalidInput as error:
            raise LoadFailed(f"its configuration can't be written: {error}") from error

    async def _back_to(self, model: str, versions: Mapping[int, Manifest], blobs: BlobPath) -> None:
        """Bring the directory back to what the server goes on serving after a failed load."""
        for number in self._repository.versions(model) - set(versions):
            await self._remove(model, number)
        if versions:
            await asyncio.to_thread(self._repository.place, self._render(versions), blobs, versions.keys())
        else:
            await self._remove(model)

    async def _remove(self, model: str, version: int | None = None) -> None:
        self._stubs.forget(model, version)
        await asyncio.to_thread(self._repository.remove, model, version)

    async def give_up(self, model: str) -> None:
        """Make it hold nothing of `model`."""
        client = self._running()
        states = await self._states(client, model)
        try:
            await client.unload(model, self._settings.unload_timeout_s)
        except Deadline:
            # Triton does not begin to unload before a load of the same model has ended.
            loading = [number for number, state in states.items() if state == "LOADING"]
            await self._unstick(client, model, loading)
            raise DeadlineExceeded(f"{model} was still loading") from None
        except LoadFailed as error:
            log.info("nothing to unload", model=model, reason=error.what)
        finally:
            self._changed_at = time.monotonic()
        await self._wait_gone(client, model, states)
        await self._remove(model)
        self._changed_at = time.monotonic()

    async def _states(self, client: TritonClient, model: str) -> dict[int, str]:
        return {key.version: state for key, state in (await client.index()).items() if key.model == model}

    async def _wait_gone(self, client: TritonClient, model: str, versions: Collection[int]) -> None:
        """Until requests in flight have ended and the versions' memory is free. Requests that were with a stub when it
        died may never end in this server."""
        deadline, dead = time.monotonic() + self._settings.unload_timeout_s, False
        while True:
            states = await self._states(client, model)
            busy = [Key(model, each) for each in versions if states.get(each, "UNAVAILABLE") != "UNAVAILABLE"]
            if not busy:
                return
            broken = await asyncio.to_thread(self._stubs.broken, busy)
            if broken and not dead:
                deadline, dead = time.monotonic() + DEAD_S, True
            if time.monotonic() > deadline and dead:
                reason = f"the process of {busy[0]} died, and Triton can't end the requests that were with it"
                self._restart(Death(reason=reason, how="stuck", key=busy[0]))
                raise ServerDied(reason)
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{', '.join(map(str, busy))} does not end its requests")
            await asyncio.sleep(POLL_S)

    async def _unstick(self, client: TritonClient, model: str, versions: Collection[int]) -> None:
        """End a load that does not end. A Python model's stub can be killed alone; any other backend runs in the
        server, which has to go."""
        for number in versions:
            for stub in self._process.stubs(model, number):
                log.warning("killing the stub of a stuck load", model=model, version=number, pid=stub.pid)
                stub.kill()
        deadline = time.monotonic() + UNSTICK_S
        while time.monotonic() < deadline:
            if "LOADING" not in (await self._states(client, model)).values():
                return
            await asyncio.sleep(POLL_S)
        reason = f"loading {model} did not end, and only a new server ends it"
        self._restart(Death(reason=reason, how="restart"))
        raise ModelStuck("loading did not end, and the server had to be killed to end it")

    async def prove(self, model: str, version: int, manifest: Manifest) -> None:
        """Check metadata and example."""
        key = Key(model, version)
        await proof.prove(self._running(), key, manifest.entry, timeout_s=self._settings.proof_timeout_s)
        self._changed_at = time.monotonic()

    async def use(self) -> Mapping[Key, Use]:
        """Requests counted, and waiting, by version."""
        client, port = self._running(), self._status.metrics_port
        try:
            counted = await client.use()
            waiting = await pending_requests(HOST, port) if port is not None else {}
        except Deadline as error:
            raise ServerDied("the server does not answer") from error
        return {
            key: Use(requests=each.requests, pending=waiting.get(key, 0), last_used_at=each.last_used_at)
            for key, each in counted.items()
        }

    def broken(self, keys: Collection[Key]) -> Collection[Key]:
        """Versions that have lost a Python stub."""
        return self._stubs.broken(keys)

    def memory_bytes(self, of: Key | None = None) -> int | None:
        """Main memory of the server and its stubs, or of one version's stubs; with GPUs, their memory. Waits until what
        was loaded or unloaded last shows in it."""
        time.sleep(max(0.0, self._changed_at + self._process.memory_late_s - time.monotonic()))
        return self._process.memory_bytes(of)


_LOADED: dict[str, Literal["ready", "loading"]] = {"READY": "ready", "LOADING": "loading"}


def _reason(details: str, logged: str) -> str:
    """Triton's words, made fit for the model's owner. Why a configuration can't be parsed stands in its log only."""
    if "failed to poll" in details:
        details = _errors_in(logged) or details
    _, found, rest = details.partition("load failed for model")
    text = _STATE.sub("", rest.partition(": ")[2]) if found else details
    return " ".join(text.split()).rstrip("; ")[:REASON_LENGTH]


def _errors_in(logged: str) -> str:
    lines = [line for line in logged.splitlines() if re.match(r"E\d{4} |error:|\[libprotobuf ERROR|Error", line)]
    return " ".join(line.split("] ", 1)[-1].strip('"') for line in lines[-5:])[:REASON_LENGTH]
