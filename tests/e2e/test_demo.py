"""The demo leaves nothing behind, whenever it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.local import processes
from tests.e2e.system import ROOT

HOME = ROOT / ".demo" / "home"


@pytest.mark.parametrize(
    ("seen", "whole_group"),
    [
        pytest.param("a system:", True, id="as the system starts, from the terminal"),
        pytest.param("a system:", False, id="as the system starts, by kill"),
        pytest.param("$ ctl promote magika 1", True, id="in a promotion"),
        pytest.param("answers from version", False, id="under load"),
    ],
)
def test_an_interrupted_demo_leaves_nothing(seen: str, whole_group: bool) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    said = []
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            said.append(line.decode())
            if seen in said[-1]:
                break
        assert seen in said[-1], "".join(said)
        if whole_group:
            os.killpg(demo.pid, signal.SIGINT)
        else:
            demo.send_signal(signal.SIGINT)
        said.append(demo.stdout.read().decode())
        assert demo.wait(90) == 130, "".join(said)
        assert "Traceback" not in "".join(said), "".join(said)
        assert not list(processes.of_home(HOME))
        assert not list(Path("/dev/shm").glob(processes.shared_memory_prefix(HOME) + "*"))
    finally:
        demo.kill()
        processes.sweep(HOME)
