"""The controller's HTTP API: the sync calls of agents and gateways, and what `ctl` reads.

All of it is for callers who show who they are, but for probes. Where several controllers stand by, only the leader does
what is asked; the others name it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.core.errors import STATUS, Busy, ControlPlaneError, InvalidInput, NotFound, NotLeader
from controlplane.core.messages import Assignment, GatewayOrder, GatewayReport, ReplicaReport
from controlplane.local.serving import to_nobody, while_connected
from controlplane.server import explain
from controlplane.server.controller import Controller
from controlplane.server.identity import Forbidden, Identify, SharedToken, permit
from controlplane.server.openapi import document
from controlplane.server.targets import targets
from controlplane.server.top import top

log = structlog.get_logger(__name__)

MAX_WAIT_S = 25.0
MAX_REPORT_BYTES = 64 << 20
RETRY_AFTER_S = 1
"""When to ask again where nobody leads yet."""
OPEN = frozenset({"/healthz", "/livez", "/readyz"})
"""Probes, for which nobody needs a token."""

LEADS = """\
# HELP ctl_controller_leads 1 where the controller leads, 0 where it stands by
# TYPE ctl_controller_leads gauge
ctl_controller_leads {}
"""

_REPLICA_REPORT = TypeAdapter(ReplicaReport)
_GATEWAY_REPORT = TypeAdapter(GatewayReport)
_ASSIGNMENT = TypeAdapter(Assignment)
_ORDER = TypeAdapter(GatewayOrder)
_ANY: TypeAdapter[Any] = TypeAdapter(Any)

Message = TypeVar("Message", ReplicaReport, GatewayReport)
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True, kw_only=True)
class Serving:
    """What stands behind the API at present.

    `controller`: the one that leads here; None while none does. `leader`: the base URL of the controller that leads
    elsewhere, None while nobody is known to. `ready`: whether a controller that does not lead can do its part.
    """

    controller: Controller | None = None
    leader: Callable[[], str | None] = lambda: None
    ready: Callable[[], bool] = lambda: False

    @property
    def leading(self) -> Controller | None:
        """The controller that leads here, but for one that is coming to its end: who calls it would only call again."""
        return self.controller if self.controller is not None and not self.controller.orders.closed else None


def make_app(controller: Controller, token: str) -> Starlette:
    """The ASGI application for one controller that is alone, with one token for everybody."""
    return application(Serving(controller=controller), SharedToken(token))


def application(serving: Serving, identify: Identify) -> Starlette:
    """The ASGI application. `serving` is looked at anew with each call."""

    def leading() -> Controller:
        controller = serving.leading
        if controller is None:
            raise Busy("this controller does not lead at present", retry_after_s=RETRY_AFTER_S, remedy="ask again")
        return controller

    async def sync_replica(request: Request) -> Response:
        report = await _read(request, _REPLICA_REPORT, "replica")
        assignment = await while_connected(request, leading().sync_replica(report, _wait_s(request)))
        return _json(_ASSIGNMENT, assignment) if assignment is not None else Response(status_code=204)

    async def sync_gateway(request: Request) -> Response:
        report = await _read(request, _GATEWAY_REPORT, "gateway")
        order = await while_connected(request, leading().sync_gateway(report, _wait_s(request)))
        return _json(_ORDER, order) if order is not None else Response(status_code=204)

    def read(describe: Callable[[Controller, float], object]) -> Handler:
        async def handler(_: Request) -> Response:
            return _json(_ANY, describe(leading(), time.time()))

        return handler

    async def explain_model(request: Request) -> Response:
        return _json(_ANY, explain.model(leading(), request.path_params["name"], time.time()))

    async def explain_fleet(request: Request) -> Response:
        return _json(_ANY, explain.fleet(leading(), request.path_params["name"], time.time()))

    async def healthz(_: Request) -> Response:
        controller = serving.controller
        return JSONResponse({"status": "ok" if controller and controller.planned_at else "starting"})

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        leads = serving.leading is not None
        ready = leads or serving.ready()
        role = "leader" if leads else "standby" if ready else "starting"
        return JSONResponse({"status": role}, status_code=200 if ready else 503)

    async def openapi(_: Request) -> Response:
        return JSONResponse(document())

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/openapi.json", openapi),
            _metrics(serving),
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
        middleware=[Middleware(_Doorkeeper, serving=serving, identify=identify)],
        exception_handlers={ControlPlaneError: _as_response, ClientDisconnect: to_nobody},
    )


def metrics_application(serving: Serving) -> Starlette:
    """The ASGI application that has `/metrics` and nothing else, for anybody."""
    return Starlette(routes=[_metrics(serving)])


def _metrics(serving: Serving) -> Route:
    async def metrics(_: Request) -> Response:
        leading = serving.leading
        text = LEADS.format(int(leading is not None)).encode() + (leading.metrics.expose() if leading else b"")
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return Route("/metrics", metrics)


class _Doorkeeper:
    """Lets in who may do what he wants to, but for probes, which anybody may; leads others to the leader.

    Where to go is told without a look at the token: the leader will look at it, and a standby can tell it even while
    the API server is away.
    """

    def __init__(self, app: ASGIApp, serving: Serving, identify: Identify) -> None:
        self._app = app
        self._serving = serving
        self._identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                if self._serving.leading is None and scope["path"].startswith("/v1/"):
                    raise self._elsewhere()
                given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
                permit(await self._identify(given), scope["method"], scope["path"])
            except ControlPlaneError as error:
                log.debug("call refused", code=error.code, reason=str(error), path=scope["path"])
                await _error(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _elsewhere(self) -> ControlPlaneError:
        leader = self._serving.leader()
        if leader is None:
            return Busy("no controller leads at present", retry_after_s=RETRY_AFTER_S, remedy="ask again")
        return Elsewhere(leader)


class Elsewhere(NotLeader):
    """Another controller leads, at `location`."""

    def __init__(self, location: str) -> None:
        super().__init__(f"the controller at {location} leads", remedy="ask there")
        self.location = location


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
    status = 403 if isinstance(error, Forbidden) else STATUS[error.code].http
    headers = {}
    if isinstance(error, Busy):
        headers["retry-after"] = f"{error.retry_after_s:g}"
    if isinstance(error, Elsewhere):
        headers["location"] = error.location
    return JSONResponse({"error": content}, status_code=status, headers=headers)


async def _as_response(_: Request, error: Exception) -> Response:
    if not isinstance(error, ControlPlaneError):
        raise error
    if not isinstance(error, NotFound):
        log.info("call refused", code=error.code, reason=str(error))
    return _error(error)
