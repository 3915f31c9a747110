"""`make demo`: starts the main job (`main_job.py`)."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # Nothing is begun yet: Ctrl-C just ends the program, where Python would print how far its imports were.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from examples.interrupts import interruptible
    from examples.main_job import main

    sys.exit(interruptible(main))
