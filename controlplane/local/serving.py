"""What the HTTP servers of all processes share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, cast

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
    is there, and ends the work on it.

    The work is done in the caller's task; beside it there is one that waits for the client to go. Thousands of these
    may be there at once.
    """
    work = cast("asyncio.Task[Any]", asyncio.current_task())
    gone = asyncio.ensure_future(_cancel_when_gone(request, work))
    try:
        return await answer
    except asyncio.CancelledError:
        if gone.done() and not gone.cancelled() and not work.uncancel():  # nobody else cancels this task
            raise ClientDisconnect from None
        raise
    finally:
        gone.cancel()


async def to_nobody(_: Request, _error: Exception) -> Response:
    """What is answered after a ClientDisconnect."""
    return Response(status_code=400)


async def _cancel_when_gone(request: Request, work: asyncio.Task[Any]) -> None:
    """Cancel `work` when whoever asked has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.cancel()
