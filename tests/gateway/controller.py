"""The controller's side of the sync call, as small as it can be: hands out tables, remembers reports."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace

import uvicorn
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controlplane.client.access import ControllerAddress
from controlplane.core.messages import GatewayOrder, GatewayReport
from controlplane.core.routes import RouteTable
from controlplane.local.home import Home, replace_file
from tests.gateway.waiting import wait_for

REPORTS, ORDERS = TypeAdapter(GatewayReport), TypeAdapter(GatewayOrder)


class Controller:
    """Serves POST /v1/gateways/{name}/sync from a thread."""

    def __init__(self, home: Home) -> None:
        self.table = RouteTable()  # the gateway's own, so none is handed out
        self.reports: list[GatewayReport] = []
        self.send_table = False
        self._token = home.token_file.read_text().strip()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        app = Starlette(routes=[Route("/v1/gateways/{name}/sync", self._sync, methods=["POST"])])
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        address = ControllerAddress(url=self.url, pid=0)
        replace_file(home.controller_file, TypeAdapter(ControllerAddress).dump_json(address).decode())

    async def _sync(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self._token}"
        report = REPORTS.validate_json(await request.body())
        self.reports.append(report)
        for _ in range(100 if float(request.query_params["wait_s"]) else 1):
            ahead = (self.table.epoch, self.table.generation) != (report.epoch, report.generation)
            if ahead or self.send_table:
                break
            await asyncio.sleep(0.01)
        send, self.send_table = self.send_table, False
        if not ahead and not send:
            return Response(status_code=204)
        order = GatewayOrder(
            epoch=self.table.epoch,
            generation=self.table.generation,
            table=self.table if ahead else None,
            send_table=send,
        )
        return Response(ORDERS.dump_json(order), media_type="application/json")

    @property
    def latest(self) -> GatewayReport:
        return self.reports[-1]

    def order(self, table: RouteTable, *, epoch: int = 1) -> RouteTable:
        """Hand out `table` as the next generation."""
        self.table = replace(table, epoch=epoch, generation=self.table.generation + 1)
        return self.table

    def put(self, table: RouteTable, *, epoch: int = 1, timeout_s: float = 30) -> None:
        """Hand out `table` and wait until the gateway has confirmed it."""
        wanted = self.order(table, epoch=epoch)
        wait_for(
            lambda: self.reports and (self.latest.epoch, self.latest.generation) == (wanted.epoch, wanted.generation),
            f"the gateway to confirm generation {wanted.generation}",
            timeout_s=timeout_s,
        )

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
