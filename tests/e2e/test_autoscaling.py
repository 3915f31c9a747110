"""Replicas follow the load, to nothing and back, and no request fails on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as grpcclient
from tritonclient.utils import InferenceServerException

from controlplane.cli.addresses import gateway_addresses
from controlplane.client.access import read_access
from controlplane.local import processes
from controlplane.local.home import Home
from gateway.settings import Settings, write_settings
from tests.e2e.system import Load, System, eventually
from tests.waiting import until

DEFINITION = """\
fleets:
- name: cpu
  replicas: {min: 0, max: 3}
  scaling: {queue_ms: 60, down_after_s: 4, idle_s: 6}
  memory_bytes: 1Gi
"""

pytestmark = pytest.mark.timeout(900)  # a fleet grows and shrinks several times in a test, and each has its own limit


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("auto"), DEFINITION)
    try:
        made.up()
        yield made
    finally:
        made.down()


def fleet(system: System) -> dict[str, Any]:
    found: dict[str, Any] = system.ok("get", "fleets", "-o", "json").json()[0]
    return found


def why(system: System) -> str:
    return str(system.told("/v1/fleets/cpu/explain"))


def batching(system: System, name: str) -> str:
    """What is said of a model's batching; empty if nothing is."""
    told = system.told(f"/v1/models/{name}/explain")["batching"]
    return str(told[0]["text"]) if told else ""


def ready(system: System) -> set[str]:
    return {name for name, each in system.replicas().items() if each["server"] == "ready" and not each["stopping"]}


def said(system: System) -> list[str]:
    """What `ctl up` has told so far. It has seen what is over before a test can look."""
    return (system.home.logs / "up.log").read_text().splitlines()


def ever(system: System) -> set[str]:
    """All replicas that there have been."""
    return {found[1] for line in said(system) if (found := re.match(r"replica (\S+):", line))}


def started(system: System) -> list[str]:
    """The replicas that the controller has started so far, one by one."""
    lines = (system.home.logs / "controller.log").read_text().splitlines()
    return [json.loads(line)["replica"] for line in lines if '"event": "replica starts"' in line]


def test_a_new_fleet_has_one_replica_until_it_is_known_what_it_can_do(system: System) -> None:
    eventually(lambda: "replica cpu-0: ready" in said(system), 60, "there is none")
    eventually(lambda: not system.replicas(), 120, "and none while nothing is asked")
    eventually(lambda: "replica cpu-0: gone" in said(system), 60, "whoever reads along is told")
    assert ever(system) == {"cpu-0"}
    assert fleet(system)["desired"] == 0 and fleet(system)["backends"]


def test_a_promotion_starts_what_it_needs(system: System) -> None:
    assert system.serve("slow", delay_s=0.04) == 1
    eventually(lambda: "  slow@1 on cpu-0: ready" in said(system), 60, "it is loaded nowhere")
    assert ever(system) == {"cpu-0"}


def test_replicas_follow_the_load_up_and_down_to_zero(system: System) -> None:
    with Load(system.client, "slow", clients=16) as load:
        eventually(lambda: len(system.holders("slow", 1)) == 3, 120, "three replicas under load")
        eventually(lambda: "keeps" in (told := why(system)) and "busy" in told, 60, "it is not told why")
        eventually(
            lambda: batching(system, "slow").startswith("slow is executed in batches of"), 60, "it is not learned"
        )
        shares = [each["share"] for each in system.told("/v1/models/slow/explain")["batches"]]
        assert sum(shares) == pytest.approx(1.0, abs=0.1)
        load.more(200)
    assert not load.failures
    with Load(system.client, "slow", clients=1, pause_s=0.3) as load:
        eventually(lambda: len(ready(system)) == 1, 120, "one replica when the load is small")
    assert not load.failures
    eventually(lambda: not system.replicas(), 120, "none when nothing is asked")
    assert "nothing has been asked" in why(system)
    with system.client() as client:
        assert client.is_server_live() and client.is_server_ready(), "who looks at that first would else never ask"


