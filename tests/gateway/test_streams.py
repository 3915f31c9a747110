"""The Python side's streams, where the order of things that happen at once can be chosen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc.aio._call import StreamStreamCall
from tritonclient.grpc import service_pb2, service_pb2_grpc

from controlplane.core.routes import Endpoint, RouteTable
from gateway import grpc_side
from gateway.forwarding import Forwarding
from gateway.grpc_side import serve
from gateway.holding import Holding
from gateway.replicas import Replicas
from gateway.sequences import Sequences
from gateway.settings import Settings
from gateway.streams import Stream
from tests.gateway.asking import grpc_input
from tests.gateway.running import route, table
from tests.gateway.triton import Triton

EOF = grpc.aio.EOF  # type: ignore[attr-defined]


@asynccontextmanager
async def side(endpoint: Endpoint) -> AsyncIterator[tuple[str, Replicas]]:
    """The address of a Python side that leads models to one replica, `cold` to none yet; and its connections."""
    settings = Settings()
    led = table(endpoint, echo=route("echo", 2), other=route("other"), cold=route("cold", pool=None))
    holding, replicas = Holding(settings, led, lambda: None), Replicas(settings)
    server, port = await serve(Forwarding(settings, holding, replicas, Sequences(settings.sequences)), settings, 0)
    try:
        yield f"127.0.0.1:{port}", replicas
    finally:
        await server.stop(None)
        await replicas.close()


@asynccontextmanager
async def serving(servicer: service_pb2_grpc.GRPCInferenceServiceServicer) -> AsyncIterator[Endpoint]:
    """A replica that is this server."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Endpoint(replica="one", host="127.0.0.1", grpc_port=port, http_port=1)
    finally:
        await server.stop(None)


def request(model: str, values: Sequence[float] = (1.0,)) -> service_pb2.ModelInferRequest:
    (given,) = grpc_input(values)
    made = service_pb2.ModelInferRequest(model_name=model, inputs=[given._get_tensor()])
    made.raw_input_contents.append(given._get_content())
    return made


def ask(
    address: str, messages: Sequence[service_pb2.ModelInferRequest], close: bool = True
) -> list[service_pb2.ModelStreamInferResponse]:
    """What comes back on one stream, whose client says that nothing more will come or goes on. Raises RpcError."""
    over = threading.Event()

    def sent() -> Iterator[service_pb2.ModelInferRequest]:
        yield from messages
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
    async with side(tritons[0].endpoint) as (address, _):
        answers = await asyncio.to_thread(ask, address, [request("echo")])
    assert [(each.error_message, each.infer_response.model_version) for each in answers] == [("", "2")]
    assert over.is_set()


