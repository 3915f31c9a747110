"""`ctl top` on a terminal: live, for as long as somebody looks."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from controlplane.local.home import Home
from tests.cli.conftest import running_controller
from tests.waiting import until


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
        [sys.executable, "-m", "controlplane.cli.main", *arguments],
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
