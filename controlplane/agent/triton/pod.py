"""A tritonserver in a container of the agent's own pod: the kubelet starts it, and starts it again when it ends.

The containers share a process namespace and run as one user. So the agent finds the server among the processes, can end
it, and can look at its files.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from controlplane.agent.settings import Settings
from controlplane.agent.triton.http import GPU_METRICS_EVERY_S, gpu_memory_bytes
from controlplane.agent.triton.installation import PROBED_PACKAGES
from controlplane.agent.triton.process import HOST, End, Ports, TritonProcess
from controlplane.core.names import Key
from controlplane.local.home import Home

PORTS = Ports(http=8000, grpc=8001, metrics=8002)
LOOK_S = 0.2
MOST_STEPS = 256
"""Links that lead around in a circle end here."""
BACKENDS, BACKENDS_OPTION = "/opt/tritonserver/backends", "--backend-directory="
"""Where the server's image has its backends, unless the server is told."""
DEFAULT_METRICS_EVERY_S, METRICS_OPTION = 2.0, "--metrics-interval-ms="
"""How often Triton measures GPUs, unless it is told."""
PACKAGES = (
    "usr/local/lib/python3*/dist-packages",
    "usr/local/lib/python3*/site-packages",
    "usr/lib/python3/dist-packages",
)


def arguments(settings: Settings, ports: Ports = PORTS) -> list[str]:
    """What `tritonserver` is to be started with in the pod."""
    folder = Home(settings.home).replica(settings.replica)
    return [
        f"--id={settings.replica}",
        f"--model-repository={folder / 'models'}",
        "--model-control-mode=explicit",
        # Readiness is judged by model version; the server's own turns false with each load.
        "--strict-readiness=false",
        # What `ctl render` shows is what is served: nothing is guessed into it.
        "--disable-auto-complete-config",
        # Without it instances' rate limiters are accepted, and do nothing.
        "--rate-limit=execution_count",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        f"--backend-config=python,shm-region-prefix-name={prefix(settings)}",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        f"--log-file={log_file(settings)}",
        # What models take of the GPUs is measured around loads, which should not have to wait long for it.
        *([f"{METRICS_OPTION}{GPU_METRICS_EVERY_S * 1000:g}"] if settings.gpus else []),
        *([f"--cache-config=local,size={settings.response_cache_bytes}"] if settings.response_cache_bytes else []),
    ]


def prefix(settings: Settings) -> str:
    """What the names of its shared-memory regions begin with. An agent that sees more than its pod's processes or
    /dev/shm (hostPID, hostIPC, a test) must not take another's for its own."""
    return f"ctl_pod_{settings.replica}_"


def log_file(settings: Settings) -> Path:
    """Where the server writes its log, which says why a configuration can't be read."""
    return Home(settings.home).replica(settings.replica) / "triton.log"


def inside(root: Path, path: str) -> Path:
    """A path below another root, as it is meant there: its absolute links begin at that root, not at ours."""
    at, rest = root, deque(Path(path).parts)
    for _ in range(MOST_STEPS):
        if not rest:
            break
        part = rest.popleft()
        if part == "/":
            at = root
        elif (at / part).is_symlink():
            rest.extendleft(reversed((at / part).readlink().parts))
        else:
            at = (at if at == root else at.parent) if part == ".." else at / part
    return root.joinpath(*(part for part in rest if part != "/")) if rest else at


def _told(words: Sequence[str], option: str) -> str | None:
    """What a command line says of an option: the last time it says it."""
    return next((each.removeprefix(option) for each in reversed(words) if each.startswith(option)), None)


class PodProcess(TritonProcess):
    """The server in the pod."""

    ours = False

    def __init__(self, settings: Settings, ports: Ports = PORTS) -> None:
        super().__init__(settings, prefix=prefix(settings), log_file=log_file(settings))
        self.host = settings.pod_ip
        self._fixed = ports
        self._metrics_every_s = DEFAULT_METRICS_EVERY_S
        self.repository.mkdir(parents=True, exist_ok=True)  # the server starts on it

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        return self._process is not None and self._process.is_running()

    @property
    def response_cache(self) -> bool:
        """As it was started."""
        return self._settings.response_cache_bytes > 0

    def adopt(self) -> Ports | None:
        """Find it among the pod's processes."""
        self._process = next(self._servers(), None)
        if self._process is None:
            return None
        try:
            self._look(self._process)
        except psutil.Error:  # it has just ended
            self._process = None
            return None
        self.ports = self._fixed
        return self._fixed

    def _look(self, process: psutil.Process) -> None:
        words = process.cmdline()
        folder = inside(self._root(process), _told(words, BACKENDS_OPTION) or BACKENDS)
        every_ms = _told(words, METRICS_OPTION)
        self._metrics_every_s = float(every_ms) / 1000 if every_ms is not None else DEFAULT_METRICS_EVERY_S
        self.backends = tuple(sorted(each.name for each in folder.glob("*") if each.is_dir()))

    def start(self) -> Ports:
        """The kubelet does that."""
        return self._fixed

    async def ended(self) -> End:
        """Wait until it is there, and then for its end."""
        while True:
            if self.running or self.adopt() is not None:
                return await super().ended()
            await asyncio.sleep(LOOK_S)

    def gpus(self) -> int:
        """What the pod asks for."""
        return self._settings.gpus

    @property
    def memory_late_s(self) -> float:
        """As late as Triton's metrics of GPUs: they are sampled, and the samples read, at an interval."""
        return 2 * self._metrics_every_s + 0.1 if self._settings.gpus else 0.0

    def gpu_memory_bytes(self, of: Key | None) -> int | None:
        """Of the whole GPUs, which are the pod's alone; nobody can tell which version takes how much."""
        return gpu_memory_bytes(HOST, self._fixed.metrics) if of is None else None

    def python_packages(self) -> tuple[str, ...]:
        """Those that lie where the image's Python finds them."""
        if self._process is None:
            return ()
        folders = [found for pattern in PACKAGES for found in self._root(self._process).glob(pattern)]
        return tuple(name for name in PROBED_PACKAGES if any((folder / name).is_dir() for folder in folders))

    def _servers(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if words[0].endswith("tritonserver") and f"--id={self._settings.replica}" in words:
                yield process

    @staticmethod
    def _root(process: psutil.Process) -> Path:
        """The server's own file system."""
        return Path("/proc", str(process.pid), "root")
