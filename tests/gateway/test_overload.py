"""More requests than the replicas may have in flight: who is refused, how clients see it, who still gets through."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc as grpclib
import httpx2
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from controlplane.core.routes import Pace, RouteTable
from gateway.config.names import SERVICE
from tests.gateway.asking import ask, ask_http, grpc_input
from tests.gateway.running import Running, route, table
from tests.gateway.triton import Triton
from tests.gateway.waiting import wait_for

LIMIT = 3
BODY = json.dumps({"inputs": [{"name": "IN", "shape": [1], "datatype": "FP32", "data": [1.0]}]})
REFUSED = "have as many requests in flight as they may have"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    server = Triton("r7", tmp_path_factory.mktemp("overload"), ("gated", "echo", "other"))
    try:
        yield server.wait()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("home"), max_in_flight_per_replica=LIMIT)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def routes(gateway: Running, triton: Triton) -> RouteTable:
    """`gated` and `echo` are of normal priority, `other` is of high; all on one replica."""
    routes = table(
        triton.endpoint,
        gated=route("gated"),
        echo=route("echo", 2),
        other=replace(route("other"), priority="high"),
        high=replace(route("gated"), model="high", priority="high"),
    )
    gateway.controller.put(routes)
    return routes


@pytest.fixture
def gate(triton: Triton) -> Iterator[Path]:
    """While this file is not there, `gated` answers nothing."""
    file = triton.models / "gated" / "open"
    try:
        yield file
    finally:
        file.touch()
        wait_for(lambda: _pending(triton) == 0, "the server to end what it has")
        file.unlink()


def _pending(triton: Triton) -> int:
    found = re.findall(r'^nv_inference_pending_request_count\{model="gated".*\} (\d+)', triton.metrics(), re.MULTILINE)
    return sum(map(int, found))


def _active(gateway: Running) -> int:
    """Requests that Envoy has in flight at the pool's clusters."""
    clusters = httpx2.get(f"{gateway.admin}/clusters?format=json").json()["cluster_statuses"]
    return sum(
        int(stat.get("value", 0))
        for cluster in clusters
        if cluster["name"].startswith("pool-")
        for host in cluster.get("host_statuses", [])
        for stat in host["stats"]
        if stat["name"] == "rq_active"
    )


class Full:
    """So many requests in flight at `gated`, over one protocol, from the block's beginning until the gate opens."""

    def __init__(self, gateway: Running, protocol: str, count: int = LIMIT, **more: Any) -> None:
        self._gateway, self._protocol, self._count, self._more = gateway, protocol, count, more
        self._stack = ExitStack()
        self.answers: list[Future[int]] = []

    def __enter__(self) -> Full:
        threads = self._stack.enter_context(ThreadPoolExecutor(self._count))
        self.answers = [threads.submit(self._ask) for _ in range(self._count)]
        return self

    def _ask(self) -> int:
        if self._protocol == "grpc":
            with self._gateway.grpc() as client:
                return ask(client, "gated", **self._more)
        with self._gateway.http() as client:
            return ask_http(client, "gated", **self._more)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


def _stats(gateway: Running, pattern: str) -> int:
    text = httpx2.get(f"{gateway.admin}/stats", params={"filter": pattern}).text
    return sum(map(int, re.findall(r": (\d+)$", text, re.MULTILINE)))


def _shed(gateway: Running, model: str, protocol: str) -> int:
    found = re.findall(
        rf'^envoy_model_shed\{{model="{model}",.*protocol="{protocol}".*\}} (\d+)', _page(gateway), re.MULTILINE
    )
    return sum(map(int, found))


def _page(gateway: Running) -> str:
    return httpx2.get(f"{gateway.admin}/stats/prometheus").text


