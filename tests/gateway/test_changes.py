"""Tables that change under load, models that are not loaded, replicas and processes that die."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc as grpclib
import httpx2
import pytest
import tritonclient.grpc.aio as grpcaio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from controlplane.core.routes import Endpoint, Route, RouteTable, Target
from controlplane.local.processes import free_ports
from tests.gateway.asking import ask, ask_http, grpc_input, stream
from tests.gateway.running import ROOT, Running, route, table
from tests.gateway.triton import Gate, Triton
from tests.gateway.waiting import wait_for


class Load:
    """Requests one after another from a thread, until it is left. `failures` are sentences."""

    def __init__(self, gateway: Running, model: str = "echo") -> None:
        self._gateway, self._model = gateway, model
        self.answered: list[int] = []
        self.failures: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._gateway.grpc() as client:
            while not self._over.is_set():
                try:
                    self.answered.append(ask(client, self._model))
                except InferenceServerException as error:
                    self.failures.append(str(error))

    def more(self, count: int = 50) -> None:
        """Wait until so many more requests have been answered."""
        goal = len(self.answered) + count
        wait_for(lambda: len(self.answered) >= goal or self.failures, "requests to be answered", timeout_s=60)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def own_triton(tmp_path: Path) -> Iterator[Triton]:
    """A server that the test may kill."""
    server = Triton("r9", tmp_path, ("echo",))
    try:
        yield server.wait()
    finally:
        server.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Running]:
    """A gateway that the test may break."""
    running = Running(tmp_path / "home", held_per_model=8000, held_total=8000, cold_wait_s=120.0)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Running]:
    """A gateway that holds requests for a second only: less than any client's deadline here."""
    running = Running(tmp_path / "home", cold_wait_s=1.0)
    try:
        yield running
    finally:
        running.stop()


def test_a_gateway_that_knows_no_models_yet_denies_none(tmp_path: Path, tritons: tuple[Triton, Triton]) -> None:
    """A client takes NOT_FOUND for final; what has just started asks it to come back."""
    running = Running(tmp_path)
    try:
        with running.grpc() as grpc, running.http() as http:
            for headers in ({}, {"x-model-name": "echo"}):
                with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*no route table yet"):
                    ask(grpc, "echo", headers=headers)
            with pytest.raises(InferenceServerException, match="no route table yet") as refused:
                ask_http(http, "echo")
            assert refused.value.status() == "503"
            for each in ([], [("x-model-name", "echo")]):
                assert "no route table yet" in streamed_error(running, each)
            running.controller.put(table(tritons[0].endpoint, echo=route("echo", 2)))
            assert ask(grpc, "echo") == 2
            assert ask_http(http, "echo") == 2
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                ask(grpc, "nobody")
    finally:
        running.stop()


def streamed_error(running: Running, metadata: list[tuple[str, str]]) -> str:
    """What a stream with these headers ends with."""
    with grpclib.insecure_channel(running.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpclib.RpcError) as ended:
            list(
                stub.ModelStreamInfer(
                    iter([service_pb2.ModelInferRequest(model_name="echo")]), metadata=metadata, timeout=30
                )
            )
        return f"{ended.value.code().name}: {ended.value.details()}"


def test_promotion_under_load(gateway: Running, full_table: RouteTable) -> None:
    gateway.controller.put(full_table)
    seen = []
    with Load(gateway) as load:
        for stable in (1, 2, 3, 1):
            load.more()
            gateway.controller.put(replace(full_table, routes={**full_table.routes, "echo": route("echo", stable)}))
            confirmed = len(load.answered)
            load.more()
            seen.append(set(load.answered[confirmed + 1 :]))
    assert not load.failures
    assert seen == [{1}, {2}, {3}, {1}]


def test_a_canary_gets_its_share(gateway: Running, full_table: RouteTable) -> None:
    targets = (Target(version=1, pool="all", weight_percent=80), Target(version=3, pool="all", weight_percent=20))
    gateway.controller.put(
        replace(full_table, routes={"echo": Route(model="echo", targets=targets, pinned={1: "all", 3: "all"})})
    )
    with gateway.grpc() as client, gateway.http() as http:
        grpc_answers = [ask(client, "echo") for _ in range(400)]
        http_answers = [ask_http(http, "echo") for _ in range(400)]
        assert {ask(client, "echo", "1") for _ in range(20)} == {1}
    for answers in (grpc_answers, http_answers):
        assert set(answers) == {1, 3}
        assert 40 <= answers.count(3) <= 130