def test_requests_that_fail_are_a_load_too(system: System) -> None:
    """Who raises for each request is asked all the same: its fleet grows, and does not go to zero."""
    system.serve("sour", execute="import time; time.sleep(0.05); raise RuntimeError('sour')")
    enough = threading.Event()

    def ask_on() -> None:
        while not enough.is_set():
            with pytest.raises(InferenceServerException, match="sour"):
                system.ask("sour")

    with ThreadPoolExecutor(16) as clients:
        asking = [clients.submit(ask_on) for _ in range(16)]
        try:
            eventually(lambda: len(system.holders("sour", 1)) > 1, 120, "more than one replica under load")
        finally:
            enough.set()
        for each in asking:
            each.result()
    eventually(lambda: not system.replicas(), 120, "none when nothing is asked")


def serve_and_let_go(system: System, name: str, **options: Any) -> None:
    """Promote such a model, and wait until the replica on which it was proven is gone."""
    loaded = re.compile(rf"  {name}@{system.serve(name, **options)} on cpu-\d+: ready")
    eventually(lambda: any(map(loaded.fullmatch, said(system))), 60, "it is loaded nowhere")
    eventually(lambda: not system.replicas(), 120, "none when nothing is asked")


async def test_five_hundred_requests_to_an_empty_fleet_are_held_and_answered(system: System) -> None:
    serve_and_let_go(system, "quick")
    given = grpcclient.InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.array([[3.0]], dtype=np.float32))
    async with grpcclient.InferenceServerClient(system.grpc) as client:
        asked = [client.infer("quick", [given], client_timeout=120) for _ in range(500)]
        answers = [float(each.as_numpy("y")[0, 0]) for each in await asyncio.gather(*asked)]
    assert answers == [6.0] * 500
    assert len(system.replicas()) >= 1


@contextlib.contextmanager
def second_gateway(system: System, home: Home) -> Iterator[str]:
    """Another gateway of the system, and its address."""
    home.prepare()
    write_settings(home.gateway, Settings(name="second", grpc_port=0, http_port=0))
    access = read_access(system.home.controller_file, system.home.token_file)
    given = ["--home", home.root, "--controller-url", access.url, "--token-file", system.home.token_file]
    command = [sys.executable, "-m", "gateway", *map(str, given)]
    environment = {**os.environ, processes.HOME_VARIABLE: str(home.root)}
    with (home.logs / "gateway.log").open("ab") as log:
        gateway = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        eventually(lambda: {"second"} <= {each["name"] for each in system.told("/v1/gateways") if each["ready"]})
        yield gateway_addresses(home).grpc
    finally:
        gateway.terminate()
        try:
            gateway.wait(60)
        finally:
            processes.sweep(home.root)


async def test_two_gateways_that_ask_at_once_start_one_replica(system: System, tmp_path: Path) -> None:
    serve_and_let_go(system, "quick", factor=3)
    before = started(system)
    with second_gateway(system, Home(tmp_path / "second")) as other:
        given = grpcclient.InferInput("x", [1, 1], "FP32")
        given.set_data_from_numpy(np.array([[3.0]], dtype=np.float32))
        async with (
            grpcclient.InferenceServerClient(system.grpc) as one,
            grpcclient.InferenceServerClient(other) as two,
        ):
            asked = [client.infer("quick", [given], client_timeout=120) for client in (one, two) * 10]
            answers = [float(each.as_numpy("y")[0, 0]) for each in await asyncio.gather(*asked)]
    assert answers == [9.0] * 20
    assert started(system)[len(before) :] == ["cpu-0"]
    eventually(lambda: not system.replicas(), 120, "none again, and nobody waits for the gateway that has ended")


def test_a_size_set_by_hand_comes_before_the_load(system: System) -> None:
    system.ok("scale", "cpu", "2", "--for", "1h", "--reason", "a launch")
    eventually(lambda: len(ready(system)) == 2, 60, "two replicas although nothing is asked")
    told = system.ok("explain", "fleet", "cpu").out
    assert "has set it to 2 until" in told and "a launch" in told
    system.ok("scale", "cpu", "--auto")
    eventually(lambda: not system.replicas(), 120, "none again")


def stopping(system: System) -> set[str]:
    return {name for name, each in system.replicas().items() if each["stopping"]}


def kill(system: System, *words: str) -> bool:
    """Whether there was one to kill."""
    try:
        system.kill(*words)
    except (ValueError, psutil.NoSuchProcess):  # or it has just ended by itself
        return False
    return True


