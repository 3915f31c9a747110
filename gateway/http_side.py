"""The Python side's HTTP calls: sequences and models that are not loaded. And its health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controlplane.core.errors import STATUS, ControlPlaneError, InvalidInput
from gateway.config.names import SERVED_MODEL, SERVED_REPLICA, SERVED_VERSION
from gateway.forwarding import Destination, Forwarding
from gateway.sequences import NO_SEQUENCE, SequenceMark
from gateway.settings import Settings

PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/.*)?")
ATTEMPTS = 3
NOT_PASSED = frozenset(
    {"host", "connection", "keep-alive", "transfer-encoding", "te", "upgrade", "accept-encoding", "content-length"}
)
LENGTH = "inference-header-content-length"


class HttpSide:
    """Passes requests on, held until they can go somewhere."""

    def __init__(self, forwarding: Forwarding, settings: Settings) -> None:
        self._forwarding = forwarding
        self._settings = settings

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        found = PATH.fullmatch(request.url.path)
        if found is None:
            return _error(404, f"no such path: {request.url.path}")
        try:
            if found["rest"] == "/ready" and not self._forwarding.loaded(found["model"], found["version"] or ""):
                return _error(400, f"{found['model']} is not loaded")
            body = await self._body(request)
            mark = sequence_mark(request.headers, body, found["rest"] or "") if body else NO_SEQUENCE
            destination = await self._while_connected(request, found["model"], found["version"] or "", mark, len(body))
            return await self._forward(request, body, found["rest"] or "", destination)
        except ControlPlaneError as error:
            return _error(STATUS[error.code].http, str(error))

    async def _body(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._settings.max_request_bytes:
                raise InvalidInput(f"the request is larger than {self._settings.max_request_bytes} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _while_connected(
        self, request: Request, model: str, wish: str, mark: SequenceMark, size_bytes: int
    ) -> Destination:
        """The destination; a client that goes away meanwhile ends the wait."""
        wait = asyncio.ensure_future(self._forwarding.destination(model, wish, mark=mark, size_bytes=size_bytes))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((wait, gone), return_when=asyncio.FIRST_COMPLETED)
            if not wait.done():
                raise InvalidInput("the client has gone away")
            return wait.result()
        finally:
            for task in (wait, gone):
                task.cancel()
            await asyncio.gather(wait, gone, return_exceptions=True)

    async def _forward(self, request: Request, body: bytes, rest: str, destination: Destination) -> Response:
        tried: list[str] = []
        following: Destination | None = destination
        failure = ""
        while following is not None and len(tried) < ATTEMPTS:
            destination = following
            try:
                return await self._send(request, body, rest, destination)
            except httpx2.TransportError as error:
                failure = str(error) or type(error).__name__
                tried.append(destination.endpoint.replica)
                following = self._forwarding.next(destination, tried)
        return _error(503, f"replica {destination.endpoint.replica} does not answer: {failure}")

    async def _send(self, request: Request, body: bytes, rest: str, destination: Destination) -> Response:
        endpoint, resolved = destination.endpoint, destination.resolved
        query = f"?{request.url.query}" if request.url.query else ""
        url = f"http://{endpoint.host}:{endpoint.http_port}/v2/models/{resolved.model}/versions/{resolved.version}"
        headers = [(name, value) for name, value in request.headers.items() if _passed(name)]
        client = self._forwarding.replicas.http
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._forwarding.replicas.request(endpoint))
            answer = await client.send(
                client.build_request(request.method, url + rest + query, headers=headers, content=body), stream=True
            )
            counted = stack.pop_all()

        kept = {name: value for name, value in answer.headers.items() if name not in NOT_PASSED - {"content-length"}}
        told = {
            SERVED_MODEL: resolved.model,
            SERVED_VERSION: str(resolved.version),
            SERVED_REPLICA: endpoint.replica,
        }
        return _Passed(answer, counted, {**kept, **told})


class _Passed(StreamingResponse):
    """A replica's answer on its way. Whatever becomes of the client, the connection is given back in the end."""

    def __init__(self, answer: httpx2.Response, counted: contextlib.ExitStack, headers: dict[str, str]) -> None:
        super().__init__(answer.aiter_raw(), status_code=answer.status_code, headers=headers)
        self._answer = answer
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._counted.close()
            await self._answer.aclose()


def sequence_mark(headers: Mapping[str, str], body: bytes, rest: str) -> SequenceMark:
    """What an HTTP inference request says of its sequence. Raises InvalidInput."""
    try:
        text = _decoded(headers.get("content-encoding", ""), body)
        if LENGTH in headers:
            text = text[: int(headers[LENGTH])]
        request = json.loads(text)
    except (ValueError, OSError, zlib.error, EOFError) as error:
        raise InvalidInput(f"the request is not JSON: {error}") from error
    # The generate calls have the parameters at the top.
    parameters = request if rest.startswith("/generate") else request.get("parameters", {})
    if not isinstance(parameters, dict):
        return SequenceMark()
    key = parameters.get("sequence_id")
    return SequenceMark(
        key=str(key) if key else "",
        start=parameters.get("sequence_start") is True,
        end=parameters.get("sequence_end") is True,
    )


def _decoded(encoding: str, body: bytes) -> bytes:
    if encoding == "gzip":
        return gzip.decompress(body)
    return zlib.decompress(body) if encoding == "deflate" else body


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _passed(name: str) -> bool:
    return name not in NOT_PASSED and not name.startswith(("x-gateway-", "x-envoy-"))


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status)


class _Quiet(uvicorn.Server):
    """A server that leaves signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def application(side: HttpSide, health: Any, metrics: Any) -> Starlette:
    """The HTTP application: `/healthz`, `/metrics` and the models' paths."""
    return Starlette(
        routes=[
            Route("/healthz", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/v2/models/{path:path}", side.__call__, methods=["GET", "POST"]),
        ]
    )


def server(app: Starlette, port: int) -> tuple[uvicorn.Server, socket.socket]:
    """A server on loopback, on `port` if that is free; serve it with `serve(sockets=[…])`."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=3600)
    return _Quiet(config), listener
