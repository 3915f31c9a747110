"""The other end of the sync protocol: a real HTTP server that says what a test tells it to, and keeps what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from controlplane.client.access import ControllerAddress
from controlplane.core.messages import Assignment, Copy, ReplicaReport, Wanted
from controlplane.local.home import Home, write_private

REPORTS = TypeAdapter(ReplicaReport)
ASSIGNMENTS = TypeAdapter(Assignment)


@dataclass
class Endpoint:
    """Orders go out by `order`, reports are waited for by `wait`. `files` are served under /files/NAME; names in
    `expired` are refused with 403."""

    home: Home
    url: str = ""
    reports: list[ReplicaReport] = field(default_factory=list)
    assignment: Assignment | None = None
    files: dict[str, Path] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    downloads: int = 0
    generation: int = 0
    epoch: int = 1
    _news: threading.Condition = field(default_factory=threading.Condition)

    def order(self, *wanted: Wanted, stop: bool = False, epoch: int | None = None) -> int:
        """Issue an assignment; returns its generation."""
        with self._news:
            self.generation += 1
            self.assignment = Assignment(
                epoch=epoch or self.epoch, generation=self.generation, wanted=wanted, stop=stop
            )
            return self.generation

    def wait(self, condition: Callable[[ReplicaReport], bool], *, timeout_s: float = 120.0) -> ReplicaReport:
        """The newest report, once it fulfils the condition."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not (self.reports and condition(self.reports[-1])):
                if not self._news.wait(deadline - time.monotonic()):
                    raise AssertionError(f"it never came to that; last report: {self.reports[-1:]}")
            return self.reports[-1]

    def wait_copy(self, model: str, version: int, state: str, *, timeout_s: float = 120.0) -> Copy:
        """The copy, once a report has it in `state`, with the newest assignment taken."""

        def there(report: ReplicaReport) -> bool:
            found = copy_of(report, model, version)
            return found is not None and found.state == state and report.generation in (self.generation, 0)

        found = copy_of(self.wait(there, timeout_s=timeout_s), model, version)
        assert found is not None
        return found

    async def _sync(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self.home.token_file.read_text().strip()}"
        report = REPORTS.validate_json(await request.body())
        with self._news:
            self.reports.append(report)
            self._news.notify_all()
        deadline = time.monotonic() + float(request.query_params["wait_s"])
        while not await request.is_disconnected():
            if report.generation == 0 and self.refused:
                self._renew()
            order = self.assignment
            held = (report.epoch, report.generation)
            if order is not None and (order.epoch, order.generation) != held:
                return Response(ASSIGNMENTS.dump_json(order), media_type="application/json")
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.02)
        return Response(status_code=204)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name in self.expired:
            self.refused = [name]
            return Response("Request has expired", status_code=403)
        self.downloads += 1
        self.ranges += [request.headers["range"]] if "range" in request.headers else []
        return FileResponse(self.files[name])

    def _renew(self) -> None:
        """What the controller does when an agent reports generation 0: the same again, with fresh addresses."""
        assert self.assignment is not None
        name = self.refused.pop()
        self.generation += 1
        fresh = tuple(
            replace(each, sources={k: s.replace(f"/{name}", f"/fresh-{name}") for k, s in each.sources.items()})
            for each in self.assignment.wanted
        )
        self.assignment = replace(self.assignment, generation=self.generation, wanted=fresh)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = Starlette(
            routes=[
                Route("/v1/replicas/{name}/sync", self._sync, methods=["POST"]),
                Route("/files/{name}", self._file),
            ]
        )
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        address = TypeAdapter(ControllerAddress).dump_json(ControllerAddress(url=self.url, pid=1)).decode()
        write_private(self.home.controller_file, address)
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(10)
            listener.close()


def copy_of(report: ReplicaReport, model: str, version: int) -> Copy | None:
    return next((each for each in report.copies if (each.model, each.version) == (model, version)), None)
