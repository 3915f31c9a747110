"""The Python side's streams, where the order of things that happen at once can be chosen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc.aio._call import StreamStreamCall
from tritonclient.grpc import service_pb2, service_pb2_grpc

from controlplane.core.routes import Endpoint
from gateway.forwarding import Forwarding
from gateway.grpc_side import serve
from gateway.holding import Holding
from gateway.replicas import Replicas
from gateway.sequences import Sequences
from gateway.settings import Settings
from tests.gateway.asking import grpc_input
from tests.gateway.running import route, table
from tests.gateway.triton import Triton


@asynccontextmanager
async def side(endpoint: Endpoint) -> AsyncIterator[str]:
    """The address of a Python side that leads model `echo` to one replica."""
    settings = Settings()
    holding = Holding(settings, table(endpoint, echo=route("echo", 2)), lambda: None)
    replicas = Replicas(settings)
    server, port = await serve(Forwarding(settings, holding, replicas, Sequences(settings.sequences)), settings, 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await replicas.close()


def ask(address: str, messages: int, close: bool = True) -> list[service_pb2.ModelStreamInferResponse]:
    """What comes back on one stream, whose client says that nothing more will come or goes on. Raises RpcError."""
    over = threading.Event()

    def sent() -> Iterator[service_pb2.ModelInferRequest]:
        (given,) = grpc_input()
        for _ in range(messages):
            request = service_pb2.ModelInferRequest(model_name="echo", inputs=[given._get_tensor()])
            request.raw_input_contents.append(given._get_content())
            yield request
        if not close:
            over.wait(60)

    with grpc.insecure_channel(address) as channel:
        try:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return list(stub.ModelStreamInfer(sent(), timeout=60))
        finally:
            over.set()


async def test_a_replica_may_end_its_stream_before_its_half_close_is_known_to_be_sent(
    tritons: tuple[Triton, Triton], monkeypatch: pytest.MonkeyPatch
) -> None:
    done_writing = StreamStreamCall.done_writing
    over = asyncio.Event()

    async def late(call: Any) -> None:
        await done_writing(call)
        await call.code()  # its stream is over
        over.set()
        await asyncio.sleep(0.1)

    monkeypatch.setattr(StreamStreamCall, "done_writing", late)
    async with side(tritons[0].endpoint) as address:
        answers = await asyncio.to_thread(ask, address, 1)
    assert [(each.error_message, each.infer_response.model_version) for each in answers] == [("", "2")]
    assert over.is_set()


class Short(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server that ends every stream, as if all were well, after its first message."""

    async def ModelStreamInfer(self, _: Any, context: Any) -> None:  # noqa: N802 - the protocol has named it
        await context.read()
        await context.write(service_pb2.ModelStreamInferResponse())


@pytest.mark.parametrize("messages", [1, 2, 50])
async def test_a_replica_that_ends_its_stream_too_early_has_failed(messages: int) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Short(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with side(Endpoint(replica="short", host="127.0.0.1", grpc_port=port, http_port=1)) as address:
            with pytest.raises(grpc.RpcError) as refused:
                await asyncio.to_thread(ask, address, messages, close=False)
    finally:
        await server.stop(None)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.details() == "the replica ended the stream for echo"
