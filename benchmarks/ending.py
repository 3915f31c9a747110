"""Benchmarks that leave nothing behind: neither folders nor processes, whenever they are interrupted."""

from __future__ import annotations

import contextlib
import shutil
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
