"""Runs every benchmark, one after the other; the exit status says whether a limit was missed."""

from __future__ import annotations

import subprocess
import sys

from examples.interrupts import interruptible

BENCHMARKS = (
    "controller_cycle",
    "kubernetes_scale",
    "artifact_sync",
    "throughput",
    "batching_advice",
    "gateway_cpu",
    "gateway_routes",
    "outages",
    "held_requests",
    "from_zero",
    "overload",
    "density",
    "simulated_and_real",
    "seasons",
    "autoscaling",
)


def main() -> int:
    """Run them as processes of their own."""
    missed = []
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        if _status(name):
            missed.append(name)
    print(f"\nmissed: {', '.join(missed)}" if missed else "\nevery limit was kept")
    return 1 if missed else 0


def _status(name: str) -> int:
    """How a benchmark ended. Interrupts reach it through this process alone, which waits until all is cleared up."""
    with subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}"], start_new_session=True) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


if __name__ == "__main__":
    sys.exit(interruptible(main))
