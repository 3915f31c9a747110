"""What the gateway's benchmarks share: Envoys in several shapes, an upstream that answers at once, a load, CPU time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2

from controlplane.core.routes import Endpoint, Route, RouteTable, Target
from controlplane.local.processes import HOME_VARIABLE, free_ports
from gateway.config.bootstrap import bootstrap
from gateway.config.clusters import assignment, cluster_list
from gateway.config.names import (
    LUA,
    PROTOCOLS,
    SERVICE,
    Files,
    Json,
    any_cluster,
    cluster,
    pool_base,
    typed,
)
from gateway.config.routes import RouteWriter
from gateway.envoy import binary
from gateway.settings import Settings

INFER = f"{SERVICE}ModelInfer"
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
NO_SCRIPT = "function envoy_on_request(h) end"


def table(models: int, upstream: Endpoint, stable: int = 1) -> RouteTable:
    """So many models, two versions each may be asked for, all in one pool."""
    names = [f"model-{number:05}" for number in range(models)]
    return RouteTable(
        endpoints={upstream.replica: upstream},
        pools={"all": (upstream.replica,)},
        routes={
            name: Route(model=name, targets=(Target(version=stable, pool="all"),), pinned={1: "all", 2: "all"})
            for name in names
        },
    )


class Proxy:
    """One Envoy with one worker thread in a folder of its own. It ends with the folder around that (`scratch`)."""

    def __init__(self, folder: Path, config: Json, port: int) -> None:
        self.port = port
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bootstrap.json").write_text(json.dumps(config))
        self._admin = folder / "admin"
        command = [str(binary()), "-c", str(folder / "bootstrap.json"), "--concurrency", "1", "--disable-hot-restart"]
        command += ["--reject-unknown-dynamic-fields", "--log-level", "error", "--admin-address-path", str(self._admin)]
        with (folder / "log").open("wb") as log:
            self._popen = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, HOME_VARIABLE: str(folder.parent)}
            )
        self.process = psutil.Process(self._popen.pid)
        end = time.monotonic() + 60
        while not self._live():
            assert self._popen.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)

    def _live(self) -> bool:
        try:
            return self.get("/ready").startswith("LIVE")
        except (OSError, httpx2.HTTPError):
            return False

    def get(self, path: str) -> str:
        """An answer of the admin interface."""
        return httpx2.get(f"http://{self._admin.read_text().strip()}{path}", timeout=30).text

    def cpu_s(self) -> float:
        """The CPU time that the process has used."""
        times = self.process.cpu_times()
        return times.user + times.system


def upstream(folder: Path) -> tuple[Proxy, Endpoint]:
    """An Envoy that answers every request by itself, as fast as anything does."""
    port, http_port = free_ports(2)
    answer = {"status": 200, "body": {"inline_string": "ok"}}
    manager = typed(
        MANAGER,
        stat_prefix="up",
        route_config={
            "virtual_hosts": [
                {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": answer}]}
            ]
        },
        http_filters=[_router()],
        local_reply_config={
            "mappers": [
                {
                    "filter": {
                        "status_code_filter": {
                            "comparison": {"op": "EQ", "value": {"default_value": 200, "runtime_key": "x"}}
                        }
                    },
                    "headers_to_add": [
                        {
                            "header": {"key": "grpc-status", "value": "0"},
                            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                        }
                    ],
                }
            ]
        },
    )
    config = _config([_listener(number, manager) for number in (port, http_port)], [])
    return Proxy(folder, config, port), Endpoint(replica="up", host="127.0.0.1", grpc_port=port, http_port=http_port)


def bare(folder: Path, behind: Endpoint) -> Proxy:
    """An Envoy with one route and nothing else."""
    (port,) = free_ports(1)
    manager = typed(MANAGER, stat_prefix="bare", route_config=_one_route("up", {}), http_filters=[_router()])
    members = assignment("up", "grpc", [behind])
    cluster_ = {
        "name": "up",
        "type": "STATIC",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                explicit_http_config={"http2_protocol_options": {}},
            )
        },
        "load_assignment": {name: value for name, value in members.items() if name != "@type"},
    }
    return Proxy(folder, _config([_listener(port, manager)], [cluster_]), port)


def gateway(folder: Path, routes: RouteTable, *, led: bool = True) -> Proxy:
    """The gateway's own Envoy. `led` False: the same filters, but one static route, and no version is forced."""
    ports = free_ports(2)
    files = Files(folder.resolve())
    files.endpoints.mkdir(parents=True, exist_ok=True)
    settings = Settings(grpc_port=ports[0], http_port=ports[1], threads=1)
    config = bootstrap(settings, files)
    base = pool_base(routes.pools["all"])
    write(files, routes, "1")
    _put(files.clusters, cluster_list({base: routes.pools["all"]}, {"grpc": 9, "http": 9}, files, settings))
    for protocol in PROTOCOLS:
        for name in (cluster(base, protocol), any_cluster(protocol)):
            _put(files.endpoints_of(name), [assignment(name, protocol, list(routes.endpoints.values()))])
    if not led:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        script = next(each for each in manager["http_filters"] if each["name"] == LUA)
        script["typed_config"]["default_source_code"] = {"inline_string": NO_SCRIPT}
        one = _one_route(cluster(base, "grpc"), {"request_headers_to_remove": ["accept-encoding"]})
        _put(
            files.routes("grpc"),
            [typed("envoy.config.route.v3.RouteConfiguration", **{**one, "name": "routes-grpc"})],
        )
    return Proxy(folder, config, ports[0])


