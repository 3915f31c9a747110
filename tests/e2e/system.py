"""A real system, run and used as people do: through `ctl` in processes of their own, and through tritonclient."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton_grpc

from controlplane.cli.addresses import gateway_addresses
from controlplane.client.reader import Reader
from controlplane.core.errors import Unavailable
from controlplane.local import processes
from controlplane.local.home import Home
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]

DOUBLER = """\
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        answers = []
        for request in requests:
            given = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            {execute}
            made = pb_utils.Tensor("y", given * {factor})
            answers.append(pb_utils.InferenceResponse([made]))
        return answers
"""

ENTRY = """\
backend: python
max_batch_size: 8
dynamic_batching: {{}}
inputs: [{{name: x, data_type: FP32, dims: [1]}}]
outputs: [{{name: y, data_type: FP32, dims: [1]}}]
resources: {{memory_bytes: {memory}}}
{more}
"""


def write_doubler(
    folder: Path,
    factor: int = 2,
    *,
    initialize: str = "pass",
    delay_s: float = 0.0,
    execute: str = "",
    memory: str = "64Mi",
    more: str = "",
) -> Path:
    """A folder with a small model that multiplies by `factor`. `execute`: a statement that replaces the delay."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(
        DOUBLER.format(factor=factor, initialize=initialize, execute=execute or f"time.sleep({delay_s})")
    )
    (folder / "model.yaml").write_text(ENTRY.format(memory=memory, more=more))
    return folder


@dataclass
class Done:
    """What a command printed, and how it ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed on standard output, read as JSON."""
        return json.loads(self.out)


