"""kill −9 of everything, one after the other: inference goes on, or comes back by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.local import processes
from controlplane.local.supervisor import owner
from tests.e2e.system import Load, System, eventually, waits_for


def recovered(system: System) -> bool:
    found = system.told_if_there("/v1/status")
    return bool(
        found and found["settled"] and found["replicas_ready"] == found["replicas_wanted"] and found["gateways_ready"]
    )


def took(what: str, since: float) -> None:
    """Leave a figure for whoever reads the test's output; nothing is asserted on it."""
    print(f"{what}: {time.monotonic() - since:.1f} s")


def test_the_controller_is_killed(system: System) -> None:
    system.serve("under-controller")
    epoch = system.ok("status", "-o", "json").json()["epoch"]
    with Load(system.client, "under-controller") as load:
        started = time.monotonic()
        system.kill("controlplane.server")
        load.more(200)
        eventually(lambda: recovered(system) and system.told("/v1/status")["epoch"] > epoch)
        took("the controller decides again", started)
        load.more(100)
    assert not load.failures
    assert system.serve("under-controller", factor=3) == 2, "the new one carries rollouts out"


def test_the_python_part_of_the_gateway_is_killed(system: System) -> None:
    system.serve("under-gateway")
    with Load(system.client, "under-gateway") as load:
        before = {each.pid for each in system.processes("-m gateway")}
        system.kill("-m gateway")
        load.more(200)
        eventually(lambda: {each.pid for each in system.processes("-m gateway")} - before)
        eventually(lambda: recovered(system))
        load.more(100)
    assert not load.failures
    assert system.serve("under-gateway", factor=3) == 2, "new routes get through"
    assert system.ask("under-gateway") == (9.0, "2")


def test_envoy_is_killed(system: System) -> None:
    system.serve("under-envoy")
    port = system.grpc
    with Load(system.client, "under-envoy") as load:
        killed_at = time.monotonic()
        system.kill("envoy")
        load.more(100)
        took("Envoy answers again", killed_at)
    assert system.grpc == port
    assert system.ask("under-envoy")[0] == 6.0
    print(f"failed requests while Envoy was away: {len(load.failures)}")


def test_an_agent_is_killed(system: System) -> None:
    system.serve("under-agent")
    with Load(system.client, "under-agent") as load:
        before = {each.pid for each in system.processes("controlplane.agent")}
        servers = {each.pid for each in system.processes("tritonserver")}
        system.kill("controlplane.agent", "cpu-0")
        load.more(200)
        eventually(lambda: {each.pid for each in system.processes("controlplane.agent")} - before)
        eventually(lambda: recovered(system))
        load.more(100)
    assert not load.failures
    assert servers <= {each.pid for each in system.processes("tritonserver")}, "the servers were adopted"
    assert system.serve("under-agent", factor=3) == 2


def test_a_server_is_killed(system: System) -> None:
    system.serve("under-server")
    eventually(lambda: system.holders("under-server", 1) == {"cpu-0", "cpu-1"})
    with Load(system.client, "under-server") as load:
        killed_at = time.monotonic()
        system.kill("tritonserver", "cpu-0")
        load.more(200)
        eventually(lambda: system.replicas()["cpu-0"]["crashes"] > 0)
        eventually(lambda: system.holders("under-server", 1) == {"cpu-0", "cpu-1"})
        took("the killed server has its models again", killed_at)
        load.more(100)
    assert not load.failures, "the other replica had it"


def test_the_only_server_is_killed(start: Callable[..., System]) -> None:
    system = start("fleets: [{name: cpu, replicas: 1}]")
    system.serve("alone")
    killed_at = time.monotonic()
    system.kill("tritonserver")

    def answers() -> bool:
        try:
            return system.ask("alone", timeout_s=10)[0] == 6.0
        except Exception:  # noqa: BLE001 - until it is back, any failure is expected
            return False

    eventually(answers)
    took("the only server answers again", killed_at)


def test_two_systems_in_one_home_are_refused(system: System) -> None:
    done = system.ctl("up")
    assert done.status == 5
    assert "ctl down" in done.err
    assert recovered(system)


