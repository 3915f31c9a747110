"""Runs every benchmark, one after the other; the exit status says whether a limit was missed."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("controller_cycle", "artifact_sync", "throughput", "gateway_cpu", "gateway_routes")


def main() -> int:
    """Run them as processes of their own."""
    missed = []
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            missed.append(name)
    print(f"\nmissed: {', '.join(missed)}" if missed else "\nevery limit was kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
