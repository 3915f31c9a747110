"""The simulator against a real run: the same requests to a real system of Triton servers, and to the replay of it.

Run ``python -m benchmarks.simulated_and_real``. A fleet of one to four replicas with one instance each gets a quiet
time, a burst, and a quiet time; a request is 50 ms of work that takes no CPU, so that replicas on one machine do not
slow each other. The real run comes first; how long its starts took is what the replay is told. Compared: replica-hours,
the share of requests within the goal, the most replicas. Limits: replica-hours within a quarter of each other, shares
within ten points; the real fleet has gone from one replica to four and back, and no request has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ending import scratch
from benchmarks.sleeping import write
from benchmarks.throughput import ctl
from controlplane.local.home import Home
from controlplane.local.system import read_system
from controlplane.simulate.controller import Controller
from controlplane.simulate.outcomes import outcome
from controlplane.simulate.replay import Setting, replay
from controlplane.simulate.traces import Trace, trace_of
from examples.interrupts import interruptible

WORK_S, GOAL_S = 0.05, 0.2
PHASES = ((40.0, 4.0), (60.0, 58.0), (70.0, 4.0))
"""Seconds, and requests a second."""
SYSTEM = """\
gateway: {grpc_port: 0, http_port: 0}
controller: {drain_s: 2}
fleets:
- name: cpu
  replicas: {min: 1, max: 4}
  scaling: {queue_ms: 200, share: 0.95, down_after_s: 15}
  memory_bytes: 1Gi
"""
HOURS_WITHIN, SHARE_WITHIN = 0.25, 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run came to."""

    replica_hours: float
    share: float
    most: int
    last: int
    failed: int = 0


def requests(seed: int = 1) -> Trace:
    """When each request comes: at random, at the rate of its phase."""
    random, parts, begin = np.random.default_rng(seed), [], 0.0
    for length_s, rate_per_s in PHASES:
        count = int(random.poisson(length_s * rate_per_s))
        parts.append(begin + random.uniform(0.0, length_s, count))
        begin += length_s
    at = np.sort(np.concatenate(parts))
    return trace_of("quiet, burst, quiet", at, np.full(len(at), WORK_S, np.float32))


def real(folder: Path, trace: Trace) -> tuple[Figures, float]:
    """Run it; returns the figures, and how long a start took in seconds."""
    (folder / "system.yaml").write_text(SYSTEM)
    model = write(folder / "model", f"{WORK_S} * size")
    ctl(folder, "up", "-d", "-f", str(folder / "system.yaml"))
    ctl(folder, "register", "echo", str(model))
    ctl(folder, "promote", "echo", "1")
    url = ctl(folder, "status", "-o", "json")["grpc"]
    counts: list[tuple[float, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            fleet = ctl(folder, "get", "fleets", "-o", "json")[0]
            counts.append((time.monotonic(), fleet["replicas"]))

    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            waits = asyncio.run(asked(url, trace))
            ended = time.monotonic()
        finally:
            done.set()
        watcher.result()  # what it could not see would be missing in the figures
    from controlplane.registry import open_registry  # noqa: PLC0415 - boto3 is slow to import

    record = open_registry(str(Home(folder).registry)).fleet("cpu")
    # From the first request to the last answer: what was seen first held before, what was seen last holds on.
    times = [began, *(at for at, _ in counts[1:] if at < ended), ended]
    paid = sum(count * (after - at) for (_, count), (at, after) in zip(counts, itertools.pairwise(times), strict=False))
    figures = Figures(
        replica_hours=paid / 3600,
        share=float(np.mean(waits <= GOAL_S)),
        most=max(count for _, count in counts),
        last=counts[-1][1],
        failed=int(np.count_nonzero(np.isinf(waits))),
    )
    return figures, record.start_s or 0.0


async def asked(url: str, trace: Trace) -> Any:
    """Ask at the trace's times; how long each request waited beyond its work, in seconds (infinite: it failed)."""
    import tritonclient.grpc.aio as triton  # noqa: PLC0415
    from tritonclient.utils import InferenceServerException  # noqa: PLC0415

    given = triton.InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.ones(1, np.float32))
    waits = np.full(len(trace), np.inf)
    began = time.perf_counter()
    async with triton.InferenceServerClient(url) as client:

        async def one(index: int, at: float) -> None:
            await asyncio.sleep(max(at - (time.perf_counter() - began), 0.0))
            sent = time.perf_counter()
            with contextlib.suppress(InferenceServerException):
                await client.infer("echo", [given], client_timeout=120)
                waits[index] = time.perf_counter() - sent - WORK_S

        await asyncio.gather(*(one(index, at) for index, at in enumerate(trace.arrival_s.tolist())))
    return waits


def simulated(folder: Path, trace: Trace, start_s: float) -> Figures:
    """Replay it."""
    shape = read_system(folder / "system.yaml", Home(folder)).fleets[0].shape()
    setting = Setting(shape=shape, slots=1, start_s=start_s, initial=1)
    run = replay(trace, setting, Controller(setting))
    made = outcome(run, trace, shape.goal)
    return Figures(replica_hours=made.replica_hours, share=made.share or 0.0, most=made.most, last=int(run.present[-1]))


def main() -> int:
    """Measure and print; 1 when a limit is missed."""
    trace = requests()
    with scratch() as folder:
        found, start_s = real(folder, trace)
        replayed = simulated(folder, trace, start_s)
    ratio = replayed.replica_hours / found.replica_hours
    apart = replayed.share - found.share
    print(f"{len(trace)} requests in {trace.length_s:.0f} s, a start takes {start_s:.1f} s")
    print(f"{'':14} {'replica-hours':>13} {'in time':>8} {'most':>5} {'last':>5} {'failed':>6}")
    for name, each in (("real", found), ("simulated", replayed)):
        print(f"{name:14} {each.replica_hours:13.4f} {each.share:8.1%} {each.most:5d} {each.last:5d} {each.failed:6d}")
    kept = abs(ratio - 1) <= HOURS_WITHIN and abs(apart) <= SHARE_WITHIN
    kept = kept and (found.most, found.last, found.failed) == (4, 1, 0)
    print(f"simulated / real {ratio:.2f}, shares {apart * 100:+.1f} points apart: {'ok' if kept else 'MISSED'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(interruptible(main))
