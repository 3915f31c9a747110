"""The official clients through the gateway: names, versions, refusals, streams, sequences, large tensors."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import queue
import socket
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc as grpclib
import httpx2
import numpy as np
import pytest
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from controlplane.core.routes import RouteTable
from tests.gateway.asking import ask, ask_http, grpc_input, stream
from tests.gateway.running import Running
from tests.gateway.triton import Triton
from tests.gateway.waiting import wait_for


@pytest.fixture(scope="module", autouse=True)
def served(gateway: Running, full_table: RouteTable) -> None:
    gateway.controller.put(full_table)


def test_versions_over_grpc(gateway: Running) -> None:
    with gateway.grpc() as client:
        assert ask(client, "echo") == 2
        assert ask(client, "echo", "1") == 1
        assert ask(client, "echo", headers={"x-model-name": "echo"}) == 2
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*echo/3"):
            ask(client, "echo", "3")
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*'nobody'"):
            ask(client, "nobody")
        with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*says other.*says echo"):
            ask(client, "echo", headers={"x-model-name": "other"})


def test_versions_over_http(gateway: Running) -> None:
    with gateway.http() as client:
        assert ask_http(client, "echo") == 2
        assert ask_http(client, "echo", "1", binary=False) == 1
        with pytest.raises(InferenceServerException, match="echo/3"):
            ask_http(client, "echo", "3")
        with pytest.raises(InferenceServerException, match="nobody"):
            ask_http(client, "nobody")


def test_questions_about_models_get_the_forced_version(gateway: Running) -> None:
    with gateway.grpc() as grpc, gateway.http() as http:
        assert grpc.is_model_ready("echo")
        assert list(grpc.get_model_metadata("echo").versions) == ["2"]
        assert grpc.get_model_config("echo").config.name == "echo"
        assert [each.version for each in grpc.get_inference_statistics("echo").model_stats] == ["2"]
        assert http.is_model_ready("echo", "1")
        assert http.get_model_metadata("echo")["versions"] == ["2"]
        assert http.get_model_config("echo")["name"] == "echo"
        assert http.get_inference_statistics("echo")["model_stats"][0]["version"] == "2"


def test_questions_about_the_server(gateway: Running) -> None:
    with gateway.grpc() as grpc, gateway.http() as http:
        for client in (grpc, http):
            assert client.is_server_live()
            assert client.is_server_ready()
        assert grpc.get_server_metadata().name == "triton"
        assert http.get_server_metadata()["name"] == "triton"
    with grpclib.insecure_channel(gateway.grpc_url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
        assert check(b"", timeout=10) == b"\x08\x01"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_model_repository_index(),
        lambda client: client.load_model("echo", headers={"x-model-name": "echo"}),
        lambda client: client.unload_model("echo", headers={"x-model-name": "echo"}),
        lambda client: client.get_system_shared_memory_status(headers={"x-model-name": "echo"}),
        lambda client: client.register_system_shared_memory("a", "/a", 1),
        lambda client: client.get_cuda_shared_memory_status(),
        lambda client: client.update_trace_settings("echo", {"trace_level": ["OFF"]}),
        lambda client: client.get_log_settings(),
    ],
    ids=["index", "load", "unload", "shared-memory", "register", "cuda", "trace", "log"],
)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_is_not_offered(gateway: Running, protocol: str, call: Callable[[Any], object]) -> None:
    with gateway.grpc() if protocol == "grpc" else gateway.http() as client:
        with pytest.raises(InferenceServerException, match="does not offer this call") as refused:
            call(client)
        assert refused.value.status() == ("StatusCode.PERMISSION_DENIED" if protocol == "grpc" else "403")
    assert "loaded" not in gateway.log()


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/echo/../../repository/index",
        "/v2/models/echo/%2e%2e/%2e%2e/repository/index",
        "/v2//repository/index",
        "//v2/repository/index",
        "/v2/models/echo%2f..%2f..%2frepository/index",
        "/v2/models/echo/versions/1%2f..%2f3/infer",
        "/v2/repository/models/echo/load",
        "/v2/models/echo/versions/1/../3/ready",
        "/v2/models/echo/trace/setting",
        "/v2/models/stats",
        "/v2/systemsharedmemory/status",
        "/v2/health/live/../../logging",
        "/metrics",
        "/healthz",
        "/v2/models/echo;x/ready",
        "/v2/models/echo/versions/2/versions/3/ready",
        "/v2/models/echo/versions/03/ready",
        "/v2/models/echo/versions/1x/ready",
        "/v2/models/echo/versions/1;/ready",
        "/v2/models/echo/versions/1%3f/ready",
        "/v2/models/echo/versions/1%00/ready",
        "/v2/models/echo;/ready",
        "/v2/models/echo;",
        "/v2/models/echo%3f/ready",
        "/v2/models/echo%3fx=1",
        "/v2/models/echo%20/ready",
        "/v2/models/*/ready",
        "/v2/models/%2a/ready",
        "/v2/models/" + "x" * 200 + "/ready",
    ],
)
def test_path_tricks(gateway: Running, path: str) -> None:
    connection = http.client.HTTPConnection(gateway.http_url, timeout=10)
    connection.putrequest("GET", path, skip_accept_encoding=True)  # as it stands: no client library tidies it up
    connection.endheaders()
    answer = connection.getresponse()
    found = (answer.status, answer.read().decode())
    connection.close()
    assert answer.status == 400 or "no route for" in found[1] or "does not offer" in found[1], found


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(gateway: Running, algorithm: str) -> None:
    with gateway.grpc() as grpc, gateway.http() as http:
        assert ask(grpc, "echo", compression_algorithm=algorithm, values=(1.0,) * 1000) == 2
        assert ask(grpc, "echo", "1", compression_algorithm=algorithm) == 1
        assert (
            ask_http(http, "echo", request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)
            == 2
        )


@pytest.mark.parametrize("headers", [{"x-model-name": "echo"}, None], ids=["header", "no-header"])
def test_streams(gateway: Running, headers: dict[str, str] | None) -> None:
    with gateway.grpc() as client:
        answers = stream(client, [("echo", "", float(i)) for i in range(50)], headers)
    assert answers == [("echo", "2", float(i)) for i in range(50)]


def test_a_stream_led_by_its_header_answers_what_does_not_belong_there(gateway: Running) -> None:
    with gateway.grpc() as client:
        answers = stream(
            client,
            [("echo", "", 1.0), ("other", "", 2.0), ("echo", "1", 3.0), ("echo", "2", 4.0)],
            {"x-model-name": "echo"},
        )
        pinned = stream(client, [("echo", "", 1.0)], {"x-model-name": "echo", "x-model-version": "1"})
    assert answers[0] == ("echo", "2", 1.0)
    assert "names other but the header x-model-name says echo" in answers[1]
    assert "asks for version 1 of echo" in answers[2]
    assert answers[3] == ("echo", "2", 4.0)
    assert pinned == [("echo", "1", 1.0)]


def test_a_stream_without_header_may_mix_models_and_versions(gateway: Running) -> None:
    messages = [("echo", "", 1.0), ("other", "", 2.0), ("echo", "1", 3.0), ("nobody", "", 4.0), ("echo", "3", 5.0)]
    with gateway.grpc() as client:
        answers = stream(client, [*messages, ("echo", "", 6.0)])
    served = {each for each in answers if isinstance(each, tuple)}
    assert served == {("echo", "2", 1.0), ("other", "1", 2.0), ("echo", "1", 3.0), ("echo", "2", 6.0)}
    assert sorted(each for each in answers if isinstance(each, str)) == [
        "model 'nobody' is not known",
        "version '3' of model 'echo' does not exist or may not be asked for",
    ]


@pytest.mark.parametrize("algorithm", [None, "gzip"])
@pytest.mark.parametrize(
    "headers",
    [
        {"x-model-name": "nobody"},
        {"x-model-name": "echo", "x-model-version": "3"},
        {"x-model-name": "echo/2"},
        {"x-model-name": "*"},
    ],
    ids=["model", "version", "name", "key"],
)
def test_a_stream_for_what_is_not_known_is_refused_by_envoy(
    gateway: Running, headers: dict[str, str], algorithm: str | None
) -> None:
    with gateway.grpc() as client:
        (answer,) = stream(client, [], headers, compression_algorithm=algorithm)
    assert "no route for" in answer  # the Python side would say it otherwise


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("headers", [{"x-model-name": "echo"}, None], ids=["header", "no-header"])
def test_compressed_streams(gateway: Running, headers: dict[str, str] | None, algorithm: str) -> None:
    with gateway.grpc() as client:
        answers = stream(client, [("echo", "", 1.0)] * 5, headers, compression_algorithm=algorithm)
    assert answers == [("echo", "2", 1.0)] * 5


@pytest.mark.parametrize("headers", [{"x-model-name": "repeat"}, None], ids=["header", "no-header"])
def test_decoupled_streams(gateway: Running, headers: dict[str, str] | None) -> None:
    with gateway.grpc() as client:
        answers = stream(client, [("repeat", "", 5.0), ("repeat", "", 0.0), ("repeat", "", 3.0)], headers)
    assert answers == [("repeat", "1", float(i)) for i in (*range(5), *range(3))]


@pytest.mark.parametrize("megabytes", [1, 64])
def test_large_tensors(gateway: Running, megabytes: int) -> None:
    values = np.arange(megabytes << 18, dtype=np.float32)
    with gateway.grpc() as grpc, gateway.http() as http:
        assert ask(grpc, "echo", values=values) == 2
        assert ask(grpc, "echo", values=values, compression_algorithm="gzip" if megabytes == 1 else None) == 2
        assert ask_http(http, "echo", values=values) == 2


def test_several_large_tensors_at_once(gateway: Running) -> None:
    values = np.arange(64 << 18, dtype=np.float32)
    with gateway.grpc() as grpc, ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: ask(grpc, "echo", values=values), range(6))) == [2] * 6
    assert gateway.envoy_up()


def test_a_large_message_on_a_stream(gateway: Running) -> None:
    with gateway.grpc() as client:
        found: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: found.put((result, error)), headers={"x-model-name": "echo"})
        values = np.arange(30 << 18, dtype=np.float32)
        for _ in range(4):
            client.async_stream_infer("echo", grpc_input(values))
        client.stop_stream()
        for _ in range(4):
            result, error = found.get_nowait()
            assert error is None
            assert np.array_equal(result.as_numpy("OUT"), values)


def test_too_large_requests(gateway: Running) -> None:
    values = np.zeros((80 << 18) + 1, dtype=np.float32)
    with gateway.grpc() as client, pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*83886080 bytes"):
        ask(client, "echo", values=values)
    with gateway.http() as client, pytest.raises(InferenceServerException, match=r"413.*83886080 bytes"):
        ask_http(client, "echo", values=values)


def memory_bytes(process: int) -> int:
    """The most memory that a process has held so far."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_small_request_that_unpacks_to_a_large_one(
    gateway: Running, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    body = pack(b"{}" + b" " * 600_000_000)
    before = memory_bytes(gateway.process.pid)
    answer = httpx2.post(
        f"http://{gateway.http_url}/v2/models/sum/infer",
        content=body,
        headers={"content-encoding": encoding},
        timeout=60,
    )
    assert (answer.status_code, "83886080 bytes" in answer.json()["error"]) == (413, True)
    assert memory_bytes(gateway.process.pid) - before < 300_000_000