class Short(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server that ends every stream, as if all were well, after its first message."""

    async def ModelStreamInfer(self, _: Any, context: Any) -> None:  # noqa: N802 - the protocol has named it
        await context.read()
        await context.write(service_pb2.ModelStreamInferResponse())


@pytest.mark.parametrize("messages", [1, 2, 50])
async def test_a_replica_that_ends_its_stream_too_early_has_failed(messages: int) -> None:
    async with serving(Short()) as short, side(short) as (address, _):
        with pytest.raises(grpc.RpcError) as refused:
            await asyncio.to_thread(ask, address, [request("echo")] * messages, close=False)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.details() == "the replica ended the stream for echo"


class Slow:
    """A call's context that takes its time to send; what was cut off meanwhile is noted."""

    def __init__(self, context: Any, cut: list[str]) -> None:
        self._context, self._cut = context, cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def send_initial_metadata(self, metadata: Any) -> None:
        await self._slowly("metadata", self._context.send_initial_metadata(metadata))

    async def write(self, message: Any) -> None:
        await self._slowly("message", self._context.write(message))

    async def _slowly(self, what: str, sending: Awaitable[None]) -> None:
        task = asyncio.ensure_future(sending)
        try:
            await asyncio.sleep(0.1)
            await task
        except asyncio.CancelledError:
            self._cut.append(what)
            raise


async def test_how_a_stream_ends_is_told_after_what_is_being_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[str] = []
    monkeypatch.setattr(grpc_side, "Stream", lambda forwarding, context: Stream(forwarding, Slow(context, cut)))
    async with serving(Short()) as short, side(short) as (address, _):
        with pytest.raises(grpc.RpcError) as refused:
            await asyncio.to_thread(ask, address, [request("echo")] * 2, close=False)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not cut, "grpc.aio can't end a call while it sends, and the client would wait for ever"


@pytest.mark.parametrize("times", [1, 30])
async def test_what_is_refused_first_leaves_the_rest_of_the_stream_as_it_is(
    tritons: tuple[Triton, Triton], times: int
) -> None:
    async with side(tritons[0].endpoint) as (address, _):
        messages = [request(model) for _ in range(times) for model in ("nobody", "echo", "nobody", "other")]
        answers = await asyncio.to_thread(ask, address, messages)
    said = [each.error_message or each.infer_response.model_name for each in answers]
    assert sorted(said) == sorted(["model 'nobody' is not known"] * 2 * times + ["echo", "other"] * times)


MEGABYTE = 1 << 20


class Generous(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server that answers 200 MB to every message, as fast as they are taken."""

    def __init__(self) -> None:
        self.written = 0

    async def ModelStreamInfer(self, _: Any, context: Any) -> None:  # noqa: N802 - the protocol has named it
        await context.read()
        for _ in range(200):
            await context.write(service_pb2.ModelStreamInferResponse(error_message="x" * MEGABYTE))
            self.written += 1


async def settled(count: Callable[[], int]) -> int:
    """What is counted, when it has not changed for a second."""
    before = -1
    while before != count():
        before = count()
        await asyncio.sleep(1)
    return before


async def test_answers_that_nobody_reads_stay_where_they_are() -> None:
    generous = Generous()
    async with (
        serving(generous) as replica,
        side(replica) as (address, _),
        grpc.aio.insecure_channel(address) as channel,
    ):
        asked = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(timeout=120)
        await asked.write(request("echo"))
        await asked.done_writing()
        await asked.read()
        assert await settled(lambda: generous.written) < 100
        rest = 0
        while await asked.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            rest += 1
        assert rest == 199


async def test_messages_for_a_model_that_is_not_there_yet_stay_where_they_are(tritons: tuple[Triton, Triton]) -> None:
    async with side(tritons[0].endpoint) as (address, _), grpc.aio.insecure_channel(address) as channel:
        asked = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(timeout=120)
        written = 0

        async def send() -> None:
            nonlocal written
            for _ in range(200):
                await asked.write(request("cold", [1.0] * (MEGABYTE // 4)))
                written += 1

        sending = asyncio.create_task(send())
        assert await settled(lambda: written) < 100
        asked.cancel()
        sending.cancel()


class Silent(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server that never answers."""

    async def ModelInfer(self, request: Any, _: Any) -> None:  # noqa: N802 - the protocol has named it
        await asyncio.Event().wait()

    async def ModelStreamInfer(self, _: Any, context: Any) -> None:  # noqa: N802 - the protocol has named it
        await asyncio.Event().wait()


async def test_who_waits_for_a_replica_whose_connection_is_closed_is_told() -> None:
    async with (
        serving(Silent()) as silent,
        side(silent) as (address, replicas),
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        one = stub.ModelInfer(request("echo"), timeout=60)
        many = stub.ModelStreamInfer(iter([request("echo")]), timeout=60)
        async with asyncio.timeout(30):
            while replicas.in_flight[silent.replica] < 2:  # noqa: ASYNC110 - the count tells nobody
                await asyncio.sleep(0.01)
        await replicas.channel(silent).close()
        for waiting in (one, many):
            assert await waiting.code() is grpc.StatusCode.UNAVAILABLE
            assert "was closed" in await waiting.details()


async def test_models_that_are_not_there_leave_nothing_behind_in_a_stream() -> None:
    names = [f"nobody-{number}" for number in range(500)]
    known: list[int] = []

    class Client:
        """Sends a message for each name, and counts what the stream knows of them."""

        def __init__(self) -> None:
            self.answers: list[bytes] = []

        async def read(self) -> Any:
            await asyncio.sleep(0)
            known.append(len(stream._lanes))
            return request(names[len(known) - 1]).SerializeToString() if len(known) <= len(names) else EOF

        async def write(self, message: bytes) -> None:
            self.answers.append(message)

        def time_remaining(self) -> None:
            return None

    settings, client = Settings(), Client()
    holding, replicas = Holding(settings, RouteTable(), lambda: None), Replicas(settings)
    stream = Stream(Forwarding(settings, holding, replicas, Sequences(settings.sequences)), client)
    await stream.run()
    assert max(known) < 10
    assert len(client.answers) == len(names), "each was refused"
    await replicas.close()