def test_cold_requests_wait_and_ask_once(gateway: Running, full_table: RouteTable) -> None:
    cold = replace(full_table, routes={"echo": route("echo", 2, pool=None)})
    gateway.controller.put(cold)
    reports = len(gateway.controller.reports)
    with gateway.grpc() as client, gateway.http() as http:
        assert not client.is_model_ready("echo")  # asking whether it is ready does not wait for it
        assert not http.is_model_ready("echo")

    async def many() -> list[int]:
        async with grpcaio.InferenceServerClient(gateway.grpc_url) as client:
            asked = [asyncio.ensure_future(client.infer("echo", grpc_input())) for _ in range(200)]
            with ThreadPoolExecutor(5) as threads:
                over_http = [threads.submit(_ask_http_once, gateway) for _ in range(4)]
                on_stream = threads.submit(_ask_on_stream, gateway)
                await asyncio.to_thread(
                    wait_for, lambda: _waiting(gateway) == 205, "all requests to be held", timeout_s=60
                )
                gateway.controller.order(full_table)
                results = await asyncio.gather(*asked)
                assert [each.result() for each in over_http] == [2] * 4
                assert on_stream.result() == [("echo", "2", 1.0), ("other", "1", 2.0)] or on_stream.result() == [
                    ("other", "1", 2.0),
                    ("echo", "2", 1.0),
                ]
        return [int(each.as_numpy("VERSION")[0]) for each in results]

    gateway.controller.put(replace(cold, routes={**cold.routes, "other": route("other")}))
    assert asyncio.run(many()) == [2] * 200
    demands = [each.demand for each in gateway.controller.reports[reports:] if each.demand]
    assert {(each.model, each.version) for demand in demands for each in demand} == {("echo", 2)}
    wait_for(lambda: _waiting(gateway) == 0, "nobody to wait any more")


def test_a_burst_for_a_cold_model(fresh: Running, full_table: RouteTable) -> None:
    """More than the library itself would take at once; none is lost, and each is answered."""
    count, connections = 4000, 8
    fresh.controller.put(replace(full_table, routes={"echo": route("echo", 2, pool=None)}))

    async def many() -> list[int]:
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection each
        clients = [grpcaio.InferenceServerClient(fresh.grpc_url, channel_args=own) for _ in range(connections)]
        asked = [clients[i % connections].infer("echo", grpc_input()) for i in range(count)]
        tasks = [asyncio.ensure_future(each) for each in asked]
        try:
            await asyncio.to_thread(wait_for, lambda: _waiting(fresh) == count, "all to be held", timeout_s=90)
            fresh.controller.order(full_table)
            return [int(each.as_numpy("VERSION")[0]) for each in await asyncio.gather(*tasks)]
        finally:
            for each in clients:
                await each.close()

    assert asyncio.run(many()) == [2] * count


def _ask_http_once(gateway: Running) -> int:
    with gateway.http() as client:
        return ask_http(client, "echo")


def _ask_on_stream(gateway: Running) -> list[Any]:
    with gateway.grpc() as client:
        return stream(client, [("echo", "", 1.0), ("other", "", 2.0)])


def _waiting(gateway: Running) -> int:
    return int(httpx2.get(f"{gateway.status}/healthz", timeout=60).json()["waiting"])


def test_while_no_replica_is_there_the_gateway_is_ready_all_the_same(tmp_path: Path, full_table: RouteTable) -> None:
    """What is asked then waits for one. Clients that look at that first would else never ask."""
    cold = {"echo": route("echo", 2, pool=None)}
    steps = [
        (RouteTable(asleep=True), "triton-controlplane"),  # no model either: the first that it hears of
        (RouteTable(asleep=True, routes=cold), "triton-controlplane"),
        (replace(full_table, pools={}, routes=cold), "triton"),
        (RouteTable(asleep=True, routes=cold), "triton-controlplane"),
    ]
    fresh = Running(tmp_path)
    try:
        with fresh.grpc() as grpc, fresh.http() as http, grpclib.insecure_channel(fresh.grpc_url) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
            assert not http.is_server_ready(), "it has no table yet"
            for table_, name in steps:
                fresh.controller.put(table_)
                assert grpc.get_server_metadata().name == http.get_server_metadata()["name"] == name
                for client in (grpc, http):
                    assert client.is_server_live() and client.is_server_ready()
                assert check(b"", timeout=10) == b"\x08\x01"
                if table_.routes:
                    assert not grpc.is_model_ready("echo") and not http.is_model_ready("echo")
                else:
                    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                        ask(grpc, "echo")
            fresh.controller.put(RouteTable(routes=cold))
            assert not http.is_server_ready(), "there are replicas, and none of them can be asked"
    finally:
        fresh.stop()


def test_a_cold_model_that_never_comes(impatient: Running, full_table: RouteTable) -> None:
    cold = Route(
        model="echo",
        targets=(Target(version=2, pool=None),),
        pinned={2: None},
        reasons={2: "no replica of fleet cpu has 4 GiB free"},
    )
    impatient.controller.put(replace(full_table, routes={"echo": cold}))
    with impatient.grpc() as client, pytest.raises(InferenceServerException) as refused:
        client.infer("echo", grpc_input(), client_timeout=60.0)
    assert refused.value.status() == "StatusCode.UNAVAILABLE"
    assert "no replica of fleet cpu has 4 GiB free" in str(refused.value)