def write(files: Files, routes: RouteTable, version: str, writer: RouteWriter | None = None) -> None:
    """The two route files."""
    bases = {pool: pool_base(names) for pool, names in routes.pools.items()}
    for protocol, text in (writer or RouteWriter()).write(routes.routes, bases, version).items():
        beside = files.routes(protocol).with_suffix(".new")
        beside.write_text(text)
        beside.rename(files.routes(protocol))


def message(model: str, size_bytes: int) -> bytes:
    """A gRPC message with an inference request for `model` and a tensor of this size."""
    given = grpcclient.InferInput("INPUT", [1, size_bytes // 4], "INT32")
    given.set_data_from_numpy(np.zeros((1, size_bytes // 4), dtype=np.int32))
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.append(given._get_tensor())
    request.raw_input_contents.append(given._get_content())
    data = request.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + bytes(data)


def load(proxy: Proxy, body: Path, requests: int) -> float:
    """Send so many requests; the proxy's CPU time for one, in µs. All of them must have been passed on."""
    before, passed = proxy.cpu_s(), _passed(proxy)
    command = ["h2load", "-n", str(requests), "-c", "8", "-m", "4", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{proxy.port}{INFER}"], capture_output=True, text=True, check=True, timeout=300
    )
    assert f"{requests} succeeded" in done.stdout, done.stdout
    after = proxy.cpu_s()
    now = _passed(proxy)
    assert now - passed == requests, f"{now - passed} of {requests} requests were passed on"
    return (after - before) / requests * 1e6


def _passed(proxy: Proxy) -> int:
    text = proxy.get(r"/stats?filter=^cluster\.(up|pool-[^.]*)\.upstream_rq_(2xx|completed)$&type=Counters")
    return sum(int(number) for number in re.findall(r"upstream_rq_2xx: (\d+)", text))


def require_h2load() -> None:
    """Say what is missing."""
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is needed (Debian: nghttp2-client)")


def _put(path: Path, resources: list[Any]) -> None:
    path.write_text(json.dumps({"version_info": "1", "resources": resources}))


def _router() -> Json:
    return {"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router")}


def _one_route(name: str, more: Mapping[str, Any]) -> Json:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    return {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}], **more}


def _listener(port: int, manager: Json) -> Json:
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }


def _config(listeners: list[Json], clusters: list[Json]) -> Json:
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }
