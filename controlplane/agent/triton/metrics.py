"""What the agent reads from Triton's metrics: how many requests wait."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from controlplane.core.snapshot import Key

PENDING = "nv_inference_pending_request_count"


async def pending_requests(host: str, port: int) -> Mapping[Key, int]:
    """By version, the requests that wait for an instance; empty when the server does not say."""
    try:
        async with httpx2.AsyncClient(timeout=5.0) as http:
            answer = await http.get(f"http://{host}:{port}/metrics")
    except httpx2.HTTPError:
        return {}
    lines = "".join(f"{line}\n" for line in answer.text.splitlines() if line.startswith(PENDING))
    return {
        Key(sample.labels["model"], int(sample.labels["version"])): int(sample.value)
        for family in text_string_to_metric_families(lines)
        for sample in family.samples
    }
