"""A burst to a fleet of no replicas: all of it is held, and answered when the first one is there.

Run ``python -m benchmarks.from_zero``. 500 requests at once for a model of a fleet that has gone to zero, and the same
500 again to the replica that has come: the peer. Between two rounds the fleet goes to zero by itself. Limits: nothing
fails, one replica is started, and once the first is answered, what was held takes no longer than three times what the
burst takes from the replica that is there.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ending import scratch
from benchmarks.sleeping import write
from benchmarks.throughput import ctl
from examples.interrupts import interruptible

REQUESTS, ROUNDS, PATIENCE_S = 500, 3, 120.0
LIMIT = 3.0
SYSTEM = """\
gateway: {grpc_port: 0, http_port: 0}
controller: {drain_s: 1}
fleets:
- name: cpu
  replicas: {min: 0, max: 4}
  scaling: {queue_ms: 10000, idle_s: 5, down_after_s: 2}
  memory_bytes: 1Gi
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """How a burst went: seconds to the first and to the last answer, the median wait, and how many failed."""

    first_s: float
    median_s: float
    last_s: float
    failed: int


async def burst(url: str) -> Burst:
    """All requests at once."""
    import numpy as np  # noqa: PLC0415 - slow to import
    import tritonclient.grpc.aio as triton  # noqa: PLC0415
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    given = triton.InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.ones((1, 1), np.float32))
    waits: list[float] = []
    async with triton.InferenceServerClient(url) as client:
        began = time.perf_counter()

        async def one() -> None:
            try:
                await client.infer("echo", [given], client_timeout=PATIENCE_S)
            except InferenceServerException:
                return
            waits.append(time.perf_counter() - began)

        await asyncio.gather(*(one() for _ in range(REQUESTS)))
    waits.sort()
    if not waits:
        raise RuntimeError("nothing was answered")
    return Burst(first_s=waits[0], median_s=statistics.median(waits), last_s=waits[-1], failed=REQUESTS - len(waits))


def fleet(folder: Path) -> dict[str, Any]:
    """The fleet, as `ctl get fleets` tells it."""
    found: dict[str, Any] = ctl(folder, "get", "fleets", "-o", "json")[0]
    return found


def wait_for_zero(folder: Path) -> None:
    """Until the fleet has no replica."""
    deadline = time.monotonic() + PATIENCE_S
    while fleet(folder)["replicas"]:
        if time.monotonic() > deadline:
            raise TimeoutError("the fleet does not go to zero")
        time.sleep(0.5)


def main() -> int:
    """Measure and print; 1 when a limit was missed."""
    cold, warm, most = [], [], 0
    with scratch() as folder:
        (folder / "system.yaml").write_text(SYSTEM)
        model = write(folder / "model", "0.010 + 0.001 * size", more="max_batch_size: 16\ndynamic_batching: {}\n")
        ctl(folder, "up", "-d", "-f", str(folder / "system.yaml"))
        ctl(folder, "register", "echo", str(model))
        ctl(folder, "promote", "echo", "1")
        url = ctl(folder, "status", "-o", "json")["grpc"]
        for _ in range(ROUNDS):
            wait_for_zero(folder)
            cold.append(asyncio.run(burst(url)))
            most = max(most, fleet(folder)["replicas"])
            warm.append(asyncio.run(burst(url)))
    failed = sum(each.failed for each in (*cold, *warm))
    print(
        f"{REQUESTS} requests at once, {ROUNDS} rounds, medians; {failed} failed, {most} replica at most (limits 0, 1)"
    )
    for name, bursts in (("to no replica", cold), ("to one that is there", warm)):
        first, median, last = (
            statistics.median(getattr(each, part) for each in bursts) for part in ("first_s", "median_s", "last_s")
        )
        print(f"{name:22} first answer {first:6.2f} s   median {median:6.2f} s   last {last:6.2f} s")
    ratio = statistics.median((each.last_s - each.first_s) / peer.last_s for each, peer in zip(cold, warm, strict=True))
    print(f"all of what was held, after the first, against the burst to one that is there: {ratio:.2f}, limit {LIMIT}")
    return 0 if not failed and most == 1 and ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))