def kill_as_it_grows_and_shrinks(system: System, victim: str, growing: str = "") -> Load:
    """Kill a process when a second replica has been ordered, and another of its kind when one is on its way out: of the
    replica `growing`, or of that one, if each replica has one. Returns the load of all that time."""
    each_has_one = victim in ("controlplane.agent", "tritonserver")
    assert system.ask("slow") == (6.0, "1")  # what is held dies with the gateway: the load begins when nothing is
    with Load(system.client, "slow", clients=1, pause_s=0.1) as few:
        with Load(system.client, "slow", clients=16) as many:
            eventually(lambda: len(system.replicas()) > 1, 120, "it has begun to grow")
            until(lambda: kill(system, victim, growing), what="it does not run")
            eventually(lambda: system.ctl("status").status == 0, 60, "the controller answers")
            eventually(lambda: len(system.holders("slow", 1)) == 3, 120, "three replicas all the same")
            many.calm()
            failed = len(many.failures)
            many.more(100)
            assert len(many.failures) == failed
        until(
            lambda: any(kill(system, victim, each if each_has_one else "") for each in stopping(system)),
            timeout_s=120,
            every_s=0.05,
            what="it has not begun to shrink, or too quickly",
        )
        eventually(lambda: system.ctl("status").status == 0, 60, "the controller answers")
        eventually(lambda: len(system.replicas()) == 1, 120, "one that serves is left")
        few.calm()
        failed = len(few.failures)
        few.more(10)
        assert len(few.failures) == failed
    few.failures.extend(many.failures)
    return few


@pytest.mark.parametrize(
    ("victim", "growing"),
    [
        pytest.param("controlplane.server", "", id="the controller"),
        pytest.param("-m gateway", "", id="the gateway's Python part"),
        pytest.param("controlplane.agent", "", id="an agent"),
        pytest.param("tritonserver", "cpu-1", id="a server that starts, or ends"),
    ],
)
def test_what_is_killed_in_the_middle_of_scaling_fails_no_request(system: System, victim: str, growing: str) -> None:
    assert not kill_as_it_grows_and_shrinks(system, victim, growing).failures


def test_envoy_is_killed_in_the_middle_of_scaling(system: System) -> None:
    failures = kill_as_it_grows_and_shrinks(system, "envoy").failures
    print(f"failed requests while Envoy was away, twice: {len(failures)}")


def test_ctl_up_itself_is_killed_in_the_middle_of_scaling(system: System) -> None:
    with Load(system.client, "slow", clients=16) as load:
        eventually(lambda: len(system.replicas()) > 1, 120, "it has begun to grow")
        system.kill("controlplane.cli.main")
        eventually(lambda: len(system.holders("slow", 1)) == 3, 120, "three replicas all the same")
        load.more(100)
    assert not load.failures
    eventually(lambda: not system.replicas(), 120, "nobody asks, and nobody is left")
    assert "`ctl up` is gone" in system.ok("status").out
    assert "gateway: it answers" in system.ctl("doctor").out
    for part in ("-m gateway", "envoy"):
        system.kill(part)
    assert "/v2/health/live does not answer" in system.ctl("doctor").out
    system.up()
    assert system.ask("slow") == (6.0, "1"), "what is in the registry is served anew"


def test_a_start_that_always_fails_is_told_and_comes_right_when_its_cause_is_gone(tmp_path: Path) -> None:
    system = System(tmp_path, "fleets: [{name: cpu, replicas: {min: 0, max: 2}, memory_bytes: 1Gi}]")
    try:
        folder = system.home.replica("cpu-0")
        folder.mkdir(parents=True)
        (folder / "models").write_text("in the way of the model repository")
        system.ctl("up", "-d", "-f", str(system.write_definition()), "--timeout", "20")
        eventually(lambda: system.told_if_there("/v1/status"), 120, "the controller answers")
        eventually(lambda: "cpu-0 is down: it can't be started" in why(system), 60)
        assert set(system.replicas()) == {"cpu-0"}, "nobody starts one after the other"
        (folder / "models").unlink()
        eventually(lambda: ready(system) == {"cpu-0"}, 120)
    finally:
        system.down()