def test_of_two_systems_that_start_in_one_home_at_once_one_is_refused(start: Callable[..., System]) -> None:
    system = start("fleets: [{name: cpu, replicas: 1}]")
    system.ok("down")
    both = [
        subprocess.Popen(system.command("up", "-d"), cwd=system.folder, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [each.communicate(timeout=120)[1] for each in both]
    assert sorted(each.returncode for each in both) == [0, 5], said
    assert sum("ctl down" in text for text in said) == 1
    eventually(lambda: recovered(system))
    assert [each["name"] for each in system.ok("get", "fleets", "-o", "json").json()] == ["cpu"], "as the last time"


def test_a_home_below_which_no_model_can_start_is_refused(tmp_path: Path) -> None:
    system = System(tmp_path / "a folder")
    system.folder.mkdir()
    done = system.ctl("up", "-d")
    assert done.status == 2
    assert "--home" in done.err
    assert not system.home.root.exists()


def test_a_port_that_is_taken_is_named(system: System, start: Callable[..., System]) -> None:
    taken = system.grpc.rpartition(":")[2]
    other = System(system.folder.parent / "taken")
    other.folder.mkdir()
    (other.folder / "system.yaml").write_text(f"gateway: {{grpc_port: {taken}, http_port: 0}}\n")
    try:
        done = other.ctl("up", "-d", "--timeout", "120", "-f", "system.yaml")
        assert done.status == 5
        assert taken in done.err
        assert "grpc_port" in done.err
        (other.folder / "system.yaml").write_text("gateway: {grpc_port: 0, http_port: 0}\n")
        other.ok("up", "-d", "-f", "system.yaml")
        other.ok("down")
        (other.folder / "system.yaml").write_text("gateway: {grpc_port: 9, http_port: 9}\n")
        done = other.ctl("up", "-d", "-f", "system.yaml")
        assert (done.status, "http_port" in done.err) == (2, True)
    finally:
        other.down()


def test_ctl_up_in_the_foreground_leaves_nothing_when_interrupted(system: System) -> None:
    other = System(system.folder.parent / "foreground")
    other.folder.mkdir()
    (other.folder / "system.yaml").write_text("gateway: {grpc_port: 0, http_port: 0}\n")
    for seen in ("home ", "gateway", "ready: gRPC"):  # as early as it says anything, half way, and when it is ready
        process = subprocess.Popen(other.command("up", "-f", "system.yaml"), cwd=other.folder, stderr=subprocess.PIPE)
        assert process.stderr is not None
        for line in process.stderr:
            if seen.encode() in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().decode()
        assert process.wait(60) == 0, rest
        assert "Traceback" not in rest
        assert not list(processes.of_home(other.home.root))
        assert not list(Path("/dev/shm").glob(processes.shared_memory_prefix(other.home.root) + "*"))


def test_an_interrupted_start_up_is_cleared_away_by_the_next_one(system: System) -> None:
    other = System(system.folder.parent / "abandoned")
    other.definition = "fleets: [{name: cpu}]"
    try:
        other.up()
        pid = owner(other.home)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: owner(other.home) is None)
        assert other.processes("tritonserver"), "kill −9 of `ctl up` leaves what it started"
        other.up()
        assert len(other.processes("tritonserver")) == 1
        other.serve("again")
        assert other.ask("again")[0] == 6.0
    finally:
        other.down()


@pytest.mark.parametrize("victim", ["controlplane.server", "controlplane.agent"])
def test_a_rollout_survives_a_kill(system: System, victim: str) -> None:
    name = f"survivor-{victim.rpartition('.')[2]}"
    system.serve(name)
    over = system.folder / f"{name}-is-killed"
    folder = system.write(name, factor=3, initialize=waits_for(over))
    system.ok("register", name, str(folder))
    system.ok("promote", name, "2", "--no-wait")
    eventually(lambda: any(system.holders(name, 2, state) for state in ("downloading", "loading")))
    system.kill(victim)
    over.touch()
    with Load(system.client, name, factors=(2, 3)) as load:
        load.until_version(2)
    assert not load.failures
