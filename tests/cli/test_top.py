"""`ctl top` on a terminal: live, for as long as somebody looks."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.console import Console

from controlplane.cli.get import limits
from controlplane.cli.top import _drawn
from controlplane.local.home import Home
from tests.cli.conftest import running_controller
from tests.waiting import until

CTL = """
import signal, sys
from controlplane.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """What a program has written to its terminal so far."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._said = b""
        self._seen = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until_shown(self, text: str) -> None:
        """Wait until that is written, after what was waited for before."""

        def shown() -> bool:
            at = self._said.find(text.encode(), self._seen)
            if at < 0:
                assert self.process.poll() is None, self._said[-3000:]
                return False
            self._seen = at + len(text)
            return True

        until(shown, timeout_s=60.0, what=f"{text!r} is not shown")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            while more := os.read(self._descriptor, 65536):
                self._said += more
        except OSError:  # nobody writes any more
            return


@contextmanager
def on_a_terminal(*arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CTL, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(process, ours)
    try:
        yield terminal
    finally:
        terminal.end()


def test_it_goes_on_through_the_end_of_a_controller(home: Home) -> None:
    with running_controller(home) as controller, on_a_terminal("top", "--every", "0.2s") as terminal:
        for text in ("FLEET", "IN GOAL", "cpu: the deployment asks for 0", "Ctrl-C ends"):
            terminal.until_shown(text)
        controller.kill()
        controller.wait(10)
        terminal.until_shown("s old: the controller at")
        terminal.until_shown("cpu: the deployment asks for 0")
        with running_controller(home):
            terminal.until_shown("\x1b[H\x1b[1mFLEET")  # on the first line again
            terminal.until_shown("cpu: the deployment asks for 0")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(10) in (0, 130)


def rows(models: int) -> dict[str, Any]:
    signals = dict.fromkeys(("requests_per_s", "queue_ms", "latency_ms", "in_flight", "waiting", "batch_size"), 12.3)
    model = {"model": "m", "copies": 1, "held": 0, "errors_per_s": 0.0, "duty_cycle": 0.5, "memory_bytes": 1 << 30}
    fleet = {"name": "cpu", "ready": 1, "desired": 1, "demand": 0.5, "rate_per_s": 1.0, "waiting": 0.0, "held": 0}
    fleet |= {"met": 1.0, "memory_bytes": 0, "capacity_bytes": 1 << 30, "next_desired": None, "next_in_s": None}
    limits = {"min_replicas": 0, "max_replicas": 6, "by_hand": None, "reason": "what arrives keeps 0.50 replicas busy"}
    named = [{**model, **signals, "version": number} for number in range(1, models + 1)]
    return {"fleets": [fleet | limits], "models": named}


def shown(models: int, width: int, height: int) -> list[str]:
    terminal = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with terminal.capture() as captured:
        terminal.print(_drawn(rows(models), terminal.size))
    return captured.get().splitlines()


def test_a_narrow_terminal_shows_fewer_columns_and_cuts_none() -> None:
    wide, narrow = shown(2, 200, 40), shown(2, 80, 40)
    assert {"IN FLIGHT", "BATCH", "ERR/S", "MEMORY"} <= set(re.split(r"\s{2,}", wide[4].strip()))
    assert "MODEL" in narrow[4] and "LATENCY" in narrow[4] and "BATCH" not in narrow[4]
    assert all(len(line) <= 80 and "…" not in line for line in narrow)
    assert [line.split()[0] for line in narrow[5:7]] == ["m@1", "m@2"]


def test_a_low_terminal_tells_how_many_models_it_does_not_show() -> None:
    low = shown(50, 120, 12)
    assert len(low) == 12
    assert low[-1].startswith("44 more models have no room here; Ctrl-C ends")


@pytest.mark.parametrize(
    ("by_schedule", "by_hand", "expected"),
    [(None, None, "0–6"), ([2, 6], None, "2–6 by schedule"), ([2, 2], None, "2 by schedule"), ([2, 6], 4, "4 by hand")],
)
def test_the_size_that_holds_now_is_shown(by_schedule: list[int] | None, by_hand: int | None, expected: str) -> None:
    told = {"min_replicas": 0, "max_replicas": 6, "by_schedule": by_schedule, "by_hand": by_hand}
    assert limits(told) == expected