@pytest.mark.parametrize(
    "body",
    [b"[1]", b"1", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"parameters": {"sequence_id": "\\ud800"}}', b"{"],
    ids=["list", "number", "deep-lists", "deep-objects", "not-utf-8", "half-a-character", "unfinished"],
)
@pytest.mark.parametrize("call", ["infer", "generate"])
def test_a_body_that_is_no_json_object(gateway: Running, call: str, body: bytes) -> None:
    answer = httpx2.post(f"http://{gateway.http_url}/v2/models/sum/{call}", content=body, timeout=30)
    assert (answer.status_code, "not a JSON object" in answer.json()["error"]) == (400, True) or (
        call == "generate" and b"sequence_id" in body  # there it stands where nobody looks for it
    ), answer.text
    assert "Traceback" not in gateway.log()


def test_a_sequences_id_of_any_length_is_not_remembered(gateway: Running) -> None:
    with gateway.grpc() as client, pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*128 characters"):
        client.infer("sumtext", grpc_input(((1.0,),)), sequence_id="x" * 129, sequence_start=True)


def sequence_answers(ask_one: Callable[[float, bool, bool], Any], count: int) -> list[float]:
    return [float(ask_one(1.0, i == 0, i == count - 1)) for i in range(count)]


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("kind", ["number", "text"])
def test_sequences_stay_on_one_replica_over_grpc(gateway: Running, kind: str, number: int) -> None:
    model, key = ("sum", 100 + number) if kind == "number" else ("sumtext", f"session-{number}")
    with gateway.grpc() as client:

        def one(value: float, start: bool, end: bool) -> Any:
            result = client.infer(
                model, grpc_input(((value,),)), sequence_id=key, sequence_start=start, sequence_end=end
            )
            return result.as_numpy("OUT")[0][0]

        assert sequence_answers(one, 6) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_sequences_stay_on_one_replica_over_http(gateway: Running, binary: bool, number: int) -> None:
    with gateway.http() as client:

        def one(value: float, start: bool, end: bool) -> Any:
            given = httpclient.InferInput("IN", [1, 1], "FP32")
            given.set_data_from_numpy(np.array([[value]], dtype=np.float32), binary_data=binary)
            result = client.infer(
                "sum", [given], sequence_id=200 + number, sequence_start=start, sequence_end=end,
                request_compression_algorithm="gzip" if number % 2 else None,
            )  # fmt: skip
            return result.as_numpy("OUT")[0][0]

        assert sequence_answers(one, 5) == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_sequences_on_a_stream(gateway: Running) -> None:
    found: queue.Queue[Any] = queue.Queue()
    with gateway.grpc() as client:
        client.start_stream(lambda result, error: found.put((result, error)))
        for i in range(5):
            client.async_stream_infer(
                "sum", grpc_input(((1.0,),)), sequence_id=300, sequence_start=i == 0, sequence_end=i == 4
            )
        client.stop_stream()
    answers = [found.get_nowait() for _ in range(5)]
    assert [float(result.as_numpy("OUT")[0][0]) for result, _ in answers] == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("way", ["envoy", "side"])