def test_a_client_that_gives_up_is_dropped(gateway: Running, full_table: RouteTable) -> None:
    gateway.controller.put(replace(full_table, routes={"echo": route("echo", 2, pool=None)}))
    with gateway.grpc() as client:
        call = client.async_infer("echo", grpc_input(), callback=lambda result, error: None)
        wait_for(lambda: _waiting(gateway) == 1, "the request to be held")
        call.cancel()
        wait_for(lambda: _waiting(gateway) == 0, "the request to be dropped")
    with httpx2.Client() as http, pytest.raises(httpx2.TimeoutException):
        http.post(f"http://{gateway.http_url}/v2/models/echo/infer", content=b"{}", timeout=0.5)
    wait_for(lambda: _waiting(gateway) == 0, "the HTTP request to be dropped")


def test_draining(gateway: Running, full_table: RouteTable, gate: Gate) -> None:
    gateway.controller.put(full_table)
    found: queue.Queue[Any] = queue.Queue()
    with gateway.grpc() as client:
        client.start_stream(lambda result, error: found.put((result, error)), headers={"x-model-name": "slow"})
        try:
            client.async_stream_infer("slow", grpc_input((4.0,)))
            wait_for(lambda: _active_host(gateway), "the request to run")
            busy = _active_host(gateway)[0]
            rest = next(name for name in full_table.endpoints if name != busy)
            endpoints = {**full_table.endpoints, busy: replace(full_table.endpoints[busy], draining=True)}
            gateway.controller.put(replace(full_table, endpoints=endpoints, pools={"all": (rest,)}))
            wait_for(lambda: gateway.controller.latest.active.get(busy), "the request in flight to be reported")
            assert _replicas_of(gateway, 20) == {rest}
            assert found.empty(), "it is in flight yet"
            gate.open()
            result, error = found.get(timeout=120)
            assert error is None
            assert float(result.as_numpy("OUT")[0]) == 4.0
        finally:
            client.stop_stream(cancel_requests=True)
    wait_for(lambda: gateway.controller.latest.active == {busy: 0}, "the drained replica to be reported idle")
    wait_for(lambda: _pool_clusters(gateway) == 2, "the old clusters to go")


def _active_host(gateway: Running) -> list[str]:
    clusters = httpx2.get(f"{gateway.admin}/clusters?format=json").json()["cluster_statuses"]
    return [
        host["hostname"]
        for cluster in clusters
        for host in cluster.get("host_statuses", [])
        if any(stat["name"] == "rq_active" and int(stat.get("value", 0)) for stat in host["stats"])
    ]


def _pool_clusters(gateway: Running) -> int:
    clusters = httpx2.get(f"{gateway.admin}/clusters?format=json").json()["cluster_statuses"]
    return sum(each["name"].startswith("pool-") for each in clusters)


def _replicas_of(gateway: Running, count: int) -> set[str]:
    """Which replicas answer so many requests, by the access log."""
    log_file = gateway.home.gateway / "access.log"

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in log_file.read_text().splitlines() if line.endswith("}")]
        return [each for each in found if each.get("model") == "echo" and each.get("grpc_status") == "OK"]

    before = len(lines())
    with gateway.grpc() as client:
        for _ in range(count):
            ask(client, "echo")
    wait_for(lambda: len(lines()) >= before + count, "the access log's lines")
    return {each["replica"] for each in lines()[-count:]}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_replica_that_dies(gateway: Running, tritons: Any, own_triton: Triton, number: signal.Signals) -> None:
    gateway.controller.put(table(tritons[0].endpoint, own_triton.endpoint, echo=route("echo", 2)))
    with Load(gateway) as load, Load(gateway) as second:
        load.more(200)
        if number == signal.SIGKILL:
            own_triton.kill()
        else:
            own_triton.process.terminate()
        load.more(200)
        own_triton.process.wait()
        load.more(200)
        second.more(200)
    assert not load.failures + second.failures


def test_a_sequence_is_never_sent_twice(gateway: Running, own_triton: Triton) -> None:
    gone = replace(own_triton.endpoint, replica="gone", grpc_port=free_ports(1)[0])
    gateway.controller.put(table(gone, echo=route("echo", 2, idle_s=60.0)))
    with gateway.grpc() as client, pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        client.infer("echo", grpc_input(), sequence_id=7, sequence_start=True)


