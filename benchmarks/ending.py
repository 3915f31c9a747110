"""Benchmarks that leave nothing behind: neither folders nor processes, whenever they are interrupted."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from controlplane.local import processes
from examples.interrupts import undisturbed


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a benchmark's files, and the home of what it starts. At its end all of it goes."""
    folder = Path(tempfile.mkdtemp(prefix="ctl-benchmark-")).resolve()
    try:
        yield folder
    finally:
        undisturbed()
        processes.sweep(folder)
        shutil.rmtree(folder, ignore_errors=True)


def left_to_starter() -> None:
    """In a process of a pool: whoever started it decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
