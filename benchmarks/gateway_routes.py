"""How long a change of one model among 10,000 takes to be in force: at the gateway, and in Envoy alone for its files.

`python -m benchmarks.gateway_routes [models] [rounds]`
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.ending import scratch
from benchmarks.gateway_parts import Proxy, gateway, table, upstream
from controlplane.core.routes import Route, RouteTable, Target
from examples.interrupts import interruptible
from gateway.admin import Admin
from gateway.config.names import PROTOCOLS, Files, Protocol, pool_base
from gateway.config.routes import RouteWriter
from gateway.settings import Settings
from gateway.state import Kept, Served
from gateway.xds import Xds

LIMIT = 2.0


def changed(routes: RouteTable, generation: int) -> RouteTable:
    """One model's stable version moves."""
    stable = generation // 2 % 2 + 1
    route = Route(model="model-00007", targets=(Target(version=stable, pool="all"),), pinned={1: "all", 2: "all"})
    return replace(routes, generation=generation, routes={**routes.routes, route.model: route})


async def envoy_alone(files: Files, admin: Admin, routes: RouteTable, version: str) -> float:
    """Seconds from the rename of ready-made files until Envoy serves both."""
    bases = {pool: pool_base(names) for pool, names in routes.pools.items()}
    ready = {}
    for protocol, text in RouteWriter().write(routes.routes, bases, version).items():
        ready[protocol] = files.routes(protocol).with_suffix(".new")
        ready[protocol].write_text(text)
    began = time.perf_counter()
    for protocol, path in ready.items():
        path.rename(files.routes(protocol))
    names = [f"http.{protocol}.rds.routes-{protocol}.version_text" for protocol in PROTOCOLS]
    while True:
        versions = await admin.versions()
        if all(versions.get(name) == version for name in names):
            return time.perf_counter() - began
        await asyncio.sleep(0.003)


async def measure(folder: Path, proxy: Proxy, routes: RouteTable, rounds: int) -> tuple[list[float], list[float]]:
    """Both times, interleaved."""
    files, admin = Files(folder), Admin(folder / "admin")
    kept = Kept(folder / "served.json", Served)
    kept.keep(Served(table=routes))
    side_ports: dict[Protocol, int] = {"grpc": 9, "http": 9}
    log = folder / "log"
    xds = Xds(settings=Settings(), files=files, admin=admin, kept=kept, side_ports=side_ports, envoy_log=log)
    await xds.apply(changed(routes, 8))  # as in a gateway that runs: its fragments are there
    alone, through = [], []
    for number in range(rounds):
        alone.append(await envoy_alone(files, admin, changed(routes, 10 + 2 * number), f"alone-{number}"))
        table_ = changed(routes, 11 + 2 * number)
        began = time.perf_counter()
        await xds.apply(table_)
        through.append(time.perf_counter() - began)
    await admin.close()
    return alone, through


def main(models: int, rounds: int) -> int:
    """Measure and print; 1 when the limit is missed."""
    with scratch() as folder:
        _, endpoint = upstream(folder / "up")
        routes = table(models, endpoint)
        proxy = gateway(folder / "gateway", routes)
        alone, through = asyncio.run(measure(folder / "gateway", proxy, routes, rounds))
        files = Files(folder / "gateway")
        size = sum(files.routes(protocol).stat().st_size for protocol in PROTOCOLS) / 1e6
        memory = proxy.process.memory_info().rss / 2**20
    ratio = statistics.median(through) / statistics.median(alone)
    print(f"{models} models, {size:.1f} MB of routes, Envoy {memory:.0f} MB")
    print(f"{'':24} {'median ms':>10} {'worst ms':>10}")
    for label, values in (("Envoy alone", alone), ("through the gateway", through)):
        print(f"{label:24} {statistics.median(values) * 1e3:10.0f} {max(values) * 1e3:10.0f}")
    print(f"ratio {ratio:.2f} (limit {LIMIT}) {'ok' if ratio <= LIMIT else 'MISSED'}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    sys.exit(interruptible(lambda: main(*(given + [10_000, 7][len(given) :]))))
