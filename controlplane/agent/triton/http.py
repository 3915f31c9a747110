"""What the agent asks Triton over HTTP: whether all of its ports are open, how many requests wait, what GPUs hold."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from controlplane.core.names import Key

PENDING = "nv_inference_pending_request_count"
GPU_MEMORY = "nv_gpu_memory_used_bytes"
GPU_METRICS_EVERY_S = 0.25
"""How often a server with GPUs is told to measure them; unless it is told, it does every two seconds."""
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
    return {
        Key(sample.labels["model"], int(sample.labels["version"])): int(sample.value)
        for sample in _samples(answer.text, PENDING)
    }


def gpu_memory_bytes(host: str, metrics_port: int) -> int | None:
    """What is taken of all the GPUs that the server sees, by whomever; None where it does not say. Blocks. What
    happened is in it after two intervals of its metrics: GPUs are sampled, and the samples read, that often."""
    try:
        answer = httpx2.get(f"http://{host}:{metrics_port}/metrics", timeout=TIMEOUT_S, trust_env=False)
    except httpx2.HTTPError:
        return None
    return parse_gpu_memory(answer.text) if answer.is_success else None


def parse_gpu_memory(page: str) -> int | None:
    """The sum over GPUs in a page of metrics, in bytes; None where it has none, or one that is not measured (yet).
    Triton says that with 0: it takes some of each GPU itself."""
    used = [int(sample.value) for sample in _samples(page, GPU_MEMORY)]
    return sum(used) if used and all(used) else None


def _samples(page: str, name: str) -> list[Sample]:
    """Those of one metric; a page is long where there are many models."""
    lines = "".join(f"{line}\n" for line in page.splitlines() if line.startswith(name))
    return [sample for family in text_string_to_metric_families(lines) for sample in family.samples]