def test_cancellation_reaches_the_server(gateway: Running, tritons: tuple[Triton, Triton], way: str) -> None:
    def said(word: str) -> int:
        return sum(each.said(word) for each in tritons)

    started, cancelled = said("started"), said("cancelled")
    with gateway.grpc() as client:
        headers = {"x-model-name": "slow"} if way == "envoy" else None
        client.start_stream(lambda result, error: None, headers=headers)
        client.async_stream_infer("slow", grpc_input())
        wait_for(lambda: said("started") > started, "the request to run")
        client.stop_stream(cancel_requests=True)
    wait_for(lambda: said("cancelled") > cancelled, "the server to see that the client is gone")


@pytest.mark.usefixtures("gate")
def test_an_http_client_that_goes_away_is_waited_for_no_more(gateway: Running, tritons: tuple[Triton, Triton]) -> None:
    """Triton itself goes on with a generate call, here until the gate is opened after the test."""

    def in_flight() -> bool:
        return "gateway_side_requests{" in httpx2.get(f"{gateway.status}/metrics").text

    started, answered = (sum(each.said(word) for each in tritons) for word in ("started", "answered"))
    host, port = gateway.status.removeprefix("http://").split(":")
    body = b'{"IN": 1.0}'
    head = f"POST /v2/models/slow/generate_stream HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        wait_for(lambda: sum(each.said("started") for each in tritons) > started, "the request to run")
        assert in_flight()
    wait_for(lambda: not in_flight(), "nothing to be in flight")
    assert sum(each.said("answered") for each in tritons) == answered, "the model was not done"


