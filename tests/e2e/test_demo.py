"""The demo leaves nothing behind, whenever it is interrupted, and nobody else's demo in pieces."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
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
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Runs a module, and interrupts it when it has started a process with `up` among its arguments and does not know of it
yet."""


class Demo:
    """A demo that runs, and what it has said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.process = subprocess.Popen(
            DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def until(self, what: str) -> None:
        """Wait until it says something."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if what in line:
                return
        raise AssertionError("".join(self.said))

    def interrupted(self, *, from_the_terminal: bool) -> None:
        """Interrupt it, or it and all that it runs as a terminal does, and see that nothing is left."""
        if from_the_terminal:
            os.killpg(self.process.pid, signal.SIGINT)
        else:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.said.append(self.process.stdout.read())
        assert self.process.wait(90) == 130, "".join(self.said)
        assert "Traceback" not in "".join(self.said), "".join(self.said)
        assert_nothing_left()


@pytest.fixture
def demo() -> Iterator[Demo]:
    demo = Demo()
    try:
        yield demo
    finally:
        demo.process.kill()
        processes.sweep(HOME)


@pytest.mark.parametrize(
    ("said", "from_the_terminal"),
    [
        pytest.param("a system:", True, id="as the system starts, from the terminal"),
        pytest.param("a system:", False, id="as the system starts, by kill"),
        pytest.param("answers from version", False, id="under load, by kill"),
    ],
)
def test_an_interrupted_demo_leaves_nothing(demo: Demo, said: str, from_the_terminal: bool) -> None:
    demo.until(said)
    demo.interrupted(from_the_terminal=from_the_terminal)


def test_an_interrupt_in_a_promotion_a_second_demo_and_what_can_be_copied(demo: Demo) -> None:
    for said in ("models: real ones", "register: the bytes"):  # before its system is there, and after
        demo.until(said)
        second = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert f"a demo is running already: process {demo.process.pid}" in second.stderr
    demo.until("$ ctl promote magika 1")
    demo.interrupted(from_the_terminal=True)
    typed = [shlex.split(line.removeprefix("$ ")) for line in demo.said if line.startswith("$ ")]
    assert typed[0] == ["export", "CTL_HOME_DIR=.demo/home"]
    assert ["ctl", "register", "magika", ".demo/models/magika-1.0.3", "--reason", "the newer release"] in typed


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
