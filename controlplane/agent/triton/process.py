"""The tritonserver process: started, recognised again by the next agent, watched, ended, cleaned up after."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from pydantic import TypeAdapter

from controlplane.agent.settings import Settings
from controlplane.agent.triton.installation import Installation, python_packages
from controlplane.core.names import Key
from controlplane.local import processes
from controlplane.local.gpus import count_gpus, memory_by_process
from controlplane.local.home import Home, replace_file

HOST = "127.0.0.1"
STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a server listens, on loopback."""

    http: int
    grpc: int
    metrics: int


_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What a server does not do to itself. SIGKILL: an operator, or the kernel when memory runs out."""


@dataclass(frozen=True, slots=True)
class End:
    """How a server ended, as far as that can be known. `killed`: by a signal from outside; `unknown`: nobody can tell a
    crash from that."""

    reason: str
    how: Literal["crash", "killed", "unknown"] = "crash"


class TritonProcess(abc.ABC):
    """A tritonserver beside this agent: found, watched, ended, cleaned up after. Who starts it is left open.

    Files in the replica's folder: `models/` (its repository).
    """

    host = HOST
    """Where gateways reach it."""
    ours = True
    """Whether it is this agent that starts and stops it."""

    def __init__(self, settings: Settings, *, prefix: str, log_file: Path) -> None:
        """`prefix` begins the names of its shared-memory regions."""
        self._settings = settings
        self._folder = Home(settings.home).replica(settings.replica)
        self.repository = self._folder / "models"
        self.log_file = log_file
        self.backends: tuple[str, ...] = ()
        self.ports: Ports | None = None
        self._prefix = prefix
        self._process: psutil.Process | None = None

    @property
    @abc.abstractmethod
    def running(self) -> bool:
        """Whether the server process is there."""

    @property
    @abc.abstractmethod
    def response_cache(self) -> bool:
        """Whether the server has a response cache."""

    @abc.abstractmethod
    def adopt(self) -> Ports | None:
        """Take over a server that runs already; None when there is none."""

    @abc.abstractmethod
    def start(self) -> Ports:
        """Have a server, with nothing loaded. Raises OSError when it can't be started."""

    @abc.abstractmethod
    def gpus(self) -> int:
        """How many GPUs the server has. May take a while: not for the event loop."""

    @abc.abstractmethod
    def gpu_memory_bytes(self, of: Key | None) -> int | None:
        """What the server, or one version's stubs, takes of its GPUs' memory; None where that can't be told. May take
        a while."""

    @abc.abstractmethod
    def python_packages(self) -> tuple[str, ...]:
        """Those of PROBED_PACKAGES that Python models can import."""

    async def ended(self) -> End:
        """Wait for the server's end."""
        process = self._process
        if process is None:
            return End("it is not there")
        gone = asyncio.Event()
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return _reap(process.pid)
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(descriptor, gone.set)
            if self.running:
                await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return _reap(process.pid)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self.running:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.kill()

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None and self.running:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(signal.SIGTERM)

    def clean_up(self) -> None:
        """Remove what a dead server leaves: orphaned stubs, shared-memory files."""
        self._process = None
        orphans = list(self.stubs())
        for stub in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                stub.kill()
        processes.wait_ended(orphans, timeout_s=5)
        processes.remove_shared_memory(self._prefix)

    def stubs(self, model: str | None = None, version: int | None = None) -> Iterator[psutil.Process]:
        """The Python stubs of this replica, dead parent or not; of one model's version only, if it is named."""
        part = f"/{model}/{version}/" if model is not None else ""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            ours = len(words) > 2 and words[0].endswith(STUB) and words[2].startswith(self._prefix)
            if ours and part in words[1]:
                yield process

    @property
    def memory_late_s(self) -> float:
        """How old what `memory_bytes` tells may be."""
        return 0.0

    def memory_bytes(self, of: Key | None = None) -> int | None:
        """What the server and its children, or one version's stubs, take of main memory, or of its GPUs'."""
        if self._settings.gpus:
            return self.gpu_memory_bytes(of)
        total = 0
        for each in self._family(of):
            with contextlib.suppress(psutil.Error):
                # Stubs share much, and count for their part of it. The server is the only one of its kind here:
                # what it shares with other replicas' must not change when one of these starts or ends.
                total += _resident_bytes(each.pid) if each == self._process else each.memory_full_info().pss
        return total

    def _family(self, of: Key | None) -> list[psutil.Process]:
        process = self._process
        if process is None:
            return []
        try:
            return [process, *process.children(recursive=True)] if of is None else [*self.stubs(of.model, of.version)]
        except psutil.Error:
            return []

    def log_size(self) -> int:
        """How long the server's log is now, in bytes."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_file.stat().st_size
        return 0

    def log_since(self, offset: int) -> str:
        """What the server has logged since its log was `offset` bytes long (64 KiB of it at most)."""
        with contextlib.suppress(FileNotFoundError), self.log_file.open("rb") as file:
            file.seek(offset)
            return file.read(64 << 10).decode(errors="replace")
        return ""


class LocalProcess(TritonProcess):
    """A server that this agent, or the one before it, has started.

    More files in the folder: `server.json` (which process it is), `ports.json`, `backends/` (links), `empty/` (where it
    runs: Python's path begins with that folder, so nothing may lie there).
    """

    def __init__(self, settings: Settings, installation: Installation) -> None:
        home = Home(settings.home)
        super().__init__(
            settings,
            prefix=processes.shared_memory_prefix(settings.home, settings.replica),
            log_file=home.logs / f"{settings.replica}-triton.log",
        )
        self._installation = installation
        self._home = settings.home
        self._record_file = self._folder / "server.json"
        self._ports_file = self._folder / "ports.json"

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        record = processes.read_record(self._record_file)
        return self._process is not None and record is not None and record.process() is not None

    def adopt(self) -> Ports | None:
        """Take over the server that an earlier agent left running."""
        record = processes.read_record(self._record_file)
        process = record.process() if record else None
        if process is None:
            return None
        try:
            self.ports = TypeAdapter(Ports).validate_json(self._ports_file.read_bytes())
        except (FileNotFoundError, ValueError):
            processes.stop(process, grace_s=0)  # it can't be reached: nobody knows where it listens
            return None
        self._process = process
        self.backends = tuple(sorted(each.name for each in (self._folder / "backends").iterdir()))
        return self.ports

    def start(self) -> Ports:
        """Start it on free ports."""
        for name in ("models", "empty"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        self.backends = self._installation.link_backends(self._folder / "backends")
        http, grpc, metrics = processes.free_ports(3, HOST)
        self.ports = Ports(http=http, grpc=grpc, metrics=metrics)
        replace_file(self._ports_file, TypeAdapter(Ports).dump_json(self.ports).decode())
        _, record = processes.start(
            self._command(self.ports),
            home=self._home,
            log_file=self.log_file,
            environment=processes.scrubbed_environment(self._home, self._environment()),
            record_file=self._record_file,
            folder=self._folder / "empty",
        )
        self._process = psutil.Process(record.pid)
        return self.ports

    def _command(self, ports: Ports) -> list[str]:
        settings = self._settings
        command = [
            str(self._installation.binary),
            f"--id={settings.replica}",
            f"--model-repository={self.repository}",
            f"--backend-directory={self._folder / 'backends'}",
            "--model-control-mode=explicit",
            # Readiness is judged by model version; the server's own turns false with each load.
            "--strict-readiness=false",
            # What `ctl render` shows is what is served: nothing is guessed into it.
            "--disable-auto-complete-config",
            # Without it instances' rate limiters are accepted, and do nothing.
            "--rate-limit=execution_count",
            f"--http-address={HOST}",
            f"--http-port={ports.http}",
            f"--grpc-address={HOST}",
            f"--grpc-port={ports.grpc}",
            f"--metrics-address={HOST}",
            f"--metrics-port={ports.metrics}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}_",
            f"--exit-timeout-secs={settings.exit_timeout_s}",
        ]
        if self.response_cache:
            command += [
                f"--cache-directory={self._installation.caches}",
                f"--cache-config=local,size={settings.response_cache_bytes}",
            ]
        return command

    @property
    def response_cache(self) -> bool:
        """Whether the server has a response cache."""
        return self._settings.response_cache_bytes > 0 and (self._installation.caches / "local").is_dir()

    def _environment(self) -> dict[str, str]:
        python = str(Path(sys.executable).parent)
        first = ",".join(str(index) for index in range(self._settings.gpus))
        return {
            **self._installation.environment(),
            "PATH": f"{python}:{os.environ.get('PATH', os.defpath)}",
            "CUDA_VISIBLE_DEVICES": self._settings.gpu_indices or first,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi numbers them
        }

    def gpus(self) -> int:
        """Those that it may use, as far as they are there."""
        return min(self._settings.gpus, count_gpus()) if self._settings.gpus else 0

    def gpu_memory_bytes(self, of: Key | None) -> int | None:
        """By process."""
        taken = memory_by_process()
        found = [taken[each.pid] for each in self._family(of) if each.pid in taken]
        return sum(found) if found else None

    def python_packages(self) -> tuple[str, ...]:
        """Models run in this very Python."""
        return python_packages()

    def clean_up(self) -> None:
        """Remove its record, too."""
        self._record_file.unlink(missing_ok=True)
        self._ports_file.unlink(missing_ok=True)
        super().clean_up()


def _resident_bytes(pid: int) -> int:
    """What a process has in main memory. The kernel counts it anew; what it says elsewhere may be off by many MiB on
    machines with many CPUs. 0 when it is gone."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/smaps_rollup").open(encoding="ascii") as lines:
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:")), 0)
    return 0


def _reap(pid: int) -> End:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return End("the server ended", how="unknown")  # an earlier agent's child, or the kubelet's
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        by = f"the server was ended by {signal.Signals(-code).name}"
        return End(by, how="killed" if -code in _FROM_OUTSIDE else "crash")
    return End(f"the server ended with exit status {code}")
