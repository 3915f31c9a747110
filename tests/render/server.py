"""A real tritonserver for tests: its own repository, ports given by the system, one model store."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytriton
import tritonclient.grpc as grpcclient

from controlplane.core.models import Capabilities, Manifest
from controlplane.local.processes import free_ports
from controlplane.render.render import render_model
from controlplane.render.rendered import CONFIG, RenderedModel

WHEEL = Path(pytriton.__file__).parent / "tritonserver"
START_DEADLINE_S = 60.0


class Server:
    """A running tritonserver over `root/repository`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = root / "repository"
        self.repository.mkdir(parents=True)
        self.log_file = root / "log"
        self._link_backend()
        for _ in range(3):
            self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
            self.popen = self._start()
            self.client = grpcclient.InferenceServerClient(f"127.0.0.1:{self.grpc_port}")
            try:
                self._await_live()
                return
            except PortTaken:
                self.stop()
        raise AssertionError("no port stayed free for tritonserver")

    def write(self, rendered: RenderedModel, files: Mapping[str, bytes]) -> None:
        """Write a model directory; `files` are the contents by SHA-256."""
        folder = self.repository / rendered.name
        for directory in rendered.directories:
            (folder / directory).mkdir(parents=True, exist_ok=True)
        for path, content in rendered.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else files[content.sha256])
        (folder / CONFIG).write_text(rendered.config_text)

    def serve(
        self, versions: Mapping[int, Manifest], files: Mapping[str, bytes], capabilities: Capabilities
    ) -> RenderedModel:
        """Render, write and load; raises the server's own error when it refuses."""
        rendered = render_model(versions, capabilities)
        self.write(rendered, files)
        self.client.load_model(rendered.name, client_timeout=60)
        return rendered

    def log(self) -> str:
        """All that the server has logged."""
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        """End it and whatever it started."""
        self.client.close()
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(timeout=15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(timeout=15)
        for path in Path("/dev/shm").glob(f"{self._prefix}*"):
            path.unlink(missing_ok=True)

    @property
    def _prefix(self) -> str:
        return f"test_render_{os.getpid()}_{self.grpc_port}_"

    def _link_backend(self) -> None:
        backend = self.root / "backends" / "python"
        backend.mkdir(parents=True)
        stub = WHEEL / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
        for file in (*(WHEEL / "backends" / "python").iterdir(), stub):
            (backend / file.name).symlink_to(file)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [
            str(WHEEL / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={self.root / 'backends'}",
            f"--cache-directory={WHEEL / 'caches'}",
            "--cache-config=local,size=1048576",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            "--rate-limit=execution_count",
            "--rate-limit-resource=slots:4",
            "--exit-timeout-secs=5",
            *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]
        environment = dict(os.environ) | {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        with self.log_file.open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _await_live(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            if self.popen.poll() is not None:
                if "already in use" in self.log():
                    raise PortTaken
                raise AssertionError(f"tritonserver ended: {self.log()[-3000:]}")
            with contextlib.suppress(grpcclient.InferenceServerException):
                if self.client.is_server_live():
                    return
            time.sleep(0.05)
        self.stop()
        raise AssertionError(f"tritonserver did not come up: {self.log()[-3000:]}")


class PortTaken(Exception):
    """Somebody else was given a port between our asking and our using it."""


@contextlib.contextmanager
def running(root: Path) -> Iterator[Server]:
    """A server for as long as the block runs."""
    server = Server(root)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(root / "repository", ignore_errors=True)
