"""A gateway as a pod's: everything is given to it by arguments, it is probed, and drained before it is ended."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from controlplane.core.errors import InvalidInput
from controlplane.core.routes import RouteTable
from controlplane.local.processes import free_ports
from gateway.__main__ import make, parse
from gateway.replicas import Replicas
from gateway.settings import Settings, write_settings
from tests.gateway.asking import stream
from tests.gateway.running import Running
from tests.gateway.triton import Gate, Triton
from tests.gateway.waiting import wait_for

NAME = "serving-gateway-7d4b9c-x2x5q"


class Pod(Running):
    """A gateway with nothing in its home."""

    port = metrics_port = 0

    def arguments(self) -> list[str]:
        if not self.port:
            self.port, self.metrics_port = free_ports(2)
        self.controller.table = RouteTable()  # it has none yet
        beside = self.home.root.parent
        (beside / "token").write_text(self.home.token_file.read_text())
        for file in (self.home.token_file, self.home.controller_file):
            file.unlink(missing_ok=True)
        (self.home.gateway / "settings.json").replace(beside / "given.json")
        return [
            f"--home={self.home.root}",
            f"--name={NAME}",
            f"--settings={beside / 'given.json'}",
            f"--controller-url={self.controller.url}",
            f"--token-file={beside / 'token'}",
            f"--port={self.port}",
            f"--metrics-port={self.metrics_port}",
            "--drain-s=300",
            "--grace-s=1",
        ]

    def probe(self, path: str) -> httpx2.Response:
        return httpx2.get(f"http://127.0.0.1:{self.port}{path}", timeout=60)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path / "home")
    try:
        yield made
    finally:
        made.stop()


def streamed(pod: Pod, model: str) -> list[object]:
    """The answers on one stream."""
    with pod.grpc() as client:
        return [*stream(client, [(model, "", 6.0)], headers={"x-model-name": model})]


def test_it_is_ready_with_its_first_table_until_it_drains(pod: Pod, full_table: RouteTable, gate: Gate) -> None:
    assert pod.controller.latest.gateway == NAME
    assert pod.probe("/livez").status_code == 200
    answer = pod.probe("/readyz")
    assert (answer.status_code, "no route table" in answer.text) == (503, True)
    pod.controller.put(full_table)
    assert pod.probe("/readyz").status_code == 200

    with httpx2.Client(base_url=f"http://{pod.http_url}", timeout=60) as client, ThreadPoolExecutor(2) as threads, gate:
        ready = "/v2/models/echo/versions/2/ready"
        assert "close" not in client.get(ready).headers.get("connection", "")
        request: Future[list[object]] = threads.submit(streamed, pod, "slow")
        wait_for(lambda: in_flight(pod), "the request to be in flight")
        draining = threads.submit(pod.probe, "/drain")
        wait_for(lambda: pod.probe("/readyz").status_code == 503, "it to say that it drains")
        assert "draining" in pod.probe("/readyz").text
        assert pod.probe("/livez").status_code == 200
        wait_for(lambda: client.get(ready).headers.get("connection") == "close", "clients to be told to go elsewhere")
        assert httpx2.get(f"http://{pod.http_url}{ready}", timeout=60).status_code == 200, (
            "who comes all the same is served"
        )
        assert not draining.done() and not request.done(), "a request is in flight"
        gate.open()
        assert request.result(120) == [("slow", "1", 6.0)]
        answer = draining.result(120)
        assert (answer.status_code, answer.json()) == (200, {"in_flight": 0})
    assert pod.probe("/drain").json() == {"in_flight": 0}, "a second time does no harm"
    reports = len(pod.controller.reports)
    wait_for(lambda: len(pod.controller.reports) > reports, "it to go on reporting")


def test_its_last_word_is_that_it_is_gone(pod: Pod, full_table: RouteTable) -> None:
    pod.controller.put(full_table)
    pod.process.terminate()
    pod.process.wait(30)
    assert pod.controller.latest.gone


def in_flight(pod: Pod) -> int:
    text = httpx2.get(f"{pod.admin}/stats?filter=downstream_rq_active", timeout=60).text
    values = (line.rpartition(":")[2] for line in text.splitlines() if line.startswith(("http.grpc", "http.http")))
    return sum(map(int, values))


def test_it_lives_when_its_controller_goes(pod: Pod, full_table: RouteTable) -> None:
    pod.controller.put(full_table)
    pod.controller.stop()
    assert pod.probe("/livez").status_code == 200
    assert pod.probe("/readyz").status_code == 200


def test_a_port_in_use_is_told(tmp_path: Path, pod: Pod) -> None:
    arguments = ["--home", str(tmp_path / "other"), "--port", str(pod.port)]
    done = subprocess.run([sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "--port" in done.stderr and str(pod.port) in done.stderr


# What is given.


def test_settings_come_from_the_file_that_is_named(tmp_path: Path) -> None:
    write_settings(tmp_path, Settings(name="one", address="127.0.0.9", cold_wait_s=7.0))
    gateway = make(parse([f"--home={tmp_path / 'home'}", f"--settings={tmp_path / 'settings.json'}"]))
    assert (gateway.settings.name, gateway.settings.cold_wait_s) == ("one", 7.0)
    gateway = make(parse([f"--home={tmp_path / 'home'}", f"--settings={tmp_path / 'settings.json'}", "--name=two"]))
    assert (gateway.settings.name, gateway.settings.address) == ("two", "127.0.0.9")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--settings=/nowhere.json"], "/nowhere.json can't be read"),
        (["--controller-url=controller:8080"], "no URL of a controller"),
        (["--token-file=/token"], "add --controller-url"),
    ],
)
def test_wrong_arguments_are_told(tmp_path: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(InvalidInput) as error:
        make(parse([f"--home={tmp_path}", *arguments]))
    assert said in str(error.value)


def test_it_tells_its_metrics_and_envoys_at_a_port_of_their_own(pod: Pod, full_table: RouteTable) -> None:
    pod.controller.put(full_table)
    assert streamed(pod, "echo")

    def scraped() -> str:
        return httpx2.get(f"http://127.0.0.1:{pod.metrics_port}/metrics", timeout=60).text

    wait_for(lambda: "envoy_cluster_upstream_rq_total" in scraped(), what="Envoy tells its own")
    families = {family.name for family in text_string_to_metric_families(scraped())}
    assert {"gateway_table_routes", "envoy_cluster_upstream_rq"} <= families
    assert httpx2.get(f"http://127.0.0.1:{pod.metrics_port}/drain", timeout=60).status_code == 404
    assert pod.probe("/metrics").status_code == 404


async def test_a_replica_that_drains_is_left_no_idle_connection(tritons: tuple[Triton, Triton]) -> None:
    """A Triton that is told to stop waits for them, up to its whole time."""
    replicas, endpoint = Replicas(Settings()), tritons[0].endpoint
    draining = replace(endpoint, draining=True)

    def connected() -> bool:
        found = psutil.Process().net_connections("tcp")
        return any(each.raddr and each.raddr.port == endpoint.http_port for each in found)

    async def ask() -> None:
        url = f"http://{endpoint.host}:{endpoint.http_port}/v2/health/live"
        assert (await replicas.http(endpoint).get(url)).status_code == 200

    await ask()
    await replicas.forget_others((endpoint,))
    assert connected()
    with replicas.request(endpoint, None):
        leaving = asyncio.ensure_future(replicas.forget_others((draining,)))
        await asyncio.sleep(0)
        assert connected()  # it is in use
    await leaving
    assert not connected()
    await ask()
    await replicas.forget_others(())
    assert not connected()
    await replicas.close()
