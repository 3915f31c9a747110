"""What the HTTP servers of all processes share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

Answer = TypeVar("Answer")


class QuietServer(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


async def while_connected(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer to a request whose body has been read. Raises ClientDisconnect where whoever asked goes away before it
    is there, and ends the work on it."""
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def to_nobody(_: Request, _error: Exception) -> Response:
    """What is answered after a ClientDisconnect."""
    return Response(status_code=400)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
