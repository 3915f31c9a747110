"""Envoy's admin interface: which versions of its configuration it serves, how its clusters are, its logs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from controlplane.core.names import Key
from gateway.config.names import SIDE_HOST
from gateway.failures import Failed

TEXT = re.compile(r'^(?P<name>\S+): "(?P<value>.*)"$', re.MULTILINE)
FAILED = re.compile(
    r'^envoy_model_failures\{model="(?P<model>[^"]+)",version="(?P<version>\d+)",replica="(?P<replica>[^"]*)",'
    r'protocol="\w+",code="(?P<code>\w+)"\} (?P<value>\d+)$',
    re.MULTILINE,
)
NUMBER = re.compile(r"^(?P<name>\S+): (?P<value>\d+)$", re.MULTILINE)


class Admin:
    """Calls to the admin port, whose address Envoy leaves in a file. Raises httpx2.HTTPError or OSError."""

    def __init__(self, address_file: Path) -> None:
        self._address_file = address_file
        self._http = httpx2.AsyncClient(timeout=10.0, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def live(self) -> bool:
        """Whether Envoy answers and has its first configuration."""
        try:
            return (await self._get("/ready")).startswith("LIVE")
        except (httpx2.HTTPError, OSError):
            return False

    async def versions(self) -> Mapping[str, str]:
        """The versions of all resources that Envoy serves, by the name of their statistic."""
        text = await self._get("/stats?filter=version_text&type=TextReadouts")
        return {match["name"]: match["value"] for match in TEXT.finditer(text)}

    async def numbers(self, pattern: str, kind: str) -> Mapping[str, int]:
        """Counters or gauges (`kind`: Counters, Gauges) whose name matches `pattern`."""
        text = await self._get(f"/stats?filter={pattern}&type={kind}")
        return {match["name"]: int(match["value"]) for match in NUMBER.finditer(text)}

    async def active(self) -> Mapping[tuple[str, str], int]:
        """Requests in flight by cluster and replica."""
        answer = await self._http.get(f"{self._base()}/clusters", params={"format": "json"})
        answer.raise_for_status()
        return {
            (cluster["name"], host.get("hostname", "")): _value(host, "rq_active")
            for cluster in answer.json().get("cluster_statuses", [])
            for host in cluster.get("host_statuses", [])
        }

    async def failed(self) -> Mapping[Failed, int]:
        """Requests that failed since Envoy's start, or since the last one like it was forgotten (`logs.failures`)."""
        counts: Counter[Failed] = Counter()
        for found in FAILED.finditer(await self._failures()):
            replica = found["replica"] if found["replica"] != SIDE_HOST else ""
            counts[Failed(Key(found["model"], int(found["version"])), found["code"], replica)] += int(found["value"])
        return counts

    async def prometheus(self) -> bytes:
        """All statistics that have ever changed, in Prometheus' text format."""
        page = await self._get("/stats/prometheus?usedonly")
        others = "".join(line for line in page.splitlines(keepends=True) if "envoy_model_failures" not in line)
        return (others + await self._failures()).encode()

    async def _failures(self) -> str:
        """The counts of failures. One that has not grown for a while is marked as unused before it is forgotten, and
        comes back with what it had: it must not seem gone meanwhile."""
        return await self._get("/stats/prometheus?filter=^model\\.failures")

    async def reopen_logs(self) -> None:
        """Go on in new log files."""
        (await self._http.post(f"{self._base()}/reopen_logs")).raise_for_status()

    async def drain(self) -> None:
        """Take no new connections, tell clients to go elsewhere."""
        (await self._http.post(f"{self._base()}/drain_listeners?graceful&skip_exit")).raise_for_status()

    def _base(self) -> str:
        return f"http://{self._address_file.read_text().strip()}"

    async def _get(self, path: str) -> str:
        answer = await self._http.get(self._base() + path)
        answer.raise_for_status()
        return answer.text


def _value(host: Mapping[str, Any], name: str) -> int:
    return next((int(stat.get("value", 0)) for stat in host.get("stats", []) if stat.get("name") == name), 0)
