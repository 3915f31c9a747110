"""How large Triton's batches are where there is enough to do, and what following the advice about them does."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable

import httpx2
import numpy as np
import pytest
import tritonclient.grpc.aio as grpcclient

from controlplane.core.entry import DynamicBatching, Entry
from controlplane.core.names import Key
from controlplane.core.scaling.batching import Batching, explain
from controlplane.core.scaling.capacity import Executions, fit, full_batch
from controlplane.metrics.batches import parse_batches
from tests.render.builders import PYTHON_ONLY, entry, manifest
from tests.render.server import Server

FLAT, PADDED = "0.006 + 0.0006 * len(requests)", "0.010 if len(requests) <= 4 else 0.050"
MODEL = """
import time
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        time.sleep({takes_s})
        given = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", x)]) for x in given]
"""


def batched(name: str, *sizes: int, delay_us: int = 0) -> Entry:
    batching = DynamicBatching(preferred_batch_size=sizes, max_queue_delay_us=delay_us)
    return entry(name=name, max_batch_size=16, dynamic_batching=batching)


def load(triton: Server, of: Entry, *clients: int, takes_s: str = FLAT, each: int = 10) -> tuple[Executions, ...]:
    """What was executed while so many clients, and then so many, asked `each` times without a pause."""
    code = MODEL.format(takes_s=takes_s).encode()
    triton.serve({1: manifest(of, {"model.py": code})}, {hashlib.sha256(code).hexdigest(): code}, PYTHON_ONLY)

    async def ask(client: grpcclient.InferenceServerClient) -> None:
        x = grpcclient.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.ones((1, 4), np.float32))
        for _ in range(each):
            await client.infer(of.name, [x], client_timeout=60)

    async def all_of_them() -> None:
        async with grpcclient.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
            for number in clients:
                await asyncio.gather(*(ask(client) for _ in range(number)))

    asyncio.run(all_of_them())
    page = httpx2.get(f"http://127.0.0.1:{triton.http_port}/v2/models/stats", trust_env=False).text
    triton.client.unload_model(of.name)
    return tuple(parse_batches(page)[Key(of.name, 1)].values())


def advice(of: Entry, executions: Iterable[Executions], duty: float | None = None) -> tuple[str, str]:
    told = tuple(executions)
    reason = explain(of, Batching(executions=told, cost=fit(told), duty=duty, limit_ms=100))[-1]
    return reason.code, reason.text


@pytest.mark.parametrize(
    ("sizes", "delay_us", "full"),
    [((), 0, 16), ((4,), 0, 4), ((4, 8), 0, 4), ((4,), 5_000, 5), ((4, 8), 5_000, 9), ((4, 16), 5_000, 16)],
)
def test_full_batches(triton: Server, sizes: tuple[int, ...], delay_us: int, full: int) -> None:
    of = batched(f"full_{len(sizes)}_{full}", *sizes, delay_us=delay_us)
    assert full_batch(of) == full
    executions = load(triton, of, 48)
    requests = sum(each.size * each.count for each in executions)
    assert sum(each.size * each.count for each in executions if each.size == full) > requests / 2


def test_a_delay_that_is_waited_in_vain(triton: Server) -> None:
    of = batched("waits", delay_us=50_000)
    code, text = advice(of, load(triton, of, 4, each=30))
    assert code == "PREFERRED_SIZE" and "`preferred_batch_size: [4, 16]`" in text
    of = batched("sent", 4, 16, delay_us=50_000)
    executions = load(triton, of, 4, each=30)
    assert max(executions, key=lambda each: each.count).size == 4
    assert advice(of, executions)[0] == "KEEP_BATCHING"


def test_larger_batches_that_are_dearer(triton: Server) -> None:
    of = batched("padded")
    code, text = advice(of, load(triton, of, 5, 12, takes_s=PADDED, each=30))
    assert code == "PREFERRED_SIZE" and "`preferred_batch_size: [4]`" in text
    of = batched("kept", 4)
    executions = load(triton, of, 5, 12, takes_s=PADDED, each=30)
    assert max(each.size for each in executions) == 4
    assert advice(of, executions)[0] == "KEEP_BATCHING"


def test_a_preferred_size_that_holds_back(triton: Server) -> None:
    of = batched("held", 4)
    code, text = advice(of, load(triton, of, 32, each=20), duty=0.95)
    assert code == "PREFERRED_SIZE" and "without it" in text
