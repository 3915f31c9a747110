"""Streams whose messages lead themselves: each (model, version) that is met gets a stream of its own to a replica."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from grpc._cython import cygrpc

from controlplane.client.calls import cancelled
from controlplane.core.errors import ControlPlaneError, Unavailable
from gateway import wire
from gateway.config.names import SERVICE, STREAM_CALL
from gateway.forwarding import Destination, Forwarding
from gateway.metadata import passed_on, served

QUEUED = 64
QUEUED_BYTES = 4 << 20
"""What waits in each direction before the sender is made to wait; one message always may."""
WRITE_FAILED = "Internal error from Core"
"""What grpc.aio makes of a call, with INTERNAL, when a message is written to it that has just ended."""


class Stream:
    """One client's stream. Answers go out in the order in which they come from the replicas."""

    def __init__(self, forwarding: Forwarding, context: Any) -> None:
        self.forwarding = forwarding
        self.context = context
        self.unsent, self._unanswered = _Room(QUEUED_BYTES), _Room(QUEUED_BYTES)
        self._answers: asyncio.Queue[bytes | Destination | None] = asyncio.Queue(QUEUED)
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._sending = self._over = False

    async def run(self) -> None:
        """Pass messages until the client has ended its side and everything is answered.

        Raises AioRpcError when a replica's stream breaks, ControlPlaneError when it ends too early or a message can't
        be read.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write())
                running = await self._read(tasks)
                await asyncio.gather(*running)
                await self._answers.put(None)
                await writer
        except ExceptionGroup as group:
            raise _first(group) from group

    async def tell(self, destination: Destination) -> None:
        """Say who serves, if nothing has been said yet."""
        await self._answers.put(destination)

    async def answer(self, message: bytes) -> None:
        """Send this, after what was to be sent before."""
        await self._unanswered.take(len(message))
        await self._answers.put(message)

    def forget(self, lane: _Lane) -> None:
        """It takes no more: the next message for its model begins another one."""
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    async def _read(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        running: list[asyncio.Task[None]] = []
        while (message := await self.context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            envelope = wire.read(message)
            key = (envelope.model, envelope.version)
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane(self, envelope, len(message))
                running = [task for task in running if not task.done()]
                running.append(tasks.create_task(lane.run()))
            await self.unsent.take(len(message))
            await lane.put(message, envelope.id)
        for lane in self._lanes.values():
            await lane.close()
        return running

    async def _write(self) -> None:
        sender = asyncio.create_task(self._send())
        try:
            await asyncio.shield(sender)
        finally:
            # What is being sent goes out first: meanwhile `grpc.aio` can't say how a call ends.
            self._over = True
            if not self._sending:
                sender.cancel()
            await asyncio.wait({sender})
            if not sender.cancelled():
                sender.exception()  # seen: whoever ended the stream says why

    async def _send(self) -> None:
        begun = False  # the first thing sent sends the metadata too, and they can be sent once
        while (answer := await self._answers.get()) is not None:
            self._sending = True
            if isinstance(answer, bytes):
                await self.context.write(answer)
                await self._unanswered.give(len(answer))
            elif not begun:
                await self.context.send_initial_metadata(served(answer))
            begun, self._sending = True, False
            if self._over:
                return


class _Room:
    """Bytes that may wait: `limit`, or one message that is larger."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._changed = asyncio.Condition()

    async def take(self, size_bytes: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._taken or self._taken + size_bytes <= self._limit)
            self._taken += size_bytes

    async def give(self, size_bytes: int) -> None:
        async with self._changed:
            self._taken -= size_bytes
            self._changed.notify_all()


class _Lane:
    """One (model, version) of a stream, and the replica's stream that serves it from its first message on.

    `refusal` is set when the lane ended because its messages can't go anywhere; each of them is answered with it, and
    the stream goes on and forgets it: what models a client asks for is no number that anybody bounds.
    """

    def __init__(self, stream: Stream, first: wire.Envelope, size_bytes: int) -> None:
        self._stream = stream
        self._first = first
        self._size_bytes = size_bytes
        self._messages: asyncio.Queue[tuple[bytes, str] | None] = asyncio.Queue(QUEUED)
        self.refusal: str | None = None
        self._ended = False

    @property
    def key(self) -> tuple[str, str]:
        """The model and the version, as the client has written them."""
        return self._first.model, self._first.version

    async def put(self, message: bytes, request_id: str) -> None:
        await self._messages.put((message, request_id))
        if self.refusal is not None:
            await self._refuse(self.refusal)

    async def close(self) -> None:
        if self.refusal is None:
            await self._messages.put(None)

    async def run(self) -> None:
        forwarding, context = self._stream.forwarding, self._stream.context
        try:
            destination = await forwarding.destination(
                self._first.model,
                self._first.version,
                mark=self._first.sequence,
                size_bytes=self._size_bytes,
                remaining_s=context.time_remaining(),
            )
        except ControlPlaneError as error:
            await self._refuse(str(error))
            return
        await self._stream.tell(destination)
        with forwarding.replicas.request(destination.endpoint, destination.resolved.alone):
            method = forwarding.replicas.channel(destination.endpoint).stream_stream(SERVICE + STREAM_CALL)
            call = method(metadata=passed_on(context))
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass_messages(call, destination))
                    await self._pass_answers(call)
            finally:
                call.cancel()

    async def _pass_messages(self, call: Any, destination: Destination) -> None:
        try:
            while (item := await self._messages.get()) is not None:
                await call.write(wire.forced(item[0], self._first.model, destination.resolved.version))
                await self._stream.unsent.give(len(item[0]))
            self._ended = True  # before it is said: the replica's last word can be here before that has returned
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError, cygrpc.InternalError):
            return  # the replica's stream is over, which is told where the answers are read

    async def _pass_answers(self, call: Any) -> None:
        try:
            async for answer in call:
                await self._stream.answer(answer)
        except grpc.aio.AioRpcError as error:
            if error.details() != WRITE_FAILED:
                raise
        except asyncio.CancelledError as error:
            if cancelled():
                raise
            raise Unavailable(f"the connection to the replica of {self._first.model} was closed") from error
        if not self._ended:
            raise Unavailable(f"the replica ended the stream for {self._first.model}")

    async def _refuse(self, text: str) -> None:
        self.refusal = text
        self._stream.forget(self)
        while not self._messages.empty():
            item = self._messages.get_nowait()
            if item is not None:
                await self._stream.answer(wire.stream_error(text, item[1]))
                await self._stream.unsent.give(len(item[0]))


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """What really happened: the first error inside, however deep."""
    for error in group.exceptions:
        return _first(error) if isinstance(error, ExceptionGroup) else error
    return group