async def test_the_asyncio_client(gateway: Running) -> None:
    async with grpcaio.InferenceServerClient(gateway.grpc_url) as client:
        results = await asyncio.gather(*(client.infer("echo", grpc_input((float(i),))) for i in range(50)))
        assert [float(each.as_numpy("OUT")[0]) for each in results] == [float(i) for i in range(50)]

        async def messages() -> AsyncIterator[dict[str, Any]]:
            for i in range(10):
                yield {"model_name": "echo", "inputs": grpc_input((float(i),))}

        answers = [result async for result, error in client.stream_infer(messages(), headers={"x-model-name": "echo"})]
        assert [float(each.as_numpy("OUT")[0]) for each in answers] == [float(i) for i in range(10)]


def counted(gateway: Running, model: str) -> int:
    """Requests that the statistics have of a model, whatever their version and code."""
    text = httpx2.get(f"{gateway.admin}/stats/prometheus").text
    lines = [line for line in text.splitlines() if line.startswith(f'envoy_model_requests{{model="{model}"')]
    return sum(int(line.rpartition(" ")[2]) for line in lines)


def test_the_access_log_and_statistics_say_who_served(gateway: Running) -> None:
    before = counted(gateway, "echo"), counted(gateway, "")
    with gateway.grpc() as grpc:
        ask(grpc, "echo", request_id="x")
        ask(grpc, "echo", compression_algorithm="gzip", values=(1.0,) * 1000)  # worth compressing

    def lines() -> list[dict[str, Any]]:
        text = (gateway.home.gateway / "access.log").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]  # whole ones

    def logged() -> bool:
        found = [each for each in lines() if each.get("model") == "echo" and each.get("code") == 200]
        return any(each.get("replica") in {"r1", "r2"} for each in found) and any(
            each.get("side_replica") in {"r1", "r2"} and each["side_version"] == "2" for each in lines()
        )

    wait_for(logged, "the access log's lines")
    line = next(each for each in lines() if each.get("model") == "echo" and each.get("grpc_status") == "OK")
    assert {"time", "duration_ms", "version", "request_id", "request_bytes", "response_bytes"} <= line.keys()
    text = httpx2.get(f"{gateway.admin}/stats/prometheus").text
    assert 'envoy_model_requests{model="echo",version="2",protocol="grpc",code="OK"}' in text
    assert "nobody" not in text
    wait_for(lambda: counted(gateway, "echo") >= before[0] + 2, "the requests to be counted")
    assert (counted(gateway, "echo"), counted(gateway, "")) == (before[0] + 2, before[1]), "each once"


def test_health_and_metrics(gateway: Running) -> None:
    assert httpx2.get(f"{gateway.status}/healthz").json()["envoy"] == "running"
    text = httpx2.get(f"{gateway.status}/metrics").text
    assert "gateway_table_routes 6.0" in text
