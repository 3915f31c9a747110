"""`ctl` in this process, on a home and a directory registry of the test's own; a real ONNX model; a real controller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from controlplane.cli.main import main
from controlplane.core.models import Capabilities, FleetRecord, FleetShape
from controlplane.local.home import Home
from controlplane.local.scaling import Limits
from controlplane.local.system import FleetSettings, System, save_system
from controlplane.registry import Registry, open_registry


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Ctl = Callable[..., Answer]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("CTL_HOME_DIR", "CTL_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CTL_ACTOR", "tester@here")
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path / ".ctl")
    home.root.mkdir()
    return home


@pytest.fixture
def ctl(home: Home, capsys: pytest.CaptureFixture[str]) -> Ctl:
    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return run


@pytest.fixture
def registry(home: Home) -> Registry:
    return open_registry(str(home.registry))


def write_model(path: Path, *, scale: float = 2.0) -> Path:
    """A real ONNX model: y = scale · x, for FP32 [batch, 4]."""
    node = helper.make_node("Mul", ["x", "k"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    factor = helper.make_tensor("k", TensorProto.FLOAT, [1], [scale])
    graph = helper.make_graph([node], "scaling", [x], [y], [factor])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def two_versions(ctl: Ctl, tmp_path: Path, home: Home) -> None:
    for number in (1, 2):
        assert ctl("register", "m", write_model(tmp_path / "model.onnx", scale=float(number))).status == 0


@pytest.fixture
def fleet(registry: Registry) -> FleetRecord:
    """What a controller would have written of a fleet."""
    capabilities = Capabilities(
        server_version="2.51.0", backends=("python",), python_packages=("onnxruntime", "numpy"), response_cache=True
    )
    shape = FleetShape(name="cpu", default=True)
    return registry.update_fleet("cpu", lambda _: FleetRecord(shape=shape, capabilities=capabilities))


@contextmanager
def running_controller(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """A real controller whose fleet has no replicas, once it answers."""
    home.prepare()
    home.controller_file.unlink(missing_ok=True)
    save_system(
        System(registry=str(home.registry), fleets=(FleetSettings(name="cpu", replicas=Limits(min=0, max=0)),)), home
    )
    log = home.logs / "controller.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "controlplane.server", "--home", str(home.root)],
            stdout=output,
            stderr=output,
            env=dict(os.environ),
        )
    try:
        deadline = time.monotonic() + 60
        while not home.controller_file.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def controller(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """A real controller whose fleet has no replicas."""
    with running_controller(home) as process:
        yield process
