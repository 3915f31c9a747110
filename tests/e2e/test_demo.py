"""The demo leaves nothing behind, whenever it is interrupted, and nobody else's demo in pieces."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.local import processes
from controlplane.local.home import Home
from controlplane.local.supervisor import owner
from tests.e2e.system import ROOT

HOME = ROOT / ".demo" / "home"
DEMO = [sys.executable, "-m", "examples.demo"]
INTERRUPTED_AT_A_START = """
import os, runpy, signal, subprocess, sys

class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if "up" in command:
            os.kill(os.getpid(), signal.SIGINT)

subprocess.Popen = Popen
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module, and interrupts it when it has started a process with `up` among its arguments and does not know of it
yet."""


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
        DEMO,
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
        assert_nothing_left()
    finally:
        demo.kill()
        processes.sweep(HOME)


def assert_nothing_left(home: Path = HOME) -> None:
    assert not list(processes.of_home(home))
    assert owner(Home(home)) is None
    assert not list(Path("/dev/shm").glob(processes.shared_memory_prefix(home) + "*"))


@pytest.mark.parametrize("what", ["the demo", "ctl up -d"])
def test_an_interrupt_between_a_start_and_knowing_of_it_leaves_nothing(what: str, tmp_path: Path) -> None:
    home, module = (
        (HOME, ["examples.demo"]) if what == "the demo" else (tmp_path, ["controlplane.cli.main", "up", "-d"])
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED_AT_A_START, *module],
            cwd=ROOT,
            env={**os.environ, "CTL_HOME_DIR": str(home)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 130, done.stderr
        assert "Traceback" not in done.stderr
        assert_nothing_left(home)
    finally:
        processes.sweep(home)


def test_a_second_demo_is_refused_and_what_the_first_prints_can_be_copied() -> None:
    first = subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = []
    try:
        assert first.stdout is not None
        for line in first.stdout:
            said.append(line)
            if "models: real ones" in line or "register: the bytes" in line:  # before its system is there, and after
                second = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
                assert second.returncode == 1
                assert f"a demo is running already: process {first.pid}" in second.stderr
            if "promote:" in line:
                break
        assert "promote:" in said[-1], "".join(said)
        first.send_signal(signal.SIGTERM)
        said.append(first.stdout.read())
        assert first.wait(90) == 130, "".join(said)
    finally:
        first.kill()
        processes.sweep(HOME)
    typed = [shlex.split(line.removeprefix("$ ")) for line in said if line.startswith("$ ")]
    assert typed[0] == ["export", "CTL_HOME_DIR=.demo/home"]
    assert ["ctl", "register", "magika", ".demo/models/magika-1.0.3", "--reason", "the newer release"] in typed


def test_an_interrupt_among_the_imports_prints_no_traceback() -> None:
    """Python's list of imports tells how far it is; the small pipe keeps it from getting far ahead of its reader."""
    demo = subprocess.Popen(
        [sys.executable, "-X", "importtime", *DEMO[1:]],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pipesize=4096,
    )
    try:
        assert demo.stderr is not None
        said = [next(line for line in demo.stderr if "numpy" in line)]
        demo.send_signal(signal.SIGINT)
        said.append(demo.stderr.read())
        assert demo.wait(90) == -signal.SIGINT
        assert "Traceback" not in "".join(said)
        assert_nothing_left()
    finally:
        demo.kill()
        processes.sweep(HOME)
