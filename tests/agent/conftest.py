from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient

from controlplane.core.messages import ReplicaReport
from controlplane.local import processes
from controlplane.local.home import Home
from tests.agent.endpoint import Endpoint


@dataclass
class Replica:
    """An agent as it is started in earnest, with its server, under a home of its own."""

    endpoint: Endpoint
    folder: Path
    name: str = "cpu-0"
    arguments: list[str] = field(default_factory=list)
    agent: psutil.Process | None = None

    @property
    def home(self) -> Home:
        return self.endpoint.home

    def start(self, *arguments: str) -> None:
        self.arguments = list(arguments) or self.arguments
        self.endpoint.reports.clear()
        popen, _ = processes.start(
            [
                *(sys.executable, "-m", "controlplane.agent", f"--home={self.home.root}", f"--replica={self.name}"),
                *("--fleet=cpu", "--exit-timeout-s=2", *self.arguments),
            ],
            home=self.home.root,
            log_file=self.home.logs / "agent.log",
            environment=dict(os.environ),
        )
        self.agent = psutil.Process(popen.pid)
        self._popen = popen

    def kill_agent(self) -> None:
        self._popen.kill()
        self._popen.wait(10)

    def wait_agent(self, timeout_s: float = 30.0) -> int:
        return self._popen.wait(timeout_s)

    def server(self) -> psutil.Process:
        record = processes.read_record(self.home.replica(self.name) / "server.json")
        assert record is not None
        process = record.process()
        assert process is not None
        return process

    def client(self) -> grpcclient.InferenceServerClient:
        report = self.endpoint.wait(lambda each: each.server == "ready")
        return client_of(report)

    def add(self, value: float, *, model: str = "add", version: int = 1) -> float:
        with self.client() as client:
            return infer_add(client, value, model=model, version=version)

    def log(self) -> str:
        return (self.home.logs / "agent.log").read_text()

    def repository(self) -> set[str]:
        root = self.home.replica(self.name) / "models"
        found = set()
        for folder, _, names in os.walk(root):  # it passes over what is removed meanwhile
            found |= {str((Path(folder) / name).relative_to(root)) for name in names}
        return found


def client_of(report: ReplicaReport) -> grpcclient.InferenceServerClient:
    assert report.endpoint is not None
    return grpcclient.InferenceServerClient(f"{report.endpoint.host}:{report.endpoint.grpc_port}")


def infer_add(client: grpcclient.InferenceServerClient, value: float, *, model: str = "add", version: int = 1) -> float:
    tensor = grpcclient.InferInput("X", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.float32))
    answer = client.infer(model, [tensor], model_version=str(version), client_timeout=10)
    return float(answer.as_numpy("Y")[0, 0])


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    home = Home(tmp_path / "home")
    home.prepare()
    made = Endpoint(home)
    with made.serving():
        yield made


@pytest.fixture
def replica(endpoint: Endpoint, tmp_path: Path) -> Iterator[Replica]:
    """Not started yet. Whatever runs for its home is ended in the end."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    try:
        yield Replica(endpoint, folder)
    finally:
        processes.sweep(endpoint.home.root)
