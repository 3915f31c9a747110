"""How large Triton's batches are where there is enough to do, and what following the advice about them does."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.grpc.aio as grpcclient

from controlplane.core.entry import DynamicBatching, Entry, QueuePolicy
from controlplane.core.names import Key
from controlplane.core.scaling.batching import Batching, explain
from controlplane.core.scaling.capacity import Executions, fit, full_batch
from controlplane.metrics.batches import parse_batches
from controlplane.metrics.counters import Counters, parse_counters
from tests.render.builders import PYTHON_ONLY, entry, manifest
from tests.render.server import Server

FLAT, PADDED = "0.006 + 0.0006 * len(requests)", "0.010 if len(requests) <= 4 else 0.080"
GROUPS = 55
"""Of each size, one after the other: enough to believe what they cost."""
MODEL = """
import time
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        time.sleep({takes_s})
        given = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", x)]) for x in given]
"""


def batched(name: str, *sizes: int, delay_us: int = 0, **more: Any) -> Entry:
    batching = DynamicBatching(preferred_batch_size=sizes, max_queue_delay_us=delay_us, **more)
    return entry(name=name, max_batch_size=16, dynamic_batching=batching)


def load(
    triton: Server, of: Entry, clients: int, *, groups: tuple[int, ...] = (), takes_s: str = FLAT, items: int = 1
) -> tuple[Counters, tuple[Executions, ...]]:
    """What was counted while so many clients asked without a pause, and then groups of so many all at once, and again
    when all were answered."""
    code = MODEL.format(takes_s=takes_s).encode()
    triton.serve({1: manifest(of, {"model.py": code})}, {hashlib.sha256(code).hexdigest(): code}, PYTHON_ONLY)
    x = grpcclient.InferInput("x", [items, 4], "FP32")
    x.set_data_from_numpy(np.ones((items, 4), np.float32))

    async def ask() -> None:
        async with grpcclient.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:

            async def times(count: int) -> None:
                for _ in range(count):
                    await client.infer(of.name, [x], client_timeout=60)

            await asyncio.gather(*(times(6) for _ in range(clients)))
            for number in groups:
                for _ in range(GROUPS):
                    await asyncio.gather(*(times(1) for _ in range(number)))

    asyncio.run(ask())
    pages = [f"{triton.http_port}/v2/models/stats", f"{triton.metrics_port}/metrics"]
    stats, metrics = (httpx2.get(f"http://127.0.0.1:{each}", trust_env=False).text for each in pages)
    triton.client.unload_model(of.name)
    key = Key(of.name, 1)
    return parse_counters(metrics)[key], tuple(parse_batches(stats)[key].values())


def advice(of: Entry, executions: Iterable[Executions], duty: float | None = None) -> tuple[str, str]:
    told = tuple(executions)
    reason = explain(of, Batching(executions=told, cost=fit(told), duty=duty, limit_ms=100))[-1]
    return reason.code, reason.text


BY_PRIORITY = {"priority_levels": 1, "default_priority_level": 1}
LIMITED = {"default_queue_policy": QueuePolicy(max_queue_size=1000)}


@pytest.mark.parametrize(
    ("sizes", "delay_us", "more", "full"),
    [
        ((), 0, {}, 16),
        ((4,), 0, {}, 4),
        ((4, 8), 0, {}, 4),
        ((4,), 5_000, {}, 5),
        ((4, 8), 5_000, {}, 9),
        ((4, 16), 5_000, {}, 16),
        ((4, 8), 0, BY_PRIORITY, 8),
        ((4, 8), 0, LIMITED, 8),
        ((4,), 5_000, LIMITED, 16),
    ],
)
def test_full_batches(triton: Server, sizes: tuple[int, ...], delay_us: int, more: dict[str, Any], full: int) -> None:
    of = batched(f"full_{len(sizes)}_{full}_{len(more)}", *sizes, delay_us=delay_us, **more)
    assert full_batch(of) == full
    _, executions = load(triton, of, clients=48, takes_s="0.020 + 0.001 * len(requests)")
    requests = sum(each.size * each.count for each in executions)
    assert sum(each.size * each.count for each in executions if each.size == full) > requests / 2


def test_a_delay_that_is_waited_in_vain(triton: Server) -> None:
    of = batched("waits", delay_us=30_000)
    code, text = advice(of, load(triton, of, clients=0, groups=(4,))[1])
    assert code == "PREFERRED_SIZE" and "`preferred_batch_size: [4, 16]`" in text
    of = batched("sent", 4, 16, delay_us=30_000)
    _, executions = load(triton, of, clients=0, groups=(4,))
    assert max(executions, key=lambda each: each.count).size == 4
    assert advice(of, executions, duty=0.5)[0] == "KEEP_BATCHING"


def test_larger_batches_that_are_dearer(triton: Server) -> None:
    of = batched("padded", delay_us=10_000)
    code, text = advice(of, load(triton, of, clients=0, groups=(4, 16), takes_s=PADDED)[1])
    assert code == "PREFERRED_SIZE" and "`preferred_batch_size: [4]`" in text and "`max_queue_delay_us: 0`" in text
    of = batched("kept", 4)
    _, executions = load(triton, of, clients=0, groups=(4, 16), takes_s=PADDED)
    assert max(each.size for each in executions) == 4
    assert advice(of, executions, duty=0.95)[0] != "PREFERRED_SIZE"


def test_triton_counts_items(triton: Server) -> None:
    of = entry(name="items", max_batch_size=16)
    counted, executions = load(triton, of, clients=2, items=6, takes_s="0")
    assert (counted.success, counted.inferences, counted.executions) == (12, 72, 12)
    assert [(each.size, each.count) for each in executions] == [(6, 12)]
