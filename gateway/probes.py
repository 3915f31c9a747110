"""What is asked of a gateway's pod. Kubernetes: whether it lives, whether it is ready, to drain before it is ended.
Prometheus, at a port of its own, since whoever gets to the other may drain: its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controlplane.core.errors import Conflict
from controlplane.local.serving import QuietServer
from gateway.service import Gateway


def application(gateway: Gateway, *, drain_s: float) -> Starlette:
    """`/livez`, `/readyz`, and `/drain`, which answers when nothing is in flight any more, or after `drain_s`."""

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        reason = gateway.unready
        return JSONResponse({"status": reason or "ready"}, status_code=503 if reason else 200)

    async def drain(_: Request) -> Response:
        left = await gateway.drain(drain_s)
        return JSONResponse({"in_flight": left})

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/drain", drain, methods=["GET", "POST"]),
        ]
    )


def metrics(gateway: Gateway) -> Starlette:
    """`/metrics`: the Python part's, and Envoy's with them while it answers."""

    async def answer(_: Request) -> Response:
        return Response(await gateway.metrics(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/metrics", answer)])


@contextlib.asynccontextmanager
async def serving(application: Starlette, *, option: str, port: int) -> AsyncIterator[int]:
    """Serve on all addresses, at the port that `option` gave; yields it. Raises Conflict for a port in use."""
    listener = _listen(port, option)
    config = uvicorn.Config(application, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=5)
    server = QuietServer(config)
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.gather(task, return_exceptions=True)
        listener.close()


def _listen(port: int, option: str) -> socket.socket:
    six = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("::" if six else "0.0.0.0", port),  # noqa: S104 - it is asked at the pod's address
            family=socket.AF_INET6 if six else socket.AF_INET,
            dualstack_ipv6=six,
            backlog=64,
        )
    except OSError as error:
        raise Conflict(
            f"the gateway can't listen on port {port}: {error.strerror}",
            field=option,
            remedy="end what listens there, or give another port",
        ) from error
