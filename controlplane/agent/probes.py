"""What the kubelet asks an agent in a pod: probes of the server, and the preStop hook that drains it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Protocol

import structlog

from controlplane.core.messages import ServerState

log = structlog.get_logger(__name__)


class Asked(Protocol):
    """The agent, as far as probes go."""

    @property
    def server_state(self) -> ServerState:
        """How its server is."""

    async def drained(self) -> None:
        """Returns when the controller has led everything away, and this replica has stopped."""


@contextlib.asynccontextmanager
async def answering(agent: Asked, host: str, port: int, drain_s: float) -> AsyncIterator[int]:
    """Answer the kubelet while the context lasts; gives the port.

    `/livez`: this agent runs. `/startupz`, `/readyz`: the server answers. `/drain` returns when the replica has nothing
    to do any more, at the latest after `drain_s`.
    """
    loop = asyncio.get_running_loop()

    async def drain() -> bool:
        try:
            async with asyncio.timeout(drain_s):
                await agent.drained()
        except TimeoutError:
            return False
        return True

    def wait_drained() -> bool:
        log.info("the pod is ended: waiting until nothing is led here any more", at_most_s=drain_s)
        done = asyncio.run_coroutine_threadsafe(drain(), loop).result(drain_s + 10)
        log.info("drained" if done else "the time to drain is over", drained=done)
        return True  # the pod ends in either case

    checks: dict[str, Callable[[], bool]] = {
        "/livez": lambda: True,
        "/startupz": lambda: agent.server_state == "ready",
        "/readyz": lambda: agent.server_state == "ready",
        "/drain": wait_drained,
    }

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            check = checks.get(self.path)
            good = check is not None and check()
            self.send_response(404 if check is None else 200 if good else 503)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name in the base class
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, name="probes", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
