"""Work for a client that may go away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from controlplane.local.serving import while_connected


class Client:
    """Its request, the body of which has come. It is there until it goes; `looked_for`: how many wait for that."""

    def __init__(self) -> None:
        self.looked_for = 0
        self.gone = asyncio.Event()
        where = {"path": "/", "query_string": b"", "headers": []}
        self.request = Request({"type": "http", "method": "POST", **where}, self._receive)

    async def _receive(self) -> Any:
        self.looked_for += 1
        try:
            await self.gone.wait()
        finally:
            self.looked_for -= 1
        return {"type": "http.disconnect"}


class Work:
    """Goes on until it `may_end`, or is ended."""

    def __init__(self) -> None:
        self.begun, self.may_end, self.ended = asyncio.Event(), asyncio.Event(), False

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # ending it takes a while
            self.ended = True
            raise
        return "done"


async def _begun(client: Client, work: Work) -> asyncio.Task[str]:
    task = asyncio.create_task(while_connected(client.request, work()))
    await work.begun.wait()
    await asyncio.sleep(0)
    assert client.looked_for == 1
    return task


async def test_who_stays_gets_the_answer() -> None:
    client, work = Client(), Work()
    task = await _begun(client, work)
    work.may_end.set()
    assert await task == "done"
    await asyncio.sleep(0)
    assert client.looked_for == 0, "nobody looks for its end any more"


async def test_work_for_a_client_that_goes_is_ended() -> None:
    client, work = Client(), Work()
    task = await _begun(client, work)
    client.gone.set()
    with pytest.raises(ClientDisconnect):
        await task
    assert work.ended
    assert task.cancelling() == 0, "its task can go on"


async def test_a_client_that_goes_at_the_moment_of_the_answer_leaves_nothing_behind() -> None:
    client, work = Client(), Work()
    task = await _begun(client, work)
    client.gone.set()
    work.may_end.set()
    await asyncio.wait((task,))
    assert task.cancelling() == 0
    assert isinstance(task.exception(), ClientDisconnect) or task.result() == "done"


@pytest.mark.parametrize("goes", [False, True])
async def test_a_task_that_somebody_else_cancels_is_cancelled(goes: bool) -> None:
    client, work = Client(), Work()
    task = await _begun(client, work)
    if goes:
        client.gone.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended
    await asyncio.sleep(0)
    assert client.looked_for == 0


async def test_what_goes_wrong_is_raised() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no such thing")

    client = Client()
    with pytest.raises(ValueError, match="no such thing"):
        await while_connected(client.request, fail())
    await asyncio.sleep(0)
    assert client.looked_for == 0