@dataclass
class System:
    """One home and its system. `ctl` never raises: tests look at statuses."""

    folder: Path
    definition: str = "fleets: [{name: cpu, replicas: 2, memory_bytes: 1Gi}]"
    environment: dict[str, str] = field(default_factory=dict)
    gateway: str = "cold_wait_s: 60"

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    def ctl(self, *arguments: str, timeout_s: float = 120.0) -> Done:
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=self.folder,
            env={**os.environ, **self.environment},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "controlplane.cli.main", "--home", str(self.home.root), *arguments]

    def ok(self, *arguments: str, timeout_s: float = 120.0) -> Done:
        """`ctl`, which must end well."""
        done = self.ctl(*arguments, timeout_s=timeout_s)
        assert done.status == 0, f"ctl {' '.join(arguments)}: {done.status}\n{done.out}\n{done.err}"
        return done

    def write_definition(self) -> Path:
        """The definition's file; one that is there already stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "system.yaml"
        if not file.exists():
            file.write_text(
                self.definition
                + f"\ngateway: {{grpc_port: 0, http_port: 0, {self.gateway}}}"
                + "\ncontroller: {poll_s: 0.1, drain_s: 1}\n"
            )
        return file

    def up(self) -> None:
        self.ok("up", "-d", "-f", str(self.write_definition()))

    def down(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ctl("down")
        processes.sweep(self.home.root)

    # Models.

    def write(self, name: str, *, factor: int = 2, **options: Any) -> Path:
        return write_doubler(self.folder / "models" / f"{name}-{factor}", factor, **options)

    def serve(self, name: str, *, factor: int = 2, **options: Any) -> int:
        """Register and promote such a model; returns its version."""
        folder = self.write(name, factor=factor, **options)
        version: int = self.ok("register", name, str(folder), "-o", "json").json()["version"]
        self.ok("promote", name, str(version))
        return version

    # Requests.

    @property
    def grpc(self) -> str:
        return gateway_addresses(self.home).grpc

    @property
    def http(self) -> str:
        return gateway_addresses(self.home).http

    @contextlib.contextmanager
    def client(self) -> Iterator[triton_grpc.InferenceServerClient]:
        with contextlib.closing(triton_grpc.InferenceServerClient(self.grpc)) as made:
            yield made

    def ask(self, name: str, value: float = 3.0, version: str = "", timeout_s: float = 60.0) -> tuple[float, str]:
        """The answer and the version that gave it."""
        with self.client() as client:
            return infer(client, name, value, version, timeout_s)

    # What runs.

    def told(self, path: str) -> Any:
        """What the controller answers: for waiting. A `ctl` for each look would keep a CPU busy."""
        with Reader.of(self.home) as reader:
            return reader.get(path)

    def told_if_there(self, path: str) -> Any:
        """The same; None while the controller is away."""
        with contextlib.suppress(Unavailable):
            return self.told(path)
        return None

    def replicas(self) -> dict[str, Any]:
        return {each["name"]: each for each in self.told("/v1/replicas")}

    def holders(self, name: str, version: int, state: str = "ready") -> set[str]:
        """The replicas that have a version."""
        return {
            each["name"]
            for each in self.replicas().values()
            for copy in each["copies"]
            if (copy["model"], copy["version"], copy["state"]) == (name, version, state)
        }

    def processes(self, *words: str) -> list[psutil.Process]:
        """Running processes of this home in whose command line all words occur."""
        found = []
        for process in processes.of_home(self.home.root):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    found.append(process)
        return sorted(found, key=lambda each: each.pid)

    def kill(self, *words: str) -> psutil.Process:
        """kill −9 of the first such process."""
        (process, *_) = self.processes(*words)
        process.kill()
        return process


def infer(
    client: triton_grpc.InferenceServerClient, name: str, value: float, version: str = "", timeout_s: float = 60.0
) -> tuple[float, str]:
    given = triton_grpc.InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.array([[value]], dtype=np.float32))
    result = client.infer(name, [given], model_version=version, client_timeout=timeout_s)
    return float(result.as_numpy("y")[0, 0]), result.get_response().model_version


class Load:
    """Clients that ask one model, with a pause after each answer, and count answers by version. Wrong answers are
    failures too. `client` makes one.

    The pause that is given leaves hundreds of requests a second, and the machine's cores to what is tested.
    """

    def __init__(
        self,
        client: Callable[[], triton_grpc.InferenceServerClient],
        name: str,
        *,
        clients: int = 4,
        factors: tuple[int, ...] = (2,),
        pause_s: float = 0.005,
    ) -> None:
        self.answers: Counter[str] = Counter()
        self.values: set[tuple[str, float]] = set()
        """Versions with what they answered."""
        self.failures: list[tuple[float, str]] = []
        self.last_at = time.monotonic()
        self._client, self._name, self._factors = client, name, factors
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(50 if self._pause_s < 0.1 else 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        with self._client() as client:
            while not self._stop.is_set():
                try:
                    answer, version = infer(client, self._name, 3.0, timeout_s=60)
                    assert answer in {3.0 * factor for factor in self._factors}, answer
                except Exception as error:  # noqa: BLE001 - each is counted, and shown when the test fails
                    with self._lock:
                        self.failures.append((time.monotonic(), str(error)[:200]))
                    self._stop.wait(max(self._pause_s, 0.02))
                    continue
                with self._lock:
                    self.answers[version] += 1
                    self.values.add((version, answer))
                    self.last_at = time.monotonic()
                self._stop.wait(self._pause_s)

    def calm(self, quiet_s: float = 5.0) -> None:
        """Wait until no request has failed for a while: a channel tries to connect again every few seconds."""
        until(
            lambda: not self.failures or time.monotonic() - self.failures[-1][0] > quiet_s,
            what=f"requests to {self._name} go on failing",
        )

    def more(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait for so many more answers."""
        wanted = sum(self.answers.values()) + count
        until(
            lambda: sum(self.answers.values()) >= wanted,
            timeout_s=timeout_s,
            what=f"no {count} more answers: {dict(self.answers)}, {self.failures[-3:]}",
        )

    def until_version(self, version: int, timeout_s: float = 60.0) -> None:
        """Wait for an answer of a version."""
        until(lambda: self.answers[str(version)] > 0, timeout_s=timeout_s)


def waits_for(file: Path) -> str:
    """For a model's `initialize`: it ends when the file is there, so a load lasts as long as the test wants it to."""
    return f"while not os.path.exists({str(file)!r}): time.sleep(0.02)"


def eventually(condition: Callable[[], Any], timeout_s: float = 60.0, what: str = "") -> Any:
    """`until` for conditions that ask the controller."""
    return until(condition, timeout_s=timeout_s, every_s=0.2, what=what)
