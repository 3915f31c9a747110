"""What the HTTP servers of all processes share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import uvicorn
from starlette.requests import Request

from controlplane.core.errors import InvalidInput

Answer = TypeVar("Answer")


class QuietServer(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured."""
        yield


async def while_connected(request: Request, answer: Coroutine[Any, Any, Answer]) -> Answer:
    """The answer to a request whose body has been read. Whoever goes away before it is there ends the work on it; then
    raises InvalidInput, which nobody hears."""
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise InvalidInput("the caller has gone away")
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
