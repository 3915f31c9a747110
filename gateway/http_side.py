"""The Python side's HTTP calls: sequences and models that are not loaded. And its health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import uvicorn
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from controlplane.core.errors import STATUS, ControlPlaneError, InvalidInput, Overloaded
from controlplane.local.serving import QuietServer, to_nobody, while_connected
from gateway import server_calls
from gateway.forwarding import Destination, Forwarding
from gateway.metadata import served
from gateway.sequences import NO_SEQUENCE, SequenceMark
from gateway.settings import Settings

PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/.*)?")
INFERENCES = ("/infer", "/generate", "/generate_stream")
ATTEMPTS = 3
NOT_PASSED = frozenset(
    {"host", "connection", "keep-alive", "transfer-encoding", "te", "upgrade", "accept-encoding", "content-length"}
)
LENGTH = "inference-header-content-length"
ENCODINGS = frozenset({"gzip", "deflate"})
ANY_HEADER = 47
"""For zlib: gzip's header or zlib's own, whichever is there; so Triton reads both encodings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameters:
    sequence_id: Any = None
    sequence_start: Any = False
    sequence_end: Any = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inference:
    parameters: _Parameters = field(default_factory=_Parameters)


PARAMETERS, INFERENCE = TypeAdapter(_Parameters), TypeAdapter(_Inference)


class TooLarge(InvalidInput):
    """A request that is larger than the gateway's limit, as it comes or unpacked."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the request is larger than the gateway's limit of {limit_bytes} bytes")


class HttpSide:
    """Passes requests on, held until they can go somewhere. An ASGI application: what Starlette wraps around
    a handler would be there for each request that waits."""

    def __init__(self, forwarding: Forwarding, settings: Settings) -> None:
        self._forwarding = forwarding
        self._settings = settings
        self._received_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        answer = await self.answer(Request(scope, receive, send))
        await answer(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """The answer to one request. Raises ClientDisconnect."""
        found = PATH.fullmatch(request.url.path)
        if found is None:
            return _error(404, f"no such path: {request.url.path}")
        try:
            if found["rest"] == "/ready" and not self._forwarding.loaded(found["model"], found["version"] or ""):
                return _error(400, f"{found['model']} is not loaded")
            async with self._received(request) as body:
                mark = NO_SEQUENCE
                if body:  # in a thread: unpacking a large body takes long
                    limit = self._settings.max_request_bytes
                    mark = await asyncio.to_thread(sequence_mark, request.headers, body, found["rest"] or "", limit)
            return await while_connected(request, self._answer(request, found, body, mark))
        except TooLarge as error:
            return _error(413, str(error))
        except Overloaded as error:
            return _error(STATUS[error.code].http, str(error), {"retry-after": str(error.retry_after_s)})
        except ControlPlaneError as error:
            return _error(STATUS[error.code].http, str(error))

    @contextlib.asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[bytes]:
        """The body. Until it is known where it goes, it counts among those that are being received: together they are
        bounded, however slowly they come; one alone always may be larger."""
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                self._received_bytes += len(part)
                if size > self._settings.max_request_bytes:
                    raise TooLarge(self._settings.max_request_bytes)
                if size < self._received_bytes > self._settings.held_bytes:
                    text = f"the requests that are being received hold more than {self._settings.held_bytes} bytes"
                    raise Overloaded(text, retry_after_s=1)
                parts.append(part)
            body = b"".join(parts)
            parts.clear()  # else there are two copies until it is read
            yield body
        finally:
            self._received_bytes -= size

    async def _answer(self, request: Request, found: re.Match[str], body: bytes, mark: SequenceMark) -> Response:
        model, wish, rest = found["model"], found["version"] or "", found["rest"] or ""
        destination = await self._forwarding.destination(model, wish, mark=mark, size_bytes=len(body))
        return await self._forward(request, body, rest, destination)

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
        text = f"replica {destination.endpoint.replica} does not answer: {failure}"
        return _error(503, text, dict(served(destination)))

    async def _send(self, request: Request, body: bytes, rest: str, destination: Destination) -> Response:
        endpoint, resolved = destination.endpoint, destination.resolved
        query = f"?{request.url.query}" if request.url.query else ""
        url = f"http://{endpoint.http}/v2/models/{resolved.model}/versions/{resolved.version}"
        headers = [(name, value) for name, value in request.headers.items() if _passed(name)]
        client = self._forwarding.replicas.http(endpoint)
        if endpoint.draining:
            headers.append(("connection", "close"))  # who drains is about to stop, which idle connections would delay
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._forwarding.replicas.request(endpoint, resolved.alone))
            answer = await client.send(
                client.build_request(request.method, url + rest + query, headers=headers, content=body), stream=True
            )
            counted = stack.pop_all()
        if rest in INFERENCES:
            self._forwarding.replicas.heard(endpoint, failed=answer.status_code == 500)

        kept = {name: value for name, value in answer.headers.items() if name not in NOT_PASSED - {"content-length"}}
        return _Passed(answer, counted, {**kept, **dict(served(destination))})


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


def sequence_mark(headers: Mapping[str, str], body: bytes, rest: str, limit_bytes: int) -> SequenceMark:
    """What an HTTP inference request says of its sequence. Raises InvalidInput; TooLarge for what unpacks to more."""
    text = _unpacked(body, limit_bytes) if headers.get("content-encoding", "").lower() in ENCODINGS else body
    if LENGTH in headers:
        length = headers[LENGTH]
        if not length.isdecimal() or int(length[:20]) > len(text):
            raise InvalidInput(f"{LENGTH} is not the length of a part of the request: {length[:40]}")
        text = text[: int(length)]
    try:
        # The generate calls have the parameters at the top.
        if rest.startswith("/generate"):
            parameters = PARAMETERS.validate_json(text)
        else:
            parameters = INFERENCE.validate_json(text).parameters
    except ValidationError as error:
        raise InvalidInput(f"the request is not a JSON object of the protocol: {error.errors()[0]['msg']}") from error
    key = parameters.sequence_id
    return SequenceMark(
        key=str(key) if key and isinstance(key, int | str) else "",
        start=parameters.sequence_start is True,
        end=parameters.sequence_end is True,
    )


def _unpacked(body: bytes, limit_bytes: int) -> bytes:
    unpacking = zlib.decompressobj(ANY_HEADER)
    try:
        text = unpacking.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise InvalidInput(f"the request can't be unpacked: {error}") from error
    if len(text) > limit_bytes:
        raise TooLarge(limit_bytes)
    if not unpacking.eof:
        raise InvalidInput("the request can't be unpacked: it ends too early")
    return text


def _passed(name: str) -> bool:
    return name not in NOT_PASSED and not name.startswith(("x-gateway-", "x-envoy-"))


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status, headers=headers)


def application(side: HttpSide, health: Any, metrics: Any) -> Starlette:
    """The HTTP application: `/healthz`, `/metrics`, the models' paths, and the server's."""
    return Starlette(
        routes=[
            Route("/healthz", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/v2/models/{path:path}", side, methods=["GET", "POST"]),
            *server_calls.HTTP,
        ],
        exception_handlers={ClientDisconnect: to_nobody},
    )


def server(app: Starlette, port: int) -> tuple[uvicorn.Server, socket.socket]:
    """A server on loopback, on `port` if that is free; serve it with `serve(sockets=[…])`."""
    # asyncio sends small answers at once (TCP_NODELAY) only on sockets that say that they are TCP.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=3600)
    return QuietServer(config), listener
