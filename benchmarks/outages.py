"""What a kill −9 of each process costs the clients: requests that failed, and the longest time without an answer.

Run ``python -m benchmarks.outages``. A system with one replica, and one with two; a client over gRPC and one over HTTP
ask one request after the other, 10 ms after each answer, never the same one again. No limit: the figures are for docs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from benchmarks.ending import scratch
from benchmarks.throughput import ctl
from controlplane.local import processes
from examples import models
from examples.interrupts import interruptible

Ask = Callable[[], None]
PAUSE_S, QUIET_S, DEADLINE_S = 0.01, 2.0, 120.0
WAIT_S = 30
"""The clients' own deadline, in seconds."""
VICTIMS: Sequence[tuple[str, Sequence[str]]] = (
    ("controller", ("controlplane.server",)),
    ("agent", ("controlplane.agent",)),
    ("gateway's Python part", ("-m gateway",)),
    ("Envoy", ("envoy ",)),
    ("Triton", ("tritonserver",)),
    ("Triton and its agent", ("tritonserver", "controlplane.agent")),
    ("all five", ("controlplane.server", "controlplane.agent", "-m gateway", "envoy ", "tritonserver")),
)


def over_grpc(url: str) -> tuple[Ask, Callable[[], None]]:
    """A way to ask, and one to end it."""
    client = grpcclient.InferenceServerClient(url)
    given = grpcclient.InferInput("bytes", [1, 2048], "INT32")
    given.set_data_from_numpy(np.full((1, 2048), 65, dtype=np.int32))
    return lambda: client.infer("magika", [given], client_timeout=WAIT_S), client.close


def over_http(url: str) -> tuple[Ask, Callable[[], None]]:
    """The same over HTTP."""
    client = httpclient.InferenceServerClient(url, network_timeout=WAIT_S, connection_timeout=WAIT_S)
    given = httpclient.InferInput("bytes", [1, 2048], "INT32")
    given.set_data_from_numpy(np.full((1, 2048), 65, dtype=np.int32))
    return lambda: client.infer("magika", [given]), client.close


class Client:
    """Asks without an end, and notes when it was answered and when not."""

    def __init__(self, connect: Callable[[str], tuple[Ask, Callable[[], None]]], url: str) -> None:
        self.answered: list[float] = []
        self.failed: list[float] = []
        self._connect, self._url = connect, url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        ask, close = self._connect(self._url)
        while not self._stop.wait(PAUSE_S):
            try:
                ask()
            except Exception:  # noqa: BLE001 - whatever it is, the client had no answer
                self.failed.append(time.monotonic())
                with contextlib.suppress(Exception):
                    close()
                ask, close = self._connect(self._url)
            else:
                self.answered.append(time.monotonic())
        close()

    def end(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(WAIT_S)

    def cost(self) -> tuple[int, float]:
        """Failed requests, and the longest time from one answer to the next in seconds."""
        gaps = (after - before for before, after in zip(self.answered, self.answered[1:], strict=False))
        return len(self.failed), max(gaps, default=0.0)


@contextlib.contextmanager
def system(folder: Path, replicas: int) -> Iterator[Path]:
    """A running system that serves the classifier from so many replicas."""
    home = folder / f"replicas-{replicas}"
    home.mkdir()
    definition = home / "system.yaml"
    definition.write_text(
        f"gateway: {{grpc_port: 0, http_port: 0}}\nfleets: [{{name: cpu, replicas: {replicas}, memory_bytes: 1Gi}}]\n"
    )
    ctl(home, "up", "-d", "-f", str(definition))
    ctl(home, "register", "magika", str(models.prepare("magika", folder / f"models-{replicas}")))
    ctl(home, "promote", "magika", "1")
    settle(home, replicas)
    yield home
    ctl(home, "down")


def settle(home: Path, replicas: int) -> None:
    """Wait until everything runs, and every replica has the model. Raises TimeoutError."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if _ready(home) == replicas and ctl(home, "status", "-o", "json")["settled"]:
                return
        time.sleep(0.2)
    raise TimeoutError("the system does not come back")


def _ready(home: Path) -> int:
    found: list[dict[str, Any]] = ctl(home, "get", "replicas", "-o", "json")
    return sum(any(copy["state"] == "ready" for copy in each["copies"]) for each in found)


def kill(home: Path, victims: Sequence[str]) -> None:
    """kill −9 of one process of each kind."""
    running = sorted(processes.of_home(home), key=lambda each: each.pid)
    lines = {each: " ".join(each.cmdline()) + " " for each in running}
    for process in [next(each for each, line in lines.items() if words in line) for words in victims]:
        process.kill()


def main() -> int:
    """Measure and print."""
    columns = "   ".join(f"{protocol + ': failed':>12} {'longest s':>9}" for protocol in ("gRPC", "HTTP"))
    print(f"{'killed':24} {'replicas':>8}   {columns}")
    with scratch() as folder:
        for replicas in (1, 2):
            with system(folder, replicas) as home:
                for name, victims in VICTIMS:
                    at = ctl(home, "status", "-o", "json")
                    clients = [Client(over_grpc, at["grpc"]), Client(over_http, at["http"])]
                    time.sleep(QUIET_S)
                    kill(home, victims)
                    time.sleep(QUIET_S)
                    settle(home, replicas)
                    time.sleep(QUIET_S)
                    for client in clients:
                        client.end()
                    costs = "   ".join(f"{failed:12} {longest:9.2f}" for failed, longest in (c.cost() for c in clients))
                    print(f"{name:24} {replicas:8}   {costs}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