def test_a_refused_table_leaves_the_old_one_in_force(gateway: Running, full_table: RouteTable) -> None:
    gateway.controller.put(full_table)
    confirmed = gateway.controller.latest.generation
    bad = Endpoint(replica="bad", host="no.such.host.", grpc_port=1, http_port=2)
    gateway.controller.order(table(bad, echo=route("echo", 1)))
    wait_for(lambda: "refused" in gateway.controller.latest.reason, "the refusal to be reported")
    assert "malformed IP address" in gateway.controller.latest.reason
    assert gateway.controller.latest.generation == confirmed
    with gateway.grpc() as client:
        assert ask(client, "echo") == 2
    gateway.controller.put(full_table)
    assert gateway.controller.latest.reason == ""


def test_orders_of_an_older_epoch_are_refused(gateway: Running, full_table: RouteTable) -> None:
    gateway.controller.put(full_table, epoch=5)
    gateway.controller.order(replace(full_table, routes={}), epoch=4)
    wait_for(lambda: "older epoch" in gateway.log(), "the refusal")
    with gateway.grpc() as client:
        assert ask(client, "echo") == 2
    gateway.controller.send_table = True
    gateway.controller.put(full_table, epoch=6)
    wait_for(lambda: any(each.table is not None for each in gateway.controller.reports), "the table to be reported")
    reported = [each.table for each in gateway.controller.reports if each.table is not None]
    assert reported[-1].routes == full_table.routes


def test_envoy_dies(fresh: Running, full_table: RouteTable) -> None:
    fresh.controller.put(full_table)
    with fresh.grpc() as client:
        assert ask(client, "echo") == 2
        old = fresh.envoy.pid
        fresh.envoy.kill()

        def back() -> bool:
            try:
                return ask(client, "echo") == 2
            except InferenceServerException:
                return False

        wait_for(back, "Envoy to be back on the same port", timeout_s=60)
    assert fresh.envoy.pid != old


def test_the_python_part_dies(fresh: Running, full_table: RouteTable) -> None:
    fresh.controller.put(full_table)
    generation = fresh.controller.latest.generation
    envoy = fresh.envoy.pid
    with Load(fresh) as load:
        load.more()
        fresh.process.kill()
        fresh.process.wait()
        load.more(200)
        fresh.start()
        load.more()
    assert not load.failures
    assert fresh.envoy.pid == envoy
    assert fresh.controller.latest.generation == generation
    with fresh.grpc() as client:
        assert stream(client, [("echo", "", 1.0)]) == [("echo", "2", 1.0)]
        assert ask(client, "echo", compression_algorithm="gzip") == 2


def test_ten_thousand_models(fresh: Running, full_table: RouteTable) -> None:
    many = {f"model-{i:05}": route(f"model-{i:05}", 1, 2) for i in range(10_000)}
    fresh.controller.put(replace(full_table, routes={**full_table.routes, **many}), timeout_s=60)
    with fresh.grpc() as client, Load(fresh) as load:
        load.more()
        with pytest.raises(InferenceServerException, match="model-09999"):
            ask(client, "model-09999")  # known here, but not on the server
        changed = {**many, "one-more": route("one-more")}
        fresh.controller.put(
            replace(full_table, routes={**full_table.routes, **changed, "echo": route("echo", 3)}), timeout_s=60
        )
        assert ask(client, "echo") == 3
        load.more()
    assert not load.failures


def test_a_port_in_use_is_named(fresh: Running, tmp_path: Path) -> None:
    home = tmp_path / "second"
    (home / "gateway").mkdir(parents=True)
    (home / "gateway" / "settings.json").write_text(json.dumps({"grpc_port": fresh.ports.grpc, "http_port": 0}))
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "--home", str(home)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "CTL_HOME": str(home)},
    )
    assert ended.returncode == 5
    assert f"grpc_port: the gateway can't listen on 127.0.0.1:{fresh.ports.grpc}" in ended.stderr


def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    running = Running(tmp_path / "home")
    try:
        envoy = running.envoy
        running.process.terminate()
        assert running.process.wait(timeout=60) == 0
        assert not envoy.is_running()
    finally:
        running.stop()


def test_a_proxy_in_the_environment_is_not_asked_about_what_is_on_this_machine(
    tmp_path: Path, full_table: RouteTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    gateway = Running(tmp_path)
    try:
        gateway.controller.put(full_table)
        monkeypatch.undo()  # the client's own
        with gateway.grpc() as client:
            assert ask(client, "echo") == 2
    finally:
        gateway.stop()


def test_whether_clients_may_be_sent_here_is_told(tmp_path: Path, full_table: RouteTable) -> None:
    gateway = Running(tmp_path)
    try:
        first = gateway.controller.reports[0]
        assert (first.ready, first.reason) == (False, "no route table from the controller yet")
        gateway.controller.put(full_table)
        wait_for(lambda: gateway.controller.latest.ready, "the gateway to be ready")
    finally:
        gateway.stop()
