"""A gateway in a process of its own, as it is run in earnest, with a small controller beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import psutil
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from pydantic import TypeAdapter

from controlplane.core.routes import Endpoint, Route, RouteTable, Target
from controlplane.local.home import Home
from controlplane.local.processes import HOME_VARIABLE, read_record, sweep
from gateway.settings import Settings, write_settings
from gateway.state import Ports
from tests.gateway.controller import Controller
from tests.gateway.waiting import wait_for

ROOT = Path(__file__).parents[2]


class Running:
    """`python -m gateway` on a fresh home, with ports from the system."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.home = Home(folder)
        self.home.prepare()
        chosen: dict[str, object] = {"grpc_port": 0, "http_port": 0, "threads": 1, "cold_wait_s": 20.0, **settings}
        write_settings(self.home.gateway, Settings(**chosen))  # type: ignore[arg-type]
        self.controller = Controller(self.home)
        self.start()

    def arguments(self) -> list[str]:
        return ["--home", str(self.home.root), "--grace-s", "1"]

    def start(self) -> None:
        with (self.home.logs / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", *self.arguments()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, HOME_VARIABLE: str(self.home.root.resolve())},
                start_new_session=True,
            )
        before = len(self.controller.reports)
        wait_for(lambda: len(self.controller.reports) > before or self._ended(), "the gateway to report", timeout_s=60)
        self.ports = TypeAdapter(Ports).validate_json((self.home.gateway / "ports.json").read_bytes())

    def _ended(self) -> bool:
        assert self.process.poll() is None, self.log()
        return False

    def log(self) -> str:
        return (self.home.logs / "gateway.log").read_text()[-6000:]

    @property
    def envoy(self) -> psutil.Process:
        record = read_record(self.home.gateway / "envoy.pid.json")
        process = record.process() if record else None
        assert process is not None
        return process

    @property
    def admin(self) -> str:
        return f"http://{(self.home.gateway / 'envoy-admin').read_text().strip()}"

    @property
    def status(self) -> str:
        return f"http://127.0.0.1:{self.ports.side_http}"

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        return f"127.0.0.1:{self.ports.http}"

    def grpc(self) -> grpcclient.InferenceServerClient:
        return grpcclient.InferenceServerClient(self.grpc_url)

    def http(self, concurrency: int = 1) -> httpclient.InferenceServerClient:
        return httpclient.InferenceServerClient(self.http_url, concurrency=concurrency, network_timeout=120)

    def envoy_up(self) -> bool:
        try:
            return httpx2.get(f"{self.admin}/ready").status_code == 200
        except (httpx2.HTTPError, OSError):
            return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.controller.stop()
            sweep(self.home.root)


def table(*endpoints: Endpoint, **routes: Route) -> RouteTable:
    """A table whose one pool "all" holds all endpoints."""
    return RouteTable(
        endpoints={each.replica: each for each in endpoints},
        pools={"all": tuple(sorted(each.replica for each in endpoints))},
        routes=routes,
    )


def route(model: str, stable: int = 1, *pinned: int, pool: str | None = "all", idle_s: float | None = None) -> Route:
    """A route to pool "all": `stable` for unversioned requests; it and `pinned` may be asked for."""
    return Route(
        model=model,
        targets=(Target(version=stable, pool=pool),),
        pinned=dict.fromkeys((stable, *pinned), pool),
        sequence_idle_s=idle_s,
    )
