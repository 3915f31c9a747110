"""Puts a route table into force: writes Envoy's files in the right order and waits until Envoy says it serves them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import structlog

from controlplane.core.errors import ControlPlaneError
from controlplane.core.routes import Endpoint, RouteTable
from controlplane.local.home import replace_file
from gateway.admin import Admin
from gateway.config.clusters import assignment, cluster_list, limits
from gateway.config.names import PROTOCOLS, Files, Protocol, any_cluster, cluster, pool_base
from gateway.config.routes import RouteWriter
from gateway.settings import Settings
from gateway.state import Kept, Served

log = structlog.get_logger(__name__)

EFFECT_TIMEOUT_S = 60.0
"""How long Envoy may take for one file: a table of 10,000 models takes half a second on a busy machine."""
POLL_S = (0.003, 0.1)
REJECTIONS = r"^(runtime\.|http\..*\.rds\.|cluster_manager\.cds\.|cluster\..*\.)update_rejected$"


Bases = Mapping[str, tuple[str, ...]]
"""The replicas of each pair of clusters, by the clusters' name without the protocol."""


class Rejected(ControlPlaneError):
    """Envoy did not take a configuration; what it served before it still serves."""

    code = "INVALID"


class Xds:
    """The writer of Envoy's files. `served` is what Envoy has confirmed last."""

    def __init__(
        self,
        *,
        settings: Settings,
        files: Files,
        admin: Admin,
        kept: Kept[Served],
        side_ports: Mapping[Protocol, int],
        envoy_log: Path,
    ) -> None:
        self._settings = settings
        self._files = files
        self._admin = admin
        self._kept = kept
        self._side_ports = side_ports
        self._envoy_log = envoy_log
        self._routes = RouteWriter()
        self._written: dict[Path, str] = {}
        self._turn = asyncio.Lock()

    @property
    def served(self) -> Served:
        """The table in force."""
        return self._kept.value

    def restore(self) -> None:
        """Write everything for the table in force, for an Envoy that starts or to undo what it refused.

        Files that can't be written stay as they are: each is whole, and the next table, or the same one again, makes
        them right.
        """
        try:
            self._write_served()
        except OSError as error:
            log.error("Envoy's files can't be written", error=str(error))

    def _write_served(self) -> None:
        self._files.endpoints.mkdir(parents=True, exist_ok=True)
        self._written.clear()
        table, version = self.served.table, _version(self.served.table)
        bases = {**self.served.lingering, **bases_of(table)}
        self._write_members(bases, table.endpoints, version)
        self._write_clusters(bases, version)
        self._write_limits(version, table)
        self._write_routes(table, version)
        self._forget(bases)

    async def apply(self, table: RouteTable) -> None:
        """Make `table` true. Raises Rejected when Envoy refuses it, and then leaves the old one in force."""
        async with self._turn:
            served, version = self.served, _version(table)
            bases, old = bases_of(table), {**self.served.lingering, **bases_of(self.served.table)}
            rejections = await self._rejections()
            try:
                # The new clusters first, then the routes that lead there, and only then the old ones go.
                endpoints = {**served.table.endpoints, **table.endpoints}
                expected = self._write_members({**old, **bases}, endpoints, version)
                expected |= self._write_clusters({**old, **bases}, version)
                # While requests still go the old way, what bounds them there stays.
                expected |= self._write_limits(version, served.table, table)
                await self._effective(expected, rejections)
                if _led(table) != _led(served.table):
                    await self._effective(self._write_routes(table, version), rejections)
            except Rejected:
                self.restore()
                raise
            except OSError as error:
                self.restore()
                raise Rejected(
                    f"Envoy's files can't be written: {error.strerror}", remedy="make room on the gateway's disk"
                ) from error
            lingering = {base: names for base, names in old.items() if base not in bases}
            self._kept.keep(Served(table=table, lingering=lingering))
            try:
                self._write_limits(version, table)
                self._write_members({**lingering, **bases}, table.endpoints, version)
            except OSError as error:
                log.error("members that are gone stay in Envoy's files until the next table", error=str(error))

    async def reap(self) -> None:
        """Drop the clusters that no route leads to and where nothing is in flight any more."""
        async with self._turn:
            served = self.served
            if not served.lingering:
                return
            active = await self._admin.active()
            busy = {name for (name, _), count in active.items() if count}
            left = {
                base: names
                for base, names in served.lingering.items()
                if any(cluster(base, protocol) in busy for protocol in PROTOCOLS)
            }
            if len(left) < len(served.lingering):
                bases = {**left, **bases_of(served.table)}
                self._kept.keep(Served(table=served.table, lingering=left))
                self._write_clusters(bases, _version(served.table))
                self._forget(bases)

    def _write_members(self, bases: Bases, endpoints: Mapping[str, Endpoint], version: str) -> dict[str, str]:
        expected = {}
        for protocol in PROTOCOLS:
            of = {cluster(base, protocol): names for base, names in bases.items()}
            of[any_cluster(protocol)] = tuple(sorted(endpoints))
            for name, names in of.items():
                members = [endpoints[replica] for replica in names if replica in endpoints]
                resource = assignment(name, protocol, members)
                if self._write(self._files.endpoints_of(name), [resource], version):
                    expected[f"cluster.{name}.version_text"] = version
        return expected

    def _write_clusters(self, bases: Bases, version: str) -> dict[str, str]:
        resources = cluster_list(bases, self._side_ports, self._files, self._settings)
        changed = self._write(self._files.clusters, resources, version)
        return {"cluster_manager.cds.version_text": version} if changed else {}

    def _write_limits(self, version: str, *tables: RouteTable) -> dict[str, str]:
        crowded = {
            _base_of(table, pool): (len(table.pools[pool]), pace)
            for table in tables
            for pool, pace in table.crowded.items()
        }
        changed = self._write(self._files.limits, [limits(crowded, self._settings)], version)
        return {"runtime.version_text": version} if changed else {}

    def _write_routes(self, table: RouteTable, version: str) -> dict[str, str]:
        bases = {pool: _base_of(table, pool) for pool in table.pools}
        texts = self._routes.write(table.routes, bases, version, starting=not table.epoch, asleep=table.asleep)
        for protocol, text in texts.items():
            replace_file(self._files.routes(protocol), text)
        return {f"http.{protocol}.rds.routes-{protocol}.version_text": version for protocol in PROTOCOLS}

    def _write(self, path: Path, resources: list[Any], version: str) -> bool:
        text = json.dumps(resources, separators=(",", ":"))
        if self._written.get(path) == text:
            return False
        replace_file(path, f'{{"version_info":"{version}","resources":{text}}}')
        self._written[path] = text
        return True

    def _forget(self, bases: Bases) -> None:
        wanted = {self._files.endpoints_of(cluster(base, protocol)) for base in bases for protocol in PROTOCOLS}
        wanted |= {self._files.endpoints_of(any_cluster(protocol)) for protocol in PROTOCOLS}
        for path in self._files.endpoints.glob("*.json"):
            if path not in wanted:
                path.unlink(missing_ok=True)
                self._written.pop(path, None)

    async def _effective(self, expected: Mapping[str, str], rejections: Mapping[str, int] | None) -> None:
        """Wait until Envoy serves the expected versions and no cluster is warming."""
        end = asyncio.get_running_loop().time() + EFFECT_TIMEOUT_S
        pause_s, missing = POLL_S[0], list(expected)
        while missing:
            try:
                versions = await self._admin.versions()
                missing = [name for name, version in expected.items() if versions.get(name) != version]
                if not missing and await self._warm():
                    return
                if missing and pause_s > POLL_S[0] * 4:
                    await self._check(rejections, missing)
            except (httpx2.HTTPError, OSError) as error:
                log.debug("Envoy does not answer yet", error=str(error))
            if asyncio.get_running_loop().time() > end:
                raise Rejected(f"Envoy did not take {', '.join(sorted(expected)[:3])} within {EFFECT_TIMEOUT_S:g} s")
            missing = missing or ["warming"]
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_S[1])

    async def _warm(self) -> bool:
        return not any((await self._admin.numbers(r"^cluster_manager\.warming_clusters$", "Gauges")).values())

    async def _check(self, before: Mapping[str, int] | None, missing: list[str]) -> None:
        now = await self._rejections()
        if now is None or before is None:
            return  # not known is not zero: then the time limit tells
        if any(count > before.get(name, 0) for name, count in now.items()):
            raise Rejected(
                f"Envoy refused the new configuration ({', '.join(missing[:3])}): {_last_refusal(self._envoy_log)}",
                remedy="the table in force before goes on being served",
            )

    async def _rejections(self) -> Mapping[str, int] | None:
        """How many updates Envoy has refused since its start, by what they were of. None: it does not say."""
        try:
            return await self._admin.numbers(REJECTIONS, "Counters")
        except (httpx2.HTTPError, OSError):
            return None


def bases_of(table: RouteTable) -> Bases:
    """The clusters that the table's pools need."""
    return {_base_of(table, pool): names for pool, names in table.pools.items()}


def _base_of(table: RouteTable, pool: str) -> str:
    return pool_base(table.pools[pool], alone=pool if pool in table.crowded else "")


def _led(table: RouteTable) -> tuple[object, ...]:
    """All of a table that its routes in Envoy follow from."""
    return table.routes, table.pools, table.crowded.keys(), table.asleep, bool(table.epoch)


def _version(table: RouteTable) -> str:
    """A version that Envoy has not seen before."""
    return f"{table.epoch}.{table.generation}-{secrets.token_hex(4)}"


def _last_refusal(log_file: Path) -> str:
    """What Envoy's log says last about a configuration that it refused."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 65536))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "no reason is known"
    for line in reversed(lines):
        if "rejected:" in line:
            return line.split("rejected:", 1)[1].strip()[:1000]
    return "no reason is known"
