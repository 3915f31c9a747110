"""Triton's gRPC protocol, as far as the agent speaks it. Loads go over gRPC because over HTTP they block inference."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from controlplane.agent.server import ServerDied, Use
from controlplane.client.calls import cancelled
from controlplane.core.errors import LoadFailed
from controlplane.core.names import Key

CALL_TIMEOUT_S = 10.0
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Deadline(ServerDied):
    """A call took longer than it may: it is too much work, or the server hangs."""


class TritonClient:
    """One server's gRPC side. Every call has a deadline.

    Raises ServerDied when the server can't be reached, Deadline when it took too long, LoadFailed with Triton's own
    words for whatever else it refuses.
    """

    def __init__(self, host: str, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"{host}:{port}", options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Drop the connection."""
        await self._channel.close(None)

    async def _call(self, method: Any, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return await method(request, timeout=timeout_s)
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            raise _meant(error) from error
        except grpc.aio.AioRpcError as error:
            details = (error.details() or "").strip()
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Deadline(details) from error
            # Triton, too, answers UNAVAILABLE for some failures of a model; those come with words of its own.
            if error.code() in _GONE and "model" not in details:
                raise ServerDied(f"the server can't be reached: {details}") from error
            raise LoadFailed(details or str(error.code())) from error

    async def live(self, timeout_s: float) -> bool:
        """Whether the server answers that it lives."""
        try:
            answer = await self._call(self._stub.ServerLive, service_pb2.ServerLiveRequest(), timeout_s)
        except (Deadline, ServerDied, LoadFailed):
            return False
        return bool(answer.live)

    async def server_version(self) -> str:
        """Triton's version."""
        answer = await self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest())
        return str(answer.version)

    async def load(self, model: str, timeout_s: float) -> None:
        """Load a model as its directory says; returns when it is loaded."""
        await self._call(
            self._stub.RepositoryModelLoad, service_pb2.RepositoryModelLoadRequest(model_name=model), timeout_s
        )

    async def unload(self, model: str, timeout_s: float) -> None:
        """Begin to unload a model."""
        await self._call(
            self._stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest(model_name=model), timeout_s
        )

    async def index(self) -> Mapping[Key, str]:
        """The state of each version that the server knows: READY, LOADING, UNLOADING, UNAVAILABLE."""
        answer = await self._call(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest())
        return {Key(each.name, int(each.version)): each.state for each in answer.models if each.version}

    async def ready(self, key: Key) -> bool:
        """Whether Triton calls a version ready."""
        answer = await self._call(
            self._stub.ModelReady, service_pb2.ModelReadyRequest(name=key.model, version=str(key.version))
        )
        return bool(answer.ready)

    async def metadata(self, key: Key) -> service_pb2.ModelMetadataResponse:
        """What a version says that it takes and gives."""
        return await self._call(
            self._stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=key.model, version=str(key.version))
        )

    async def infer(self, request: service_pb2.ModelInferRequest, timeout_s: float) -> service_pb2.ModelInferResponse:
        """One inference."""
        return await self._call(self._stub.ModelInfer, request, timeout_s)

    async def infer_stream(
        self, request: service_pb2.ModelInferRequest, timeout_s: float
    ) -> service_pb2.ModelInferResponse:
        """One inference over a stream, as decoupled models want it; returns the first response with outputs."""
        try:
            call = self._stub.ModelStreamInfer(iter([request]), timeout=timeout_s)
        except grpc.aio.UsageError as error:
            raise _meant(error) from error
        try:
            async for answer in call:
                if answer.error_message:
                    raise LoadFailed(answer.error_message)
                if answer.infer_response.outputs:
                    return answer.infer_response
        except asyncio.CancelledError as error:
            raise _meant(error) from error
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Deadline(error.details() or "") from error
            raise ServerDied(f"the server can't be reached: {error.details()}") from error
        finally:
            call.cancel()
        raise LoadFailed("the stream ended without an answer")

    async def use(self) -> Mapping[Key, Use]:
        """What Triton counts of each version. Failed requests count as requests too."""
        answer = await self._call(self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest())
        return {
            Key(each.name, int(each.version)): Use(
                requests=each.inference_stats.success.count + each.inference_stats.fail.count,
                last_used_at=each.last_inference / 1000 if each.last_inference else None,
            )
            for each in answer.model_stats
            if each.version
        }


def _meant(error: asyncio.CancelledError | grpc.aio.UsageError) -> BaseException:
    """Closing a channel cancels its calls, which looks as if the task that waits had been cancelled. Which was it?

    Calls on a closed one are misuse to the library; here they come from who has not heard yet that the server died.
    """
    return error if cancelled() else ServerDied("the connection to the server was closed")
