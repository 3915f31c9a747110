"""Local replicas: processes that are found again, started again, and gone when they are removed."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from controlplane.core.models import FleetShape
from controlplane.fleet.local import LocalFleet, deal, stopped_file
from controlplane.local import processes
from controlplane.local.home import Home
from tests.standins import nvidia_smi
from tests.waiting import until

CPU = FleetShape(name="cpu", disk_bytes=1 << 30)


def agent_of(home: Home, replica: str = "cpu-0") -> psutil.Process | None:
    record = processes.read_record(home.replica(replica) / "agent.json")
    return record.process() if record else None


def server_of(home: Home, replica: str = "cpu-0") -> psutil.Process | None:
    record = processes.read_record(home.replica(replica) / "server.json")
    return record.process() if record else None


async def started(home: Home) -> tuple[psutil.Process, psutil.Process]:
    """The agent and the server, once both are there and the agent no longer starts the server."""
    await asyncio.to_thread(until, lambda: b"server is up" in log_of(home))
    agent, server = agent_of(home), server_of(home)
    assert agent is not None
    assert server is not None
    return agent, server


def log_of(home: Home) -> bytes:
    file = home.logs / "cpu-0-agent.log"
    return file.read_bytes() if file.exists() else b""


async def test_an_agent_is_given_no_credentials(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    await LocalFleet(home).start(CPU, "cpu-0")
    agent = agent_of(home)
    assert agent is not None
    environment = until(agent.environ)  # the kernel shows none while the program is being put in place
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["https_proxy"] == "http://127.0.0.1:1"


async def test_gpus_are_dealt_out(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'GPU 0: one (UUID: GPU-a)'; echo 'GPU 1: another (UUID: GPU-b)'")
    fleet = LocalFleet(home)
    for name in ("cpu-0", "cpu-1", "cpu-2"):
        await fleet.start(replace(CPU, gpus=1), name)
    await fleet.remove("cpu-1")
    await fleet.start(replace(CPU, gpus=1), "cpu-2")  # again: it stays where it is, though another is free
    await fleet.start(replace(CPU, gpus=1), "cpu-3")
    seen = {}
    for name in ("cpu-0", "cpu-2", "cpu-3"):
        server = await asyncio.to_thread(until, partial(server_of, home, name))
        assert server is not None
        seen[name] = (await asyncio.to_thread(until, server.environ))["CUDA_VISIBLE_DEVICES"]
    assert seen == {"cpu-0": "0", "cpu-2": "0", "cpu-3": "1"}


@pytest.mark.parametrize(
    ("wanted", "present", "taken", "expected"),
    [
        pytest.param(0, 4, [], (), id="none"),
        pytest.param(1, 4, [(0,), (1,)], (2,), id="a free one"),
        pytest.param(2, 4, [(1,), (2,)], (0, 3), id="two free ones"),
        pytest.param(1, 2, [(0,), (1,), (0,)], (1,), id="the least used"),
        pytest.param(2, 3, [(0,)], (1, 2), id="the free ones before the first"),
        pytest.param(4, 2, [(0,)], (0, 1), id="no more than there are"),
        pytest.param(2, 0, [], (), id="there is none"),
        pytest.param(1, 1, [(3,)], (0,), id="one that is gone"),
    ],
)
def test_which_gpus(wanted: int, present: int, taken: list[tuple[int, ...]], expected: tuple[int, ...]) -> None:
    assert deal(wanted, present, taken) == expected


async def test_a_dead_agent_is_started_again_and_finds_its_server(home: Home) -> None:
    fleet = LocalFleet(home)
    await fleet.start(CPU, "cpu-0")
    agent, server = await started(home)
    agent.kill()
    async with asyncio.timeout(30):
        while (again := agent_of(home)) is None or again == agent:
            await fleet.list()
            await asyncio.sleep(0.05)
    await asyncio.to_thread(until, lambda: log_of(home).count(b"server is up") == 2)
    assert server_of(home) == server


async def test_a_record_that_can_not_be_read_is_left_alone(home: Home) -> None:
    home.replica("cpu-7").mkdir(parents=True)
    (home.replica("cpu-7") / "replica.json").write_text("{")
    fleet = LocalFleet(home)
    await fleet.start(CPU, "cpu-0")
    assert [each.name for each in await fleet.list()] == ["cpu-0"]
    assert (home.replica("cpu-7") / "replica.json").exists()


async def test_what_has_ended_since_it_was_told_to_is_removed_by_whoever_comes_next(home: Home) -> None:
    await LocalFleet(home).start(CPU, "cpu-0")
    agent, server = await started(home)
    stopped_file(home, "cpu-0").touch()
    agent.kill()
    processes.wait_ended([agent], timeout_s=10)
    fleet = LocalFleet(home)  # the controller was killed meanwhile
    assert await fleet.list() == ()
    assert not home.replica("cpu-0").exists()
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    await fleet.start(CPU, "cpu-0")  # the name is wanted again
    assert agent_of(home) is not None
    assert (await fleet.list())[0].state == "running"


async def test_nothing_is_left_of_a_removed_replica(home: Home) -> None:
    fleet = LocalFleet(home)
    await fleet.start(CPU, "cpu-0")
    agent, server = await started(home)
    agent.kill()  # its server is nobody's now
    await fleet.remove("cpu-0")
    assert processes.wait_ended([server], timeout_s=0)
    assert list(processes.of_home(home.root)) == []
    assert not home.replica("cpu-0").exists()
    prefix = processes.shared_memory_prefix(home.root)
    assert not [each for each in os.listdir("/dev/shm") if each.startswith(prefix)]  # noqa: PTH208
