"""Throughput of a real model through the gateway against direct calls, at saturation.

Run ``python -m benchmarks.throughput``. A system with one replica serves the file-type classifier; the same clients ask
it through the gateway and directly, in turn, and as many at once as keep its instance busy all the time. The clients
are processes of their own. Limit: the gateway gives at least 0.9 of the direct throughput.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from examples import models

CLIENTS, SECONDS, ROUNDS = 48, 4.0, 5
LIMIT = 0.9


def ctl(home: Path, *arguments: str) -> Any:
    """Run ctl and read what it prints as JSON, if it is."""
    command = [sys.executable, "-m", "controlplane.cli.main", "--home", str(home), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout) if "json" in arguments else None


def load(url: str, seconds: float, answers: Any) -> None:
    """Ask with CLIENTS at once for so long; put the number of answers per second into `answers`."""
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

    answers.put(asyncio.run(run()))


def measured(url: str, seconds: float = SECONDS) -> float:
    """Answers per second from one client process."""
    answers: Any = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=load, args=(url, seconds, answers))
    process.start()
    rate: float = answers.get(timeout=120)
    process.join()
    return rate


def main() -> int:
    """Measure and print; 1 when the limit is missed."""
    folder = Path(tempfile.mkdtemp(prefix="ctl-benchmark-"))
    home = folder / "home"
    try:
        (folder / "system.yaml").write_text("gateway: {grpc_port: 0, http_port: 0}\nfleets: [{name: cpu}]\n")
        ctl(home, "up", "-d", "-f", str(folder / "system.yaml"))
        ctl(home, "register", "magika", str(models.prepare("magika", folder / "models")))
        ctl(home, "promote", "magika", "1")
        gateway = ctl(home, "status", "-o", "json")["grpc"]
        (replica,) = ctl(home, "get", "replicas", "-o", "json")
        direct = f"{replica['endpoint']['host']}:{replica['endpoint']['grpc_port']}"
        measured(gateway, 2.0)
        rates: dict[str, list[float]] = {"direct": [], "through the gateway": []}
        ratios = []
        for number in range(ROUNDS):
            pair = [("direct", direct), ("through the gateway", gateway)]
            for name, url in pair if number % 2 else reversed(pair):
                rates[name].append(measured(url))
            ratios.append(rates["through the gateway"][-1] / rates["direct"][-1])
    finally:
        ctl(home, "down")
        shutil.rmtree(folder, ignore_errors=True)
    print(f"file-type classifier, {CLIENTS} requests at once, {ROUNDS} rounds of {SECONDS:.0f} s in turn, medians")
    for name, values in rates.items():
        print(f"{name:22} {statistics.median(values):8.0f} requests/s")
    ratio = statistics.median(ratios)
    print(f"{'ratio (pair by pair)':22} {ratio:8.2f}   limit {LIMIT}")
    return 0 if ratio >= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
