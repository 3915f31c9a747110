"""The controller's HTTP API: the sync calls of agents and gateways, and what `ctl` reads. All need the token."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.core.errors import STATUS, ControlPlaneError, InvalidInput, NotFound, Unauthenticated
from controlplane.core.messages import Assignment, GatewayOrder, GatewayReport, ReplicaReport
from controlplane.server import explain
from controlplane.server.controller import Controller
from controlplane.server.openapi import document
from controlplane.server.targets import targets
from controlplane.server.top import top

log = structlog.get_logger(__name__)

MAX_WAIT_S = 25.0
MAX_REPORT_BYTES = 64 << 20

_REPLICA_REPORT = TypeAdapter(ReplicaReport)
_GATEWAY_REPORT = TypeAdapter(GatewayReport)
_ASSIGNMENT = TypeAdapter(Assignment)
_ORDER = TypeAdapter(GatewayOrder)
_ANY: TypeAdapter[Any] = TypeAdapter(Any)

Message = TypeVar("Message", ReplicaReport, GatewayReport)
Handler = Callable[[Request], Awaitable[Response]]


def make_app(controller: Controller, token: str) -> Starlette:
    """The ASGI application for one controller."""

    async def sync_replica(request: Request) -> Response:
        report = await _read(request, _REPLICA_REPORT, "replica")
        assignment = await controller.sync_replica(report, _wait_s(request))
        return _json(_ASSIGNMENT, assignment) if assignment is not None else Response(status_code=204)

    async def sync_gateway(request: Request) -> Response:
        report = await _read(request, _GATEWAY_REPORT, "gateway")
        order = await controller.sync_gateway(report, _wait_s(request))
        return _json(_ORDER, order) if order is not None else Response(status_code=204)

    def read(describe: Callable[[Controller, float], object]) -> Handler:
        async def handler(_: Request) -> Response:
            return _json(_ANY, describe(controller, time.time()))

        return handler

    async def explain_model(request: Request) -> Response:
        return _json(_ANY, explain.model(controller, request.path_params["name"], time.time()))

    async def explain_fleet(request: Request) -> Response:
        return _json(_ANY, explain.fleet(controller, request.path_params["name"], time.time()))

    async def metrics(_: Request) -> Response:
        return Response(controller.metrics.expose(), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok" if controller.planned_at else "starting"})

    async def openapi(_: Request) -> Response:
        return JSONResponse(document())

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/openapi.json", openapi),
            Route("/metrics", metrics),
            Route("/v1/replicas/{name}/sync", sync_replica, methods=["POST"]),
            Route("/v1/gateways/{name}/sync", sync_gateway, methods=["POST"]),
            Route("/v1/status", read(explain.status)),
            Route("/v1/models", read(explain.models)),
            Route("/v1/models/{name}/explain", explain_model),
            Route("/v1/replicas", read(explain.replicas)),
            Route("/v1/gateways", read(explain.gateways)),
            Route("/v1/fleets", read(explain.fleets)),
            Route("/v1/fleets/{name}/explain", explain_fleet),
            Route("/v1/routes", read(explain.routes)),
            Route("/v1/top", read(top)),
            Route("/v1/targets", read(targets)),
        ],
        middleware=[Middleware(_RequireToken, token=token)],
        exception_handlers={ControlPlaneError: _as_response},
    )


class _RequireToken:
    """Refuses every call without the token, but for the liveness probe."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/healthz":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._wanted):
                error = Unauthenticated("this call needs the controller's token", remedy="send it as a bearer token")
                await _error(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _read(request: Request, schema: TypeAdapter[Message], sender: str) -> Message:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REPORT_BYTES:
            raise InvalidInput(f"a report of more than {MAX_REPORT_BYTES} bytes")
    try:
        report = (
            await asyncio.to_thread(schema.validate_json, body) if len(body) > 1 << 20 else schema.validate_json(body)
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(first["msg"], field=".".join(str(part) for part in first["loc"])) from error
    name = getattr(report, sender)
    if name != request.path_params["name"]:
        raise InvalidInput(f"the report is {name}'s, the call {request.path_params['name']}'s", field=sender)
    return report


def _wait_s(request: Request) -> float:
    try:
        wait_s = float(request.query_params.get("wait_s", "0"))
        if not math.isfinite(wait_s):
            raise ValueError(wait_s)
        return min(max(wait_s, 0.0), MAX_WAIT_S)
    except ValueError as error:
        raise InvalidInput("not a number of seconds", field="wait_s") from error


def _json(schema: TypeAdapter[Any], value: object) -> Response:
    return Response(schema.dump_json(value), media_type="application/json")


def _error(error: ControlPlaneError) -> JSONResponse:
    content = {"code": error.code, "message": error.what, "field": error.field, "remedy": error.remedy}
    return JSONResponse({"error": content}, status_code=STATUS[error.code].http)


async def _as_response(_: Request, error: Exception) -> Response:
    if not isinstance(error, ControlPlaneError):
        raise error
    if not isinstance(error, NotFound):
        log.info("call refused", code=error.code, reason=str(error))
    return _error(error)
