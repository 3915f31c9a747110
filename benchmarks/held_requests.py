"""Memory of a request that waits for a model that is not loaded, in the gateway's Python side and in its Envoy.

The peers are a bare grpc.aio server, and a bare uvicorn with Starlette, whose handlers only wait: what the libraries
themselves take for a request. Clients give up in the end, and come again: what they held must be free for the next.

`python -m benchmarks.held_requests [requests of 1 KB] [requests of 256 KB]`
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import httpx2
import numpy as np
import psutil
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import uvicorn
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as HttpRoute
from tritonclient.grpc import service_pb2

from benchmarks.ending import scratch
from benchmarks.gateway_parts import INFER
from controlplane.core.routes import Route, RouteTable, Target
from controlplane.local.home import Home
from controlplane.local.processes import HOME_VARIABLE, free_ports, read_record
from examples.interrupts import interruptible
from gateway.settings import Settings, write_settings
from gateway.state import Kept, Ports, Served

INFER_PATH = "/v2/models/cold/infer"

GRPC, HTTP = "gRPC", "HTTP"
LIMIT = 1.5
"""The Python side's memory for a request against the bare server's."""
GROWTH = 0.2
"""Memory that a second wave may take beyond the first, as a share of it."""
CHANNELS = 8
"""Over gRPC a connection carries 1024 requests at once; over HTTP each request has its own."""
WAIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A server that holds requests, by protocol on `ports`. `count` says how many it has."""

    ports: Mapping[str, int]
    count: Callable[[], Awaitable[int]]
    processes: dict[str, psutil.Process]

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        return {name: process.memory_info().rss for name, process in self.processes.items()}


