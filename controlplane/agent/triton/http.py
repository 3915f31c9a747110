"""What the agent asks Triton over HTTP: whether all of its ports are open, how many requests wait."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from controlplane.core.names import Key

PENDING = "nv_inference_pending_request_count"
TIMEOUT_S = 5.0


async def answers(host: str, http_port: int, metrics_port: int, name: str) -> bool:
    """Whether the server called `name` answers HTTP, and metrics are there. Triton opens these ports after gRPC's, and
    ends when one of them is taken."""
    try:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            server = await http.get(f"http://{host}:{http_port}/v2")
            metrics = await http.get(f"http://{host}:{metrics_port}/metrics")
            return bool(server.is_success and server.json()["name"] == name and metrics.is_success)
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return False


async def pending_requests(host: str, metrics_port: int) -> Mapping[Key, int]:
    """By version, the requests that wait for an instance; empty when the server does not say."""
    try:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            answer = await http.get(f"http://{host}:{metrics_port}/metrics")
    except httpx2.HTTPError:
        return {}
    lines = "".join(f"{line}\n" for line in answer.text.splitlines() if line.startswith(PENDING))
    return {
        Key(sample.labels["model"], int(sample.labels["version"])): int(sample.value)
        for family in text_string_to_metric_families(lines)
        for sample in family.samples
    }