def test_grpc_requests_are_shed_while_full_and_admitted_again(
    gateway: Running, routes: RouteTable, triton: Triton, gate: Path
) -> None:
    before = {model: _shed(gateway, model, "grpc") for model in ("gated", "echo", "other")}
    retries, overflows = _stats(gateway, "pool-.*upstream_rq_retry$"), _stats(gateway, "pool-.*active_overflow")
    with Full(gateway, "grpc") as full, gateway.grpc() as client:
        try:
            wait_for(lambda: _active(gateway) == LIMIT, "the pool to be full")
            for model in ("gated", "echo", "echo"):
                with pytest.raises(InferenceServerException, match=f"replicas of {model} {REFUSED}") as refused:
                    client.infer(model, grpc_input(), client_timeout=30)
                assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert [ask(client, "other") for _ in range(20)] == [1] * 20  # of high priority
            told: queue.Queue[object] = queue.Queue()
            client.start_stream(lambda result, error: told.put(error), headers={"x-model-name": "echo"})
            assert f"replicas of echo {REFUSED}" in str(told.get(timeout=30))  # before its first message
            client.stop_stream()
            assert _trailer(gateway, "echo", "retry-after") == "1"
        finally:
            gate.touch()
        assert [each.result() for each in full.answers] == [1] * LIMIT
        assert ask(client, "echo") == 2
    after = {model: _shed(gateway, model, "grpc") - count for model, count in before.items()}
    assert after == {"gated": 1, "echo": 4, "other": 0}
    failed = re.findall(r'^envoy_model_failures\{model="gated",.*replica="(.*?)"', _page(gateway), re.MULTILINE)
    assert failed == [""], "none was asked"
    # Each was looked at once: what is refused is not sent again.
    assert _stats(gateway, "pool-.*active_overflow") - overflows == 5
    assert _stats(gateway, "pool-.*upstream_rq_retry$") == retries
    lines = (gateway.home.gateway / "access.log").read_text
    wait_for(lambda: lines().count('"flags":"UO"') >= 5, "the access log's lines")
    line = next(json.loads(each) for each in lines().splitlines() if '"flags":"UO"' in each)
    assert (line["model"], line["grpc_status"]) == ("gated", "RESOURCE_EXHAUSTED")


def _trailer(gateway: Running, model: str, name: str) -> str:
    message = service_pb2.ModelInferRequest(model_name=model).SerializeToString()
    with grpclib.insecure_channel(gateway.grpc_url) as channel, pytest.raises(grpclib.RpcError) as refused:
        channel.unary_unary(f"{SERVICE}ModelInfer", None, None)(message, timeout=30)
    assert refused.value.code() == grpclib.StatusCode.RESOURCE_EXHAUSTED
    found: Any = refused.value.trailing_metadata()
    return str(dict(found)[name])


def test_http_requests_are_shed_while_full_and_admitted_again(
    gateway: Running, routes: RouteTable, triton: Triton, gate: Path
) -> None:
    before = _shed(gateway, "gated", "http")
    with Full(gateway, "http") as full, gateway.http() as client:
        try:
            wait_for(lambda: _active(gateway) == LIMIT, "the pool to be full")
            answer = httpx2.post(f"http://{gateway.http_url}/v2/models/gated/infer", content=BODY, timeout=30)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert REFUSED in answer.json()["error"]
            with pytest.raises(InferenceServerException, match=f"replicas of gated {REFUSED}") as refused:
                ask_http(client, "gated")
            assert refused.value.status() == "429"
            assert ask_http(client, "other") == 1
        finally:
            gate.touch()
        assert [each.result() for each in full.answers] == [1] * LIMIT
        assert ask_http(client, "gated") == 1
    assert _shed(gateway, "gated", "http") - before == 2


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_high_priority_has_a_limit_too(gateway: Running, triton: Triton, gate: Path, protocol: str) -> None:
    gateway.controller.put(table(triton.endpoint, gated=replace(route("gated"), priority="high")))
    with Full(gateway, protocol, 2 * LIMIT), gateway.grpc() as grpc, gateway.http() as http:
        try:
            wait_for(lambda: _active(gateway) == 2 * LIMIT, "the pool to be full")
            with pytest.raises(InferenceServerException, match=REFUSED):
                ask(grpc, "gated") if protocol == "grpc" else ask_http(http, "gated")
        finally:
            gate.touch()


def test_the_python_side_sheds_as_envoy_does(gateway: Running, triton: Triton, gate: Path) -> None:
    routes = table(
        triton.endpoint,
        gated=route("gated", idle_s=60.0),
        echo=route("echo", 2, idle_s=60.0),
        other=replace(route("other", idle_s=60.0), priority="high"),
    )
    gateway.controller.put(routes)

    def busy() -> bool:
        return f'gateway_side_requests{{replica="r7"}} {LIMIT}.0' in httpx2.get(f"{gateway.status}/metrics").text

    with Full(gateway, "grpc") as full, gateway.grpc() as client, gateway.http() as http:
        try:
            wait_for(busy, "the replica to be full")
            with pytest.raises(InferenceServerException, match=f"replicas of echo {REFUSED}") as refused:
                ask(client, "echo")
            assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert _trailer(gateway, "echo", "retry-after") == "1"
            answer = httpx2.post(f"http://{gateway.http_url}/v2/models/echo/infer", content=BODY, timeout=30)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert REFUSED in answer.json()["error"]
            assert (ask(client, "other"), ask_http(http, "other")) == (1, 1)
        finally:
            gate.touch()
        assert [each.result() for each in full.answers] == [1] * LIMIT
        assert ask(client, "echo") == 2
    assert 'gateway_side_shed_total{model="echo"} 3.0' in httpx2.get(f"{gateway.status}/metrics").text


