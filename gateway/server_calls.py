"""Calls about the server, answered here while no replica could be asked (`RouteTable.asleep`): what is asked then waits
for one, so clients and load balancers that look before they ask have to hear that they may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tritonclient.grpc import service_pb2

from controlplane import __version__
from gateway.config.names import HEALTH_CALL, SERVICE

NAME = "triton-controlplane"

GRPC: Mapping[str, bytes] = {
    f"{SERVICE}ServerLive": service_pb2.ServerLiveResponse(live=True).SerializeToString(),
    f"{SERVICE}ServerReady": service_pb2.ServerReadyResponse(ready=True).SerializeToString(),
    f"{SERVICE}ServerMetadata": service_pb2.ServerMetadataResponse(name=NAME, version=__version__).SerializeToString(),
    HEALTH_CALL: b"\x08\x01",  # its only field, status: SERVING
}
"""The answers to gRPC calls."""


def answering(answer: bytes) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """A handler that says this, whatever is asked."""

    async def answered(_: bytes, __: Any) -> bytes:
        return answer

    return answered


async def _well(_: Request) -> Response:
    return Response()


async def _metadata(_: Request) -> Response:
    return JSONResponse({"name": NAME, "version": __version__, "extensions": []})


HTTP = (
    Route("/v2/health/live", _well),
    Route("/v2/health/ready", _well),
    Route("/v2", _metadata),
)
"""The routes of HTTP calls."""
