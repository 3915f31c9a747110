"""Throughput of a real model through the gateway against direct calls, at saturation.

Run ``python -m benchmarks.throughput``. A system with one replica serves the file-type classifier; the same clients ask
it through the gateway and directly, in turn, and as many at once as keep its instance busy all the time. The clients
are processes of their own. Limit: the gateway gives at least 0.9 of the direct throughput.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.ending import scratch
from examples import models
from examples.interrupts import interruptible

CLIENTS, SECONDS, ROUNDS = 48, 4.0, 5
LIMIT = 0.9


def ctl(home: Path, *arguments: str) -> Any:
    """Run ctl and read what it prints as JSON, if it is."""
    command = [sys.executable, "-m", "controlplane.cli.main", "--home", str(home), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout) if "json" in arguments else None


def load(url: str, seconds: float) -> float:
    """Ask with CLIENTS at once for so long; returns the answers per second."""
    import numpy as np  # noqa: PLC0415 - only the client process needs them
    import tritonclient.grpc.aio as triton  # noqa: PLC0415

    async def run() -> float:
        async with triton.InferenceServerClient(url) as client:
            given = triton.InferInput("bytes", [1, 2048], "INT32")
            given.set_data_from_numpy(np.full((1, 2048), 65, dtype=np.int32))
            count = 0
            end = time.perf_counter() + seconds

            async def one() -> None:
                nonlocal count
                while time.perf_counter() < end:
                    await client.infer("magika", [given], client_timeout=30)
                    count += 1

            await asyncio.gather(*(one() for _ in range(CLIENTS)))
            return count / seconds

    return asyncio.run(run())


def measured(url: str, seconds: float = SECONDS) -> float:
    """Answers per second from one client process, which an interrupt reaches through this one alone."""
    command = [sys.executable, "-m", "benchmarks.throughput", url, str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120, start_new_session=True)
    return float(done.stdout)


def main() -> int:
    """Measure and print; 1 when the limit is missed."""
    with scratch() as folder:
        (folder / "system.yaml").write_text("gateway: {grpc_port: 0, http_port: 0}\nfleets: [{name: cpu}]\n")
        ctl(folder, "up", "-d", "-f", str(folder / "system.yaml"))
        ctl(folder, "register", "magika", str(models.prepare("magika", folder / "models")))
        ctl(folder, "promote", "magika", "1")
        gateway = ctl(folder, "status", "-o", "json")["grpc"]
        (replica,) = ctl(folder, "get", "replicas", "-o", "json")
        direct = f"{replica['endpoint']['host']}:{replica['endpoint']['grpc_port']}"
        measured(gateway, 2.0)
        rates: dict[str, list[float]] = {"direct": [], "through the gateway": []}
        ratios = []
        for number in range(ROUNDS):
            pair = [("direct", direct), ("through the gateway", gateway)]
            for name, url in pair if number % 2 else reversed(pair):
                rates[name].append(measured(url))
            ratios.append(rates["through the gateway"][-1] / rates["direct"][-1])
    print(f"file-type classifier, {CLIENTS} requests at once, {ROUNDS} rounds of {SECONDS:.0f} s in turn, medians")
    for name, values in rates.items():
        print(f"{name:22} {statistics.median(values):8.0f} requests/s")
    ratio = statistics.median(ratios)
    print(f"{'ratio (pair by pair)':22} {ratio:8.2f}   limit {LIMIT}")
    return 0 if ratio >= LIMIT else 1


if __name__ == "__main__":
    if sys.argv[1:]:
        print(load(sys.argv[1], float(sys.argv[2])))
    else:
        sys.exit(interruptible(main))
