"""The server process itself: ports that are taken, what is left of it, how it is found again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Literal

import pytest

from controlplane.agent.server import Death
from controlplane.agent.settings import Settings
from controlplane.agent.triton.installation import find_installation
from controlplane.agent.triton.process import LocalProcess, Ports
from controlplane.agent.triton.server import TritonServer
from controlplane.core.names import Key
from controlplane.local import processes
from controlplane.local.home import Home


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.ups: asyncio.Queue[Mapping[Key, str]] = asyncio.Queue()
        self.deaths: list[Death] = []

    def server_up(self, loaded: Mapping[Key, Literal["ready", "loading"]]) -> None:
        self.ups.put_nowait(loaded)

    def server_down(self, death: Death) -> None:
        self.deaths.append(death)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = Home(tmp_path / "home")
    home.prepare()
    return Settings(home=home.root, replica="cpu-0", fleet="cpu", exit_timeout_s=1)


@contextlib.asynccontextmanager
async def supervised(server: TritonServer, heard: Heard) -> AsyncIterator[None]:
    task = asyncio.create_task(server.supervise(heard))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop()


async def test_a_port_that_is_taken_is_left_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the choice of a port and its use somebody else may take it."""
    server, heard = TritonServer(settings, LocalProcess(settings, find_installation())), Heard()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free_ports, first = processes.free_ports, [taken.getsockname()[1]]

        def unlucky(count: int, host: str = "127.0.0.1") -> tuple[int, ...]:
            return (*(first.pop() for _ in first[:1]), *free_ports(count, host))[:count]

        monkeypatch.setattr(processes, "free_ports", unlucky)
        async with supervised(server, heard):
            await asyncio.wait_for(heard.ups.get(), 120)
            assert server.status.crashes == 0
            assert len(heard.deaths) == 1
            assert heard.deaths[0].how == "start"
            assert "already in use" in heard.deaths[0].reason
            assert server.status.failed_starts == 0, "it has come up since"
    assert server.status.state == "stopped"
    assert list(processes.of_home(settings.home)) == []


async def test_starts_that_fail_are_counted_until_one_does_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = LocalProcess(settings, find_installation())
    server, heard = TritonServer(settings, process), Heard()
    start, counted = process.start, []

    def unlucky() -> Ports:
        counted.append(server.status.failed_starts)
        if len(counted) <= 2:
            raise OSError(28, "No space left on device")
        return start()

    monkeypatch.setattr(process, "start", unlucky)
    async with supervised(server, heard):
        await asyncio.wait_for(heard.ups.get(), 120)
        assert counted == [0, 1, 2]
        assert ["No space left" in each.reason for each in heard.deaths] == [True, True]
        assert (server.status.failed_starts, server.status.crashes) == (0, 0)


async def test_a_server_without_its_ports_is_replaced(settings: Settings) -> None:
    first, heard = TritonServer(settings, LocalProcess(settings, find_installation())), Heard()
    task = asyncio.create_task(first.supervise(heard))
    await asyncio.wait_for(heard.ups.get(), 120)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    record = processes.read_record(Home(settings.home).replica("cpu-0") / "server.json")
    assert record is not None
    (Home(settings.home).replica("cpu-0") / "ports.json").unlink()
    second = TritonServer(settings, LocalProcess(settings, find_installation()))
    async with supervised(second, heard):
        await asyncio.wait_for(heard.ups.get(), 120)
        assert record.process() is None


async def test_the_servers_environment_holds_no_secrets(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server, heard = TritonServer(settings, LocalProcess(settings, find_installation())), Heard()
    async with supervised(server, heard):
        await asyncio.wait_for(heard.ups.get(), 120)
        record = processes.read_record(Home(settings.home).replica("cpu-0") / "server.json")
        process = record.process() if record else None
        assert process is not None
        assert "AWS_SECRET_ACCESS_KEY" not in process.environ()
        assert Path(process.cwd()).is_relative_to(settings.home)
        assert os.listdir(process.cwd()) == []  # noqa: PTH208
        listening = [each.laddr.ip for each in process.net_connections() if each.status == "LISTEN"]
        assert len(listening) == 3
        assert all(address.removeprefix("::ffff:") == "127.0.0.1" for address in listening)
