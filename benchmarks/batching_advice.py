"""What `ctl explain model` advises on preferred batch sizes, and what following it does.

Run ``python -m benchmarks.batching_advice``. One replica of one instance serves models whose settings do not suit them;
clients ask through the gateway without a pause. Under that load the advice is taken as `ctl explain` tells it, a
version with these settings is registered and promoted, and the same clients ask that. Work takes no CPU. Limits: each
advised version answers at least 1.2 times as many requests a second, and nobody advises another preferred size for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ending import scratch
from benchmarks.sleeping import write
from benchmarks.throughput import ctl
from examples.interrupts import interruptible

SECONDS, PATIENCE_S, AGAIN_S = 8.0, 60.0, 20.0
LIMIT = 1.2
ADVICE = ("PREFERRED_SIZE", "TRY_LARGER_BATCHES")
SETTING = re.compile(r"`(preferred_batch_size|max_queue_delay_us): (\[[\d, ]+\]|\d+)`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, and how many clients it has, one number after the other."""

    name: str
    what: str
    takes_s: str
    clients: tuple[int, ...]
    batching: dict[str, Any] = field(default_factory=dict)


FLAT = "0.010 + 0.001 * size"
CASES = (
    Case(
        name="waits",
        what="4 clients, a delay of 50 ms",
        takes_s=FLAT,
        clients=(4,),
        batching={"max_queue_delay_us": 50_000},
    ),
    Case(
        name="padded",
        what="above 8 an execution takes four times as long",
        takes_s="0.020 if size <= 8 else 0.080",
        clients=(9, 24),
    ),
    Case(
        name="held",
        what="24 clients, `preferred_batch_size: [4]`",
        takes_s=FLAT,
        clients=(24,),
        batching={"preferred_batch_size": [4]},
    ),
    Case(
        name="both",
        what="24 clients, `preferred_batch_size: [4]`, a delay of 5 ms",
        takes_s=FLAT,
        clients=(24,),
        batching={"preferred_batch_size": [4], "max_queue_delay_us": 5_000},
    ),
)


def load(url: str, case: Case, clients: int, ended: threading.Event) -> float:
    """Ask until told to stop; returns the answers per second."""
    import numpy as np  # noqa: PLC0415 - slow to import
    import tritonclient.grpc.aio as triton  # noqa: PLC0415

    async def run() -> float:
        count, began = 0, time.perf_counter()
        given = triton.InferInput("x", [1, 1], "FP32")
        given.set_data_from_numpy(np.ones((1, 1), np.float32))
        async with triton.InferenceServerClient(url) as client:

            async def one() -> None:
                nonlocal count
                while not ended.is_set():
                    await client.infer(case.name, [given], client_timeout=30)
                    count += 1

            await asyncio.gather(*(one() for _ in range(clients)))
        return count / (time.perf_counter() - began)

    return asyncio.run(run())


def rate(url: str, case: Case) -> float:
    """Answers per second to the last number of clients, in a while."""
    ended = threading.Event()
    timer = threading.Timer(SECONDS, ended.set)
    timer.start()
    return load(url, case, case.clients[-1], ended)


def advised(folder: Path, url: str, case: Case, *, patience_s: float) -> str | None:
    """The first advice on preferred sizes, while the clients ask; None if there is none for so long."""
    for clients in case.clients:
        ended = threading.Event()
        thread = threading.Thread(target=load, args=(url, case, clients, ended))
        thread.start()
        try:
            deadline = time.monotonic() + patience_s / len(case.clients)
            while time.monotonic() < deadline:
                told = ctl(folder, "explain", "model", case.name, "-o", "json")["batching"]
                for reason in told:
                    if reason["code"] in ADVICE:
                        return str(reason["text"])
                time.sleep(1)
        finally:
            ended.set()
            thread.join()
    return None


def followed(batching: dict[str, Any], advice: str) -> dict[str, Any]:
    """The settings with what the advice says in place; `without it` takes the preferred size away."""
    changed = {name: json.loads(value) for name, value in SETTING.findall(advice)}
    if "try without" in advice:
        return {name: value for name, value in batching.items() if name != "preferred_batch_size"}
    return batching | changed


def serve(folder: Path, case: Case, batching: dict[str, Any]) -> None:
    """Register and promote the model with these settings."""
    settings = f"max_batch_size: 16\ndynamic_batching: {json.dumps(batching)}\n"
    source = write(folder / case.name, case.takes_s, more=settings)
    version = ctl(folder, "register", case.name, str(source), "-o", "json")["version"]
    ctl(folder, "promote", case.name, str(version))


def main() -> int:
    """Measure and print; 1 when an advice did not help."""
    missed = 0
    with scratch() as folder:
        (folder / "system.yaml").write_text("gateway: {grpc_port: 0, http_port: 0}\nfleets: [{name: cpu}]\n")
        ctl(folder, "up", "-d", "-f", str(folder / "system.yaml"))
        url = ctl(folder, "status", "-o", "json")["grpc"]
        for case in CASES:
            serve(folder, case, case.batching)
            advice = advised(folder, url, case, patience_s=PATIENCE_S)
            if advice is None:
                raise TimeoutError(f"{case.what}: nothing was advised")
            before = rate(url, case)
            serve(folder, case, followed(case.batching, advice))
            after = rate(url, case)
            other = advised(folder, url, case, patience_s=AGAIN_S)
            # Of the one size that was set because larger ones are dear, that can't be known any more, and is said.
            told_why = case.name == "padded" and other is not None and "unless that was set" in other
            missed += after < LIMIT * before or (other is not None and not told_why)
            print(f"{case.what}\n  {advice}", flush=True)
            print(f"  {before:.0f} requests/s, as advised {after:.0f}: {after / before:.2f}, limit {LIMIT}", flush=True)
            print(f"  then: {other or 'nothing else'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
