"""Replicas that can't do what the others of their fleet can: one is slow, one does not come up, one keeps ending, one
has lost memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.agent.test_memory import LEAVES_A_PROCESS
from tests.e2e.system import Load, System, eventually

SLOW = """\
fleets: [{name: cpu, replicas: 3, memory_bytes: 1Gi}]
gateway: {grpc_port: 0, http_port: 0, cold_wait_s: 60}
controller: {poll_s: 0.1, drain_s: 1, max_replicas: 3}
"""
"""The budget leaves no room for one that would replace it."""


LOSES = """\
fleets: [{name: cpu, replicas: 1, memory_bytes: 400Mi}]
gateway: {grpc_port: 0, http_port: 0, cold_wait_s: 60}
controller: {poll_s: 0.1, drain_s: 1, warm_s: 1}
"""


def reasons(system: System) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = system.told("/v1/fleets/cpu/explain")["reasons"]
    return found


def codes(system: System) -> set[str]:
    return {each["code"] for each in reasons(system)}


def led_to(system: System, model: str) -> set[str]:
    """The replicas that get unversioned requests."""
    (route,) = [each for each in system.told("/v1/routes") if each["model"] == model]
    return {name for target in route["targets"] for name in target["replicas"]}


def executed(system: System, replica: str, model: str) -> int:
    """How many executions its server has counted, as it says itself."""
    endpoint = system.replicas()[replica]["endpoint"]
    url = f"http://{endpoint['host']}:{endpoint['http_port']}/v2/models/{model}/versions/1/stats"
    (found,) = httpx2.get(url, trust_env=False).json()["model_stats"]
    return int(found["execution_count"])


def has_crashed(system: System, replica: str, times: int) -> bool:
    return int(system.replicas()[replica]["crashes"]) == times


@pytest.mark.timeout(600)
def test_a_slow_replica_gets_no_requests_and_is_tried_again(tmp_path: Path) -> None:
    system = System(tmp_path)
    (tmp_path / "system.yaml").write_text(SLOW)
    name = "args['model_repository'].split('/replicas/')[1].split('/')[0]"
    try:
        system.up()
        system.serve(
            "m",
            initialize=f"self.slow = os.path.join({str(tmp_path)!r}, 'slow-' + {name})",
            delay_s="0.25 if os.path.exists(self.slow) else 0.02",
        )
        eventually(lambda: led_to(system, "m") == {"cpu-0", "cpu-1", "cpu-2"}, 60)
        with Load(system.client, "m", clients=6) as load:
            (tmp_path / "slow-cpu-1").touch()
            eventually(lambda: led_to(system, "m") == {"cpu-0", "cpu-2"}, 180, "the slow one goes on being asked")
            (why,) = [each["text"] for each in reasons(system) if each["code"] == "EJECTED"]
            assert why.startswith("cpu-1 takes ")
            assert "SLOW" in codes(system), "it would be replaced, if there were room"
            load.more(200)  # the gateway has the table by now, and what was in flight has ended
            before = executed(system, "cpu-1", "m")
            load.more(200)
            assert executed(system, "cpu-1", "m") == before
            (tmp_path / "slow-cpu-1").unlink()
            eventually(lambda: led_to(system, "m") == {"cpu-0", "cpu-1", "cpu-2"}, 120, "it is not tried again")
            load.more(200)
            eventually(lambda: executed(system, "cpu-1", "m") > before, 30, "it gets no requests")
        assert not load.failures
        assert set(system.replicas()) == {"cpu-0", "cpu-1", "cpu-2"}
    finally:
        system.down()


@pytest.mark.timeout(600)
def test_a_replica_that_never_comes_up_gives_its_place_to_another(tmp_path: Path) -> None:
    system = System(tmp_path, "fleets: [{name: cpu, replicas: 2, memory_bytes: 1Gi}]")
    try:
        folder = system.home.replica("cpu-1")
        folder.mkdir(parents=True)
        (folder / "models").write_text("in the way of the model repository")
        system.ctl("up", "-d", "-f", str(system.write_definition()), "--timeout", "20")
        eventually(lambda: system.told_if_there("/v1/status"), 120, "the controller answers")
        system.serve("m")
        eventually(lambda: system.holders("m", 1) == {"cpu-0", "cpu-2"}, 120, "no other one in its place")
        eventually(lambda: set(system.replicas()) == {"cpu-0", "cpu-2"}, 120, "it stays")
        assert system.ask("m") == (6.0, "1")
    finally:
        system.down()


@pytest.mark.timeout(600)
def test_a_replica_whose_server_keeps_ending_is_replaced(tmp_path: Path) -> None:
    system = System(tmp_path, "fleets: [{name: cpu, replicas: 2, memory_bytes: 1Gi}]")
    try:
        system.up()
        system.serve("m")
        for crashes in (1, 2, 3):
            eventually(lambda: "cpu-1" in system.holders("m", 1), 120, "its server does not come up")
            system.kill("tritonserver", "cpu-1")
            eventually(partial(has_crashed, system, "cpu-1", crashes), 60)
        with Load(system.client, "m") as load:
            eventually(lambda: system.holders("m", 1) == {"cpu-0", "cpu-2"}, 180, "nobody replaces it")
            eventually(lambda: set(system.replicas()) == {"cpu-0", "cpu-2"}, 120, "it stays")
            load.more(100)
        assert not load.failures
        why = "cpu-1 is replaced: its server ended unexpectedly 3 times"
        assert why in (system.home.logs / "controller.log").read_text(), "soon nobody tells of it any more"
    finally:
        system.down()


@pytest.mark.timeout(600)
def test_a_replica_that_has_lost_memory_is_replaced_in_a_quiet_moment(tmp_path: Path) -> None:
    system = System(tmp_path)
    (tmp_path / "system.yaml").write_text(LOSES)
    try:
        system.up()
        system.serve("m")  # the backend's first model: what came with the backend is not lost
        leaves = "\n        ".join(LEAVES_A_PROCESS.strip().splitlines())
        system.ok("register", "leaves", str(system.write("leaves", initialize=leaves)))
        system.ok("promote", "leaves", "1")
        system.serve("leaves", factor=3)
        with Load(system.client, "m", clients=1, pause_s=0.05) as load:
            eventually(lambda: not system.holders("leaves", 1), 120, "what was stable before stays loaded")
            eventually(lambda: set(system.replicas()) == {"cpu-1"}, 180, "it is not replaced")
            assert system.ask("leaves") == (9.0, "2")
            load.more(100)
        assert not load.failures
        assert "MiB did not come back when models were unloaded" in (system.home.logs / "controller.log").read_text()
    finally:
        system.down()
