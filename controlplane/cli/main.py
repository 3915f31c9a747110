"""The `ctl` program, as it starts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ctl`; returns the exit status."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        # Nothing is begun yet: Ctrl-C just ends the program, where Python would print how far its imports were.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from controlplane.cli.commands import run

    signal.signal(signal.SIGINT, handler)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
