"""A server that somebody else starts, as the kubelet does in a pod: found, watched, killed, and never ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from controlplane.agent.probes import answering
from controlplane.agent.server import Death
from controlplane.agent.settings import Settings
from controlplane.agent.triton.http import GPU_METRICS_EVERY_S
from controlplane.agent.triton.installation import find_installation
from controlplane.agent.triton.pod import PodProcess, arguments, inside, prefix
from controlplane.agent.triton.process import STUB, Ports
from controlplane.agent.triton.server import TritonServer
from controlplane.core.messages import ServerState
from controlplane.core.names import Key
from controlplane.local import processes
from tests.agent.test_process import Heard


class Kubelet:
    """Starts a server as the pod's container is started, again and again until told to leave it."""

    def __init__(self, settings: Settings, ports: Ports, folder: Path) -> None:
        installation = find_installation()
        backends = folder / "backends"
        installation.link_backends(backends)
        self._command = [
            str(installation.binary),
            *arguments(settings, ports),
            f"--backend-directory={backends}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
        ]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = processes.scrubbed_environment(folder, {**installation.environment(), "PATH": path})
        self.running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.running = subprocess.Popen(self._command, env=self._environment)

    def end(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.wait(30)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "data"
    return Settings(
        home=home, replica="pod-1", fleet="cpu", pod_ip="127.0.0.1", response_cache_bytes=0, exit_timeout_s=1
    )


@pytest.fixture
def ports() -> Ports:
    http, grpc, metrics = processes.free_ports(3)
    return Ports(http=http, grpc=grpc, metrics=metrics)


@pytest.fixture
def kubelet(settings: Settings, ports: Ports, tmp_path: Path) -> Iterator[Kubelet]:
    made = Kubelet(settings, ports, tmp_path)
    yield made
    made.end()


@contextlib.asynccontextmanager
async def supervised(server: TritonServer, heard: Heard) -> AsyncIterator[None]:
    task = asyncio.create_task(server.supervise(heard))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_it_is_found_killed_and_found_again(settings: Settings, ports: Ports, kubelet: Kubelet) -> None:
    process = PodProcess(settings, ports)
    assert process.repository.is_dir(), "the server starts on it"
    server, heard = TritonServer(settings, process), Heard()
    async with supervised(server, heard):
        kubelet.start()
        assert await asyncio.wait_for(heard.ups.get(), 60) == {}
        status = server.status
        assert status.endpoint is not None and status.metrics_port == ports.metrics
        assert (status.endpoint.host, status.endpoint.grpc_port) == ("127.0.0.1", ports.grpc)
        process.kill()
        kubelet.end()
        kubelet.start()
        assert await asyncio.wait_for(heard.ups.get(), 60) == {}
        assert [each.how for each in heard.deaths] == ["unknown"] and server.status.crashes == 1
    await server.stop()
    assert server.status.state == "stopped"
    assert kubelet.running is not None and kubelet.running.poll() is None, "the kubelet ends it"


async def test_a_container_that_has_not_begun_yet_has_not_failed_to_start(
    settings: Settings, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image may take minutes to come."""
    impatient = replace(settings, start_timeout_s=0.01)
    server, heard, thrice = TritonServer(impatient, PodProcess(impatient, ports)), Heard(), asyncio.Event()

    def note(death: Death) -> None:
        heard.deaths.append(death)
        if len(heard.deaths) == 3:
            thrice.set()

    monkeypatch.setattr(heard, "server_down", note)
    async with supervised(server, heard):
        await asyncio.wait_for(thrice.wait(), 30)
        assert {each.how for each in heard.deaths} == {"start"}
        assert server.status.failed_starts == 0


def test_what_is_not_the_pods_own_is_left_alone(settings: Settings, ports: Ports, tmp_path: Path) -> None:
    model = tmp_path / "add" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import sys; sys.stdin.read()")
    regions, stubs = [], []
    for name in ("ctl_other_", "ctl_pod_pod-10_", prefix(settings)):
        region = Path("/dev/shm") / f"{name}{tmp_path.name}"
        region.touch()
        regions.append(region)
        words = [str(tmp_path / STUB), str(model), region.name]
        stubs.append(subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE))
    try:
        PodProcess(settings, ports).clean_up()
        assert [each.exists() for each in regions] == [True, True, False]
        assert stubs[2].wait(30) == -signal.SIGKILL
        assert [each.poll() for each in stubs[:2]] == [None, None]
    finally:
        for stub in stubs:
            stub.kill()
            stub.communicate()
        for region in regions:
            region.unlink(missing_ok=True)


async def test_a_server_that_answers_before_it_is_found_is_waited_for(
    settings: Settings, ports: Ports, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.agent.triton.pod.LOOK_S", 4.0)
    server, heard = TritonServer(settings, PodProcess(settings, ports)), Heard()
    async with supervised(server, heard):
        await asyncio.sleep(0.5)  # it has looked once
        kubelet.start()
        assert await asyncio.wait_for(heard.ups.get(), 120) == {}
        assert server.status.capabilities is not None
        assert "python" in server.status.capabilities.backends, "or nothing could be registered"


async def test_where_the_server_sees_no_gpu_their_memory_is_not_known(
    settings: Settings, ports: Ports, tmp_path: Path
) -> None:
    asks = replace(settings, gpus=1)
    kubelet = Kubelet(asks, ports, tmp_path)
    kubelet.start()
    try:
        process = PodProcess(asks, ports)
        server, heard = TritonServer(asks, process), Heard()
        async with supervised(server, heard):
            await asyncio.wait_for(heard.ups.get(), 120)
            assert process.memory_late_s == 2 * GPU_METRICS_EVERY_S + 0.1, "as the server was told to measure"
            assert PodProcess(settings, ports).memory_late_s == 0, "who has no GPU waits for nothing"
            assert await asyncio.to_thread(server.memory_bytes) is None
            assert process.memory_bytes(Key("add", 1)) is None
    finally:
        kubelet.end()


def test_links_of_the_servers_file_system_are_followed_there(tmp_path: Path) -> None:
    (tmp_path / "usr" / "lib" / "server" / "backends").mkdir(parents=True)
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "server").symlink_to("/usr/lib/server")
    (tmp_path / "opt" / "beside").symlink_to("../usr/lib")
    (tmp_path / "circle").symlink_to("/circle")
    expected = tmp_path / "usr" / "lib" / "server" / "backends"
    assert inside(tmp_path, "/opt/server/backends") == expected
    assert inside(tmp_path, "/opt/beside/server/backends") == expected
    assert inside(tmp_path, "/../../opt/server/backends") == expected
    assert not inside(tmp_path, "/circle/backends").is_dir()


class Agent:
    def __init__(self) -> None:
        self.server_state: ServerState = "starting"
        self.stopped = asyncio.Event()

    async def drained(self) -> None:
        await self.stopped.wait()


async def test_the_kubelet_is_answered() -> None:
    agent = Agent()
    async with answering(agent, "127.0.0.1", 0, drain_s=30) as port, httpx2.AsyncClient() as http:

        async def ask(path: str) -> int:
            return int((await http.get(f"http://127.0.0.1:{port}{path}", timeout=60)).status_code)

        assert [await ask(path) for path in ("/livez", "/startupz", "/readyz", "/other")] == [200, 503, 503, 404]
        agent.server_state = "ready"
        assert [await ask(path) for path in ("/startupz", "/readyz")] == [200, 200]
        draining = asyncio.create_task(ask("/drain"))
        assert await ask("/readyz") == 200 and not draining.done(), "it serves until nothing is led here any more"
        agent.stopped.set()
        assert await draining == 200


async def test_a_drain_that_does_not_end_is_given_up() -> None:
    async with answering(Agent(), "127.0.0.1", 0, drain_s=0.1) as port, httpx2.AsyncClient() as http:
        assert (await http.get(f"http://127.0.0.1:{port}/drain", timeout=60)).status_code == 200
