"""Programs that start something, and clear it away whenever they are interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interruptible(main: Callable[[], int]) -> int:
    """What `main` returns; INTERRUPTED, and no traceback, where Ctrl-C or another polite signal ended it.

    It gets a KeyboardInterrupt then, and clears up in its `finally`s: a second signal does not disturb them.
    """

    signals: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        undisturbed()
        signals.append(number)
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, interrupt)
    try:
        return main()
    except BaseException:
        if not signals:
            raise
        # It may come out of compiled code as another error than it went in.
        print("\ninterrupted", file=sys.stderr, flush=True)
        return INTERRUPTED


def undisturbed() -> None:
    """From here on this process, and what it starts, is not to be interrupted: it clears up."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
