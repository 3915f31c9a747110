"""The Python side's gRPC calls: compressed ones, sequences, models that are not loaded, streams without a header."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog

from controlplane.client.calls import cancelled
from controlplane.core.errors import ControlPlaneError, InvalidInput, NotFound, Overloaded, Unavailable
from gateway import server_calls, wire
from gateway.config.clusters import SHARED
from gateway.config.names import MODEL_CALLS, SERVICE, STREAM_CALL
from gateway.forwarding import Destination, Forwarding
from gateway.metadata import Metadata, passed_on, served
from gateway.settings import Settings
from gateway.streams import Stream

log = structlog.get_logger(__name__)

INFER = f"{SERVICE}ModelInfer"
ATTEMPTS = 3
RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)
"""What another replica may answer better: a stopping Triton says NOT_FOUND for a while."""
FAILED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""How Triton says that an inference failed."""


def status_of(error: ControlPlaneError) -> grpc.StatusCode:
    """The gRPC status that says what this error says."""
    if isinstance(error, NotFound):
        return grpc.StatusCode.NOT_FOUND
    if isinstance(error, InvalidInput):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, Overloaded):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return grpc.StatusCode.UNAVAILABLE


def after(error: ControlPlaneError) -> Metadata:
    """The trailing metadata that goes with this error."""
    return (("retry-after", str(error.retry_after_s)),) if isinstance(error, Overloaded) else ()


def trailing(error: Any) -> Metadata:
    """The trailing metadata of a failed call."""
    return tuple(error.trailing_metadata() or ())


class GrpcSide(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Handlers that get and give raw bytes; nothing here knows tensors."""

    def __init__(self, forwarding: Forwarding) -> None:
        self._forwarding = forwarding

    def service(self, handler_call_details: Any) -> Any:
        """The handler for one call's path."""
        method = handler_call_details.method
        if method in server_calls.GRPC:
            return grpc.unary_unary_rpc_method_handler(server_calls.answering(server_calls.GRPC[method]))
        if method == SERVICE + STREAM_CALL:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        name = method.removeprefix(SERVICE)
        if name not in MODEL_CALLS:
            return None

        async def unary(message: bytes, context: Any) -> bytes:
            return await self._unary(name, message, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(self, call: str, message: bytes, context: Any) -> bytes:
        try:
            envelope = wire.read(message, inference=call == "ModelInfer")
            if call == "ModelReady" and not self._forwarding.loaded(envelope.model, envelope.version):
                return wire.not_ready()
            destination = await self._forwarding.destination(
                envelope.model,
                envelope.version,
                mark=envelope.sequence,
                size_bytes=len(message),
                remaining_s=context.time_remaining(),
            )
        except ControlPlaneError as error:
            return await _abort(context, status_of(error), str(error), after(error))
        message = wire.forced(message, envelope.model, destination.resolved.version)
        tried: list[str] = []
        while True:
            try:
                return await self._call(SERVICE + call, message, context, destination)
            except grpc.aio.AioRpcError as error:
                if error.code() in FAILED:
                    self._forwarding.replicas.heard(destination.endpoint, failed=True)
                tried.append(destination.endpoint.replica)
                other = self._forwarding.next(destination, tried) if error.code() in RETRIED else None
                if other is None or len(tried) == ATTEMPTS:
                    await _tell(context, destination)
                    return await _abort(context, error.code(), error.details() or "", trailing(error))
                destination = other
            except Unavailable as error:
                await _tell(context, destination)
                return await _abort(context, status_of(error), str(error), after(error))

    async def _call(self, method: str, message: bytes, context: Any, destination: Destination) -> bytes:
        """A replica's answer. Raises AioRpcError, or Unavailable where its connection was closed meanwhile."""
        with self._forwarding.replicas.request(destination.endpoint, destination.resolved.alone):
            channel = self._forwarding.replicas.channel(destination.endpoint)
            call = channel.unary_unary(method)(
                message, timeout=context.time_remaining(), metadata=passed_on(context), wait_for_ready=False
            )
            try:
                answer: bytes = await call
                if method == INFER:
                    self._forwarding.replicas.heard(destination.endpoint, failed=False)
            except asyncio.CancelledError as error:
                if cancelled():
                    raise
                raise Unavailable(f"the connection to {destination.endpoint.replica} was closed") from error
            finally:
                call.cancel()  # nothing happens to one that has ended; one whose client is gone ends now
        context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))
        await context.send_initial_metadata((*(await call.initial_metadata() or ()), *served(destination)))
        return answer

    async def _stream(self, _: Any, context: Any) -> None:
        try:
            await Stream(self._forwarding, context).run()
        except ControlPlaneError as error:
            await _abort(context, status_of(error), str(error), after(error))
        except grpc.aio.AioRpcError as error:
            await _abort(context, error.code(), error.details() or "", trailing(error))


async def _tell(context: Any, destination: Destination) -> None:
    """Have Envoy know where a call failed: it looks for that ahead of an answer, not in what a failed one ends with."""
    await context.send_initial_metadata(served(destination))


async def _abort(context: Any, code: grpc.StatusCode, text: str, metadata: Metadata = ()) -> NoReturn:
    await context.abort(code, text, metadata)
    raise AssertionError("abort returned")


async def serve(forwarding: Forwarding, settings: Settings, port: int) -> tuple[grpc.aio.Server, int]:
    """Start the server on loopback, on `port` if that is free; returns it and the port it has."""
    limit = settings.max_request_bytes + (1 << 20)
    for wanted in (port, 0):
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.max_ping_strikes", 0),
                # The library cancels calls at random where more than a thousand have come that nobody has looked at
                # yet: a burst for a cold model. Envoy and Holding bound them, and say so.
                ("grpc.server.max_pending_requests", 4 * SHARED),
                ("grpc.server.max_pending_requests_hard_limit", 4 * SHARED),
            ]
        )
        server.add_generic_rpc_handlers((GrpcSide(forwarding),))
        try:
            bound = server.add_insecure_port(f"127.0.0.1:{wanted}")
        except RuntimeError:
            continue
        await server.start()
        return server, bound
    raise Unavailable("the gateway's Python side gets no port on loopback")
