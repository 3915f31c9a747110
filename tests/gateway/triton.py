"""A real Triton server for the gateway's tests, with small Python models whose answers say who gave them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from pathlib import Path

import httpx2
import psutil

from controlplane.core.routes import Endpoint
from controlplane.local.processes import free_ports, remove_shared_memory, stop
from tests.gateway.waiting import wait_for

SHIP = Path(next(iter(importlib.util.find_spec("pytriton").submodule_search_locations))) / "tritonserver"  # type: ignore[union-attr, arg-type]

# The stub's Python does not read PYTHONPATH by itself.
FIND_PACKAGES = """
import os, sys
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
"""

ECHO = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        answers = []
        for request in requests:
            data = pb.get_input_tensor_by_name(request, "IN").as_numpy()
            answers.append(pb.InferenceResponse([
                pb.Tensor("OUT", data), pb.Tensor("VERSION", np.array([self.version], dtype=np.int32))]))
        return answers
"""

REPEAT = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for i in range(int(pb.get_input_tensor_by_name(request, "IN").as_numpy()[0])):
                sender.send(pb.InferenceResponse([
                    pb.Tensor("OUT", np.array([i], dtype=np.float32)),
                    pb.Tensor("VERSION", np.array([self.version], dtype=np.int32))]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

# Answers when it is cancelled or once the file `open` lies in its repository; says in a file what happens.
SLOW = """
import os
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.file, self.open = (args["model_repository"] + name for name in ("/said", "/open"))
        self.version = int(args["model_version"])

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            data = pb.get_input_tensor_by_name(request, "IN").as_numpy()
            with open(self.file, "a") as file:
                file.write("started\\n")
            while not os.path.exists(self.open) and not sender.is_cancelled():
                time.sleep(0.005)
            with open(self.file, "a") as file:
                file.write("cancelled\\n" if sender.is_cancelled() else "answered\\n")
            sender.send(pb.InferenceResponse([
                pb.Tensor("OUT", data), pb.Tensor("VERSION", np.array([self.version], dtype=np.int32))]),
                flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

# Answers once the file `open` lies in its repository.
GATED = """
import os
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.folder = args["model_repository"]
        self.version = int(args["model_version"])

    def execute(self, requests):
        answers = []
        for request in requests:
            data = pb.get_input_tensor_by_name(request, "IN").as_numpy()
            while not os.path.exists(self.folder + "/open"):
                time.sleep(0.005)
            answers.append(pb.InferenceResponse([
                pb.Tensor("OUT", data), pb.Tensor("VERSION", np.array([self.version], dtype=np.int32))]))
        return answers
"""

# Does what the file `mood` in its repository says: fails, or takes so many seconds.
MOODY = """
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.file = args["model_repository"] + "/mood"
        self.version = int(args["model_version"])

    def execute(self, requests):
        try:
            with open(self.file) as file:
                mood = file.read()
        except FileNotFoundError:
            mood = "0"
        if mood == "fail":
            raise RuntimeError("in a bad mood")
        time.sleep(float(mood))
        return [
            pb.InferenceResponse([
                pb.Tensor("OUT", pb.get_input_tensor_by_name(request, "IN").as_numpy()),
                pb.Tensor("VERSION", np.array([self.version], dtype=np.int32))])
            for request in requests
        ]
"""

# The sum of a sequence's inputs so far.
SUM = """
import os
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            data = pb.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)
            start = pb.get_input_tensor_by_name(request, "START").as_numpy().reshape(-1)[0]
            corrid = pb.get_input_tensor_by_name(request, "CORRID")
            key = "" if corrid is None else str(corrid.as_numpy().reshape(-1)[0])
            if start:
                self.sums[key] = 0.0
            self.sums[key] += float(data[0])
            answers.append(pb.InferenceResponse([
                pb.Tensor("OUT", np.array([[self.sums[key]]], dtype=np.float32)),
                pb.Tensor("VERSION", np.array([[self.version]], dtype=np.int32))]))
        return answers
"""

PLAIN = """
backend: "python"
max_batch_size: 0
input [{ name: "IN" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [-1] }, { name: "VERSION" data_type: TYPE_INT32 dims: [1] }]
version_policy { all {} }
instance_group [{ kind: KIND_CPU count: 1 }]
"""

SEQUENCE = """
backend: "python"
max_batch_size: 8
input [{ name: "IN" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [1] }, { name: "VERSION" data_type: TYPE_INT32 dims: [1] }]
version_policy { all {} }
instance_group [{ kind: KIND_CPU count: 1 }]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  direct {}
  control_input [
    { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } },
    { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: %s } }
  ]
}
"""

# Triton 2.51 can't hand a text correlation id to this backend ("unexpected number of string elements").
TEXT_SEQUENCE = "\n".join(line for line in SEQUENCE.splitlines() if "CORRID" not in line).replace("] } },", "] } }")

DECOUPLED = PLAIN + "model_transaction_policy { decoupled: true }\n"

MODELS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "echo": (ECHO, PLAIN, (1, 2, 3)),
    "other": (ECHO, PLAIN, (1,)),
    "repeat": (REPEAT, DECOUPLED, (1,)),
    "slow": (SLOW, DECOUPLED, (1,)),
    "gated": (GATED, PLAIN, (1,)),
    "moody": (MOODY, PLAIN, (1,)),
    "sum": (SUM, SEQUENCE % "TYPE_UINT64", (1,)),
    "sumtext": (SUM, TEXT_SEQUENCE, (1,)),
}


def backends(folder: Path) -> Path:
    """A backend directory with the stub of this Python beside the backend's library."""
    folder = folder / "backends"
    python = folder / "python"
    if not python.is_dir():
        python.mkdir(parents=True)
        for file in (SHIP / "backends" / "python").iterdir():
            (python / file.name).symlink_to(file)
        stub = SHIP / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
        (python / "triton_python_backend_stub").symlink_to(stub / "triton_python_backend_stub")
    return folder