def of_size(given: grpcclient.InferInput | httpclient.InferInput, size_bytes: int) -> None:
    """Fill the input of a request for the model that never comes."""
    given.set_data_from_numpy(np.zeros((1, size_bytes // 4), dtype=np.int32))


async def gateway(folder: Path, most: int) -> Held:
    """The gateway, whose table knows the model and leads nowhere."""
    home = Home(folder)
    home.prepare()
    bounds = {"held_per_model": most, "held_total": most, "held_bytes": 1 << 40}
    write_settings(home.gateway, Settings(grpc_port=0, http_port=0, threads=1, cold_wait_s=3600.0, **bounds))  # type: ignore[arg-type]
    cold = Route(model="cold", targets=(Target(version=1, pool=None),), pinned={1: None})
    Kept(home.gateway / "served.json", Served).keep(Served(table=RouteTable(routes={"cold": cold})))
    process = _start([sys.executable, "-m", "gateway", "--home", str(folder)], folder)
    ports = home.gateway / "ports.json"

    async def count() -> int:
        url = f"http://127.0.0.1:{TypeAdapter(Ports).validate_json(ports.read_bytes()).side_http}/healthz"
        async with httpx2.AsyncClient() as client:
            return int((await client.get(url)).json()["waiting"])

    await _until(count, 0)
    await _until(lambda: _running(home), True)
    record = read_record(home.gateway / "envoy.pid.json")
    envoy = record.process() if record else None
    assert envoy is not None
    of_clients = TypeAdapter(Ports).validate_json(ports.read_bytes())
    return Held(
        ports={GRPC: of_clients.grpc, HTTP: of_clients.http},
        count=count,
        processes={"Python side": process, "Envoy": envoy},
    )


async def _running(home: Home) -> bool:
    async with httpx2.AsyncClient() as client:
        url = f"http://{(home.gateway / 'envoy-admin').read_text().strip()}/ready"
        return (await client.get(url)).status_code == 200


async def bare(folder: Path, protocol: str) -> Held:
    """The peer, in a process of its own."""
    (port,) = free_ports(1)
    process = _start([sys.executable, "-m", "benchmarks.held_requests", "--serve", protocol, str(port)], folder)

    async def count() -> int:
        if protocol == HTTP:
            async with httpx2.AsyncClient() as client:
                return int((await client.get(f"http://127.0.0.1:{port}/count")).text)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return int(await channel.unary_unary("/count", None, None)(b"", timeout=10))

    await _until(count, 0)
    return Held(ports={protocol: port}, count=count, processes={"bare": process})


class _BareGrpc(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Holds every request and its message until its client goes."""

    def __init__(self) -> None:
        self._count = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:  # type: ignore[type-arg]
        """The handler for one call's path."""

        async def hold(_message: bytes, _context: object) -> bytes:
            self._count += 1
            try:
                await asyncio.Event().wait()
            finally:
                self._count -= 1
            return b""

        async def count(_message: bytes, _context: object) -> bytes:
            return str(self._count).encode()

        return grpc.unary_unary_rpc_method_handler(count if handler_call_details.method == "/count" else hold)


class _BareHttp:
    """The same for HTTP."""

    def __init__(self) -> None:
        self._count = 0
        infer = HttpRoute(INFER_PATH, self._hold, methods=["POST"])
        self.app = Starlette(routes=[infer, HttpRoute("/count", self._counted)])

    async def _hold(self, request: Request) -> Response:
        _body = await request.body()
        self._count += 1
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        finally:
            self._count -= 1
        return Response()

    async def _counted(self, _request: Request) -> Response:
        return Response(str(self._count))


async def _serve(protocol: str, port: int) -> None:
    if protocol == HTTP:
        config = uvicorn.Config(_BareHttp().app, port=port, log_config=None, access_log=False, lifespan="off")
        await uvicorn.Server(config).serve()
        return
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.server.max_pending_requests", 1 << 16),
            ("grpc.server.max_pending_requests_hard_limit", 1 << 16),
        ]
    )
    server.add_generic_rpc_handlers((_BareGrpc(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _start(command: list[str], folder: Path) -> psutil.Process:
    with (folder / "log").open("ab") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, HOME_VARIABLE: str(folder)})
    return psutil.Process(started.pid)


async def _until(value: Callable[[], Awaitable[int]], wanted: int) -> None:
    end = time.monotonic() + WAIT_S
    found: object = None
    while found != wanted:
        try:
            found = await value()
        except (OSError, ValueError, httpx2.HTTPError, grpc.aio.AioRpcError) as error:
            found = error
        if time.monotonic() > end:
            raise SystemExit(f"waited {WAIT_S:g} s for {wanted}, last: {found}")
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def over_grpc(port: int, size_bytes: int, requests: int) -> AsyncGenerator[None]:
    """So many requests under way, until their clients give up."""
    given = grpcclient.InferInput("INPUT", [1, size_bytes // 4], "INT32")
    of_size(given, size_bytes)
    request = service_pb2.ModelInferRequest(model_name="cold", inputs=[given._get_tensor()])
    request.raw_input_contents.append(given._get_content())
    body = bytes(request.SerializeToString())
    # Of their own each: channels to one address would share a connection.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(CHANNELS)]
    calls = [channels[number % CHANNELS].unary_unary(INFER, None, None)(body) for number in range(requests)]
    waiting = [asyncio.ensure_future(call) for call in calls]
    try:
        yield
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for channel in channels:
            await channel.close(None)


@contextlib.asynccontextmanager
async def over_http(port: int, size_bytes: int, requests: int) -> AsyncGenerator[None]:
    """The same over HTTP, each with a connection of its own."""
    given = httpclient.InferInput("INPUT", [1, size_bytes // 4], "INT32")
    of_size(given, size_bytes)
    body, json_bytes = httpclient.InferenceServerClient.generate_request_body([given])
    head = [
        f"POST {INFER_PATH} HTTP/1.1",
        f"host: 127.0.0.1:{port}",
        f"content-length: {len(body)}",
        f"inference-header-content-length: {json_bytes}",
    ]
    sent = "\r\n".join([*head, "", ""]).encode() + body
    writers = []
    try:
        for _ in range(requests):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            writer.write(sent)
            await writer.drain()
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


OVER = {GRPC: over_grpc, HTTP: over_http}


async def wave(held: Held, protocol: str, size_bytes: int, requests: int) -> dict[str, int]:
    """Memory while so many requests wait; then their clients give up."""
    async with OVER[protocol](held.ports[protocol], size_bytes, requests):
        await _until(held.count, requests)
        memory = held.memory()
    await _until(held.count, 0)
    return memory


async def measure(
    held: Held, protocol: str, size_bytes: int, requests: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes a request by process, in a first wave and in a second one, above what a small one left."""
    await wave(held, protocol, size_bytes, CHANNELS * 4)
    before = held.memory()
    first = await wave(held, protocol, size_bytes, requests)
    second = await wave(held, protocol, size_bytes, requests)
    return tuple({name: (each[name] - before[name]) / requests for name in before} for each in (first, second))  # type: ignore[return-value]


async def run(small: int, large: int) -> int:
    """Measure and print; 1 when a limit is missed."""
    missed, sizes = 0, ((1024, small), (256 << 10, large))
    print(f"{'':15} {'':>8} {'KB a request: bare':>19} {'Python side':>12} {'ratio':>6} {'2nd wave':>9} {'Envoy':>7}")
    for protocol, size_bytes, requests in [(each, *size) for each in OVER for size in sizes]:
        with scratch() as folder:
            peer, _ = await measure(await bare(folder, protocol), protocol, size_bytes, requests)
        with scratch() as folder:
            first, second = await measure(await gateway(folder, requests), protocol, size_bytes, requests)
        ours, again = first["Python side"], second["Python side"]
        ratio = ours / peer["bare"]
        found = (peer["bare"], ours, again, first["Envoy"])
        bare_kb, ours_kb, again_kb, envoy_kb = (value / 1024 for value in found)
        print(
            f"{protocol} {size_bytes // 1024:7} KB {requests:8} {bare_kb:19.1f} {ours_kb:12.1f} {ratio:6.2f} "
            f"{again_kb:9.1f} {envoy_kb:7.1f}"
        )
        kept = ratio <= LIMIT and again <= ours * (1 + GROWTH)
        print(f"  limit {LIMIT}, second wave / first {again / ours:.2f} (limit {1 + GROWTH})", end=" ")
        print("ok" if kept else "MISSED")
        missed += not kept
    return 1 if missed else 0


def main(small: int, large: int) -> int:
    """Run it."""
    return asyncio.run(run(small, large))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(_serve(sys.argv[2], int(sys.argv[3])))
    else:
        given = [int(each) for each in sys.argv[1:]]
        sys.exit(interruptible(lambda: main(*(given + [4000, 1000][len(given) :]))))