@pytest.mark.parametrize("side", [False, True])
def test_of_a_model_whose_replicas_are_too_slow_less_may_wait(
    tmp_path: Path, triton: Triton, gate: Path, *, side: bool
) -> None:
    """And it takes no place from the others there."""
    running = Running(tmp_path / "home", max_wait_s=2, max_in_flight_per_replica=2 * LIMIT)
    idle_s = 60.0 if side else None
    slow = route("gated", pool="slow", idle_s=idle_s)
    routes = table(triton.endpoint, gated=slow, echo=route("echo", idle_s=idle_s))
    pools = {**routes.pools, "slow": routes.pools["all"]}
    routes = replace(routes, pools=pools, crowded={"slow": Pace(per_s=LIMIT / 2, at_once=1)})
    try:
        running.controller.put(routes)
        with running.grpc() as client, ExitStack() as stack:
            full = stack.enter_context(Full(running, "grpc"))
            stack.callback(gate.touch)
            wait_for(lambda: _pending(triton) == LIMIT - 1, "the replica to have all of them")
            with pytest.raises(InferenceServerException, match=f"replicas of gated {REFUSED}") as refused:
                ask(client, "gated")
            assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert [ask(client, "echo") for _ in range(10 * LIMIT)] == [1] * 10 * LIMIT
            if side:
                told: queue.Queue[object] = queue.Queue()
                client.start_stream(lambda result, error: told.put(error))
                client.async_stream_infer("gated", grpc_input())
                assert f"replicas of gated {REFUSED}" in str(told.get(timeout=30))
                client.stop_stream()
            # What is done changes, and what is in flight goes on to count.
            running.controller.put(replace(routes, crowded={"slow": Pace(per_s=LIMIT, at_once=1)}))
            more = stack.enter_context(Full(running, "grpc"))
            wait_for(lambda: _pending(triton) == 2 * LIMIT - 1, "the replica to have all of them")
            with pytest.raises(InferenceServerException, match=f"replicas of gated {REFUSED}"):
                ask(client, "gated")
            assert ask(client, "echo") == 1, "it has as many places"
            running.controller.put(routes)
            gate.touch()
            assert [each.result() for each in (*full.answers, *more.answers)] == [1] * 2 * LIMIT
            assert ask(client, "gated") == 1
        # As soon as enough is done of it, it is as all others.
        running.controller.put(table(triton.endpoint, gated=route("gated", idle_s=idle_s)))
        gate.unlink()
        with Full(running, "grpc", 2 * LIMIT):
            wait_for(lambda: _pending(triton) == 2 * LIMIT - 1, "the replica to have all of them")
            gate.touch()
    finally:
        running.stop()


def test_too_many_that_wait_for_a_model(tmp_path: Path, triton: Triton) -> None:
    running = Running(tmp_path / "home", held_per_model=1)
    try:
        running.controller.put(table(triton.endpoint, echo=route("echo", 2, pool=None)))
        with running.grpc() as client:
            call = client.async_infer("echo", grpc_input(), callback=lambda result, error: None)
            wait_for(lambda: running.controller.latest.demand, "the request to be held")
            with pytest.raises(InferenceServerException, match="too many requests wait for echo") as refused:
                client.infer("echo", grpc_input(), client_timeout=30)
            assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert int(_trailer(running, "echo", "retry-after")) >= 1
            answer = httpx2.post(f"http://{running.http_url}/v2/models/echo/infer", content=BODY, timeout=30)
            assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
            call.cancel()
    finally:
        running.stop()


def test_a_gateway_without_memory_says_that_it_is_overloaded(tmp_path: Path, triton: Triton) -> None:
    running = Running(tmp_path / "home", max_heap_bytes=1)
    try:
        running.controller.put(table(triton.endpoint, echo=route("echo", 2)))
        url = f"http://{running.http_url}/v2/models/echo/infer"
        wait_for(lambda: httpx2.post(url, content=BODY).status_code == 429, "Envoy to see its memory")
        answer = httpx2.post(url, content=BODY)
        assert (answer.headers["retry-after"], "short of memory" in answer.json()["error"]) == ("1", True)
        with running.grpc() as client, pytest.raises(InferenceServerException, match="short of memory") as refused:
            ask(client, "echo")
        assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    finally:
        running.stop()
