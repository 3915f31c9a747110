"""A benchmark that is interrupted leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.local import processes
from tests.e2e.system import ROOT
from tests.waiting import until


@pytest.mark.parametrize("by_terminal", [False, True], ids=["by kill", "from the terminal"])
def test_an_interrupted_benchmark_leaves_nothing(tmp_path: Path, by_terminal: bool) -> None:
    benchmark = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.throughput"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        found = until(lambda: list(tmp_path.glob("ctl-benchmark-*/controller.json")), timeout_s=60)
        if by_terminal:
            os.killpg(benchmark.pid, signal.SIGINT)
        else:
            benchmark.terminate()
        said, _ = benchmark.communicate(timeout=60)
        assert (benchmark.returncode, said.strip()) == (130, "interrupted")
        assert list(tmp_path.iterdir()) == []
        assert not list(processes.of_home(found[0].parent))
    finally:
        benchmark.kill()
        for folder in tmp_path.iterdir():
            processes.sweep(folder)