class Triton:
    """One server. `models` is its model repository. Its ports are what they are once `wait` has returned."""

    def __init__(self, name: str, folder: Path, models: tuple[str, ...] = ("echo", "other")) -> None:
        self.name = name
        self._loaded = models
        self.folder = folder / name
        self.models = self.folder / "models"
        self.shared = f"gatewaytest_{uuid.uuid4().hex[:8]}"
        for model in models:
            code, config, versions = MODELS[model]
            for version in versions:
                (self.models / model / str(version)).mkdir(parents=True)
                (self.models / model / str(version) / "model.py").write_text(FIND_PACKAGES + code)
            (self.models / model / "config.pbtxt").write_text(f'name: "{model}"\n{config}')
        self._backends = backends(folder)
        self._starts = 0
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self.grpc_port, self.http_port, self.metrics_port = free_ports(3)
        command = [
            str(SHIP / "bin" / "tritonserver"),
            f"--model-repository={self.models}",
            f"--backend-directory={self._backends}",
            f"--cache-directory={SHIP / 'caches'}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._loaded),
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            "--strict-readiness=false",
            "--exit-timeout-secs=2",
            f"--backend-config=python,shm-region-prefix-name={self.shared}",
            "--backend-config=python,shm-default-byte-size=1048576",
        ]
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
            "PYTHONPATH": os.pathsep.join(part for part in sys.path if part.endswith("site-packages"))
        }
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(replica=self.name, host="127.0.0.1", grpc_port=self.grpc_port, http_port=self.http_port)

    def said(self, word: str) -> int:
        """How often the model `slow` has said this: started, cancelled, answered."""
        file = self.models / "slow" / "said"
        return file.read_text().split().count(word) if file.exists() else 0

    def metrics(self) -> str:
        return httpx2.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text

    def wait(self) -> Triton:
        def ready() -> bool:
            if self.process.poll() is not None:
                said = (self.folder / "log").read_text()
                assert "already in use" in said and self._starts < 3, said[-4000:]
                self.stop()
                self._start()  # somebody else was given a port between our asking and our using it
            try:
                return httpx2.get(f"http://127.0.0.1:{self.http_port}/v2/health/ready").status_code == 200
            except httpx2.HTTPError:
                return False

        wait_for(ready, "Triton to be ready", timeout_s=120)
        return self

    def kill(self) -> None:
        """SIGKILL, and what its stubs leave behind."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        self.process.kill()
        self.process.wait()
        for member in family:
            if member.is_running():
                member.kill()
        remove_shared_memory(self.shared)

    def stop(self) -> None:
        if self.process.poll() is None:
            stop(psutil.Process(self.process.pid), grace_s=5)
            self.process.wait()
        remove_shared_memory(self.shared)


class Gate:
    """While it is shut, the model `slow` answers nothing on these servers. `with gate` opens it at the block's end,
    also when the test fails, so that nobody waits for an answer that does not come."""

    def __init__(self, servers: tuple[Triton, ...]) -> None:
        self._servers = servers

    def open(self) -> None:
        for each in self._servers:
            (each.models / "slow" / "open").touch()

    def shut(self) -> None:
        """When they have ended what they have."""
        wait_for(lambda: not any(map(self._busy, self._servers)), "the servers to end what they have")
        for each in self._servers:
            (each.models / "slow" / "open").unlink(missing_ok=True)

    @staticmethod
    def _busy(server: Triton) -> bool:
        return server.said("started") > server.said("answered") + server.said("cancelled")

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
