"""More is asked of one model than its replica can do: how long what is answered has waited, and who else notices.

Run ``python -m benchmarks.overload``. For a minute a model is asked three times as often as its replica can answer, and
another one there now and then; once with the gateway's `max_wait_s`, and once, as the peer, without that bound, so that
there is only the one on requests in flight. What counts is the second half of the minute. Limits: with the bound the
model's requests take no longer than twice `max_wait_s` (each protocol counts for itself, and the controller must see
the flood first), as many are answered as without it, less a tenth, and of the other model none is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ending import scratch
from benchmarks.sleeping import write
from benchmarks.throughput import ctl
from examples.interrupts import interruptible

FLOOD_S, PATIENCE_S = 60.0, 120.0
CAN_PER_S, TIMES = 40.0, 3.0
"""What the model's replica can do, in batches of four that take a tenth of a second; and how much more is asked."""
OTHER_PER_S = 10.0
CLIENTS = 8
MAX_WAIT_S, NO_BOUND_S = 5.0, 3600.0
ANSWERED = 0.9
SYSTEM = """\
gateway: {{grpc_port: 0, http_port: 0, max_wait_s: {max_wait_s}}}
fleets: [{{name: cpu, replicas: 1, memory_bytes: 1Gi}}]
"""


@dataclass(slots=True)
class Asked:
    """How the requests for one model went: seconds to the answers, by when these came, and when others were refused."""

    answers: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def waits(self, since: float) -> list[float]:
        """How long the answers took that came later."""
        return [took_s for at, took_s in self.answers if at >= since]


async def ask(url: str, model: str, per_s: float) -> Asked:
    """Requests at a steady rate, whatever becomes of them."""
    import numpy as np  # noqa: PLC0415 - slow to import
    import tritonclient.grpc.aio as triton  # noqa: PLC0415
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    given = triton.InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.ones((1, 1), np.float32))
    asked, began = Asked(), time.perf_counter()
    async with contextlib.AsyncExitStack() as stack:
        # A connection holds a thousand requests; what is more would wait in the client.
        apart = [("grpc.use_local_subchannel_pool", 1)]
        clients = [
            await stack.enter_async_context(triton.InferenceServerClient(url, channel_args=apart))
            for _ in range(CLIENTS)
        ]

        async def one(client: triton.InferenceServerClient) -> None:
            sent = time.perf_counter()
            try:
                await client.infer(model, [given], client_timeout=PATIENCE_S)
            except InferenceServerException as error:
                if error.status() != "StatusCode.RESOURCE_EXHAUSTED":
                    raise
                asked.refused.append(time.perf_counter() - began)
                return
            now = time.perf_counter()
            asked.answers.append((now - began, now - sent))

        async with asyncio.TaskGroup() as tasks:
            for number in range(int(FLOOD_S * per_s)):
                await asyncio.sleep(max(began + number / per_s - time.perf_counter(), 0.0))
                tasks.create_task(one(clients[number % CLIENTS]))
    return asked


async def both(url: str) -> tuple[Asked, Asked]:
    """The flood, and what is asked of the other model meanwhile."""
    slow, other = await asyncio.gather(ask(url, "slow", TIMES * CAN_PER_S), ask(url, "other", OTHER_PER_S))
    return slow, other


def measured(folder: Path, max_wait_s: float) -> tuple[Asked, Asked]:
    """A system with this bound, under the flood."""
    folder.mkdir()
    (folder / "system.yaml").write_text(SYSTEM.format(max_wait_s=max_wait_s))
    batches = "max_batch_size: 4\ndynamic_batching: {}\n"
    ctl(folder, "up", "-d", "-f", str(folder / "system.yaml"))
    try:
        for name, takes_s, more in (("slow", f"{4 / CAN_PER_S}", batches), ("other", "0.001", batches)):
            ctl(folder, "register", name, str(write(folder / name, takes_s, more=more)))
            ctl(folder, "promote", name, "1")
        return asyncio.run(both(ctl(folder, "status", "-o", "json")["grpc"]))
    finally:
        ctl(folder, "down")


def main() -> int:
    """Measure and print; 1 when a limit was missed."""
    with scratch() as folder:
        bound = measured(folder / "bound", MAX_WAIT_S)
        peer = measured(folder / "peer", NO_BOUND_S)
    half = FLOOD_S / 2
    print(f"{TIMES:g} times what a replica can do ({CAN_PER_S:g}/s) for {FLOOD_S:g} s; the second half of it")
    print(f"{'':22} {'answers':>8} {'median':>8} {'longest':>8} {'refused':>8} {'other: longest':>15} {'refused':>8}")
    counts = []
    for name, (slow, other) in ((f"max_wait_s: {MAX_WAIT_S:g}", bound), ("no such bound", peer)):
        waits, others = slow.waits(half), other.waits(half)
        counts.append(sum(at < FLOOD_S for at, _ in slow.answers if at >= half))
        refused = sum(at >= half for at in slow.refused)
        figures = f"{counts[-1]:8d} {statistics.median(waits):6.1f} s {max(waits):6.1f} s {refused:8d}"
        print(f"{name:22} {figures} {max(others):13.2f} s {len(other.refused):8d}")
    longest, answered = max(bound[0].waits(half)), counts[0] / counts[1]
    print(f"longest against max_wait_s: {longest / MAX_WAIT_S:.2f}, limit 2; answered against the peer: {answered:.2f}")
    return 0 if longest <= 2 * MAX_WAIT_S and answered >= ANSWERED and not bound[1].refused else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))
