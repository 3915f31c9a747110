"""Shows how far a registration is: a bar on a terminal, a line at the end of each phase anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from controlplane.cli.output import is_animated, note, size

if TYPE_CHECKING:
    from controlplane.registry.versions import Progress

LABELS = {"hash": "reading", "upload": "uploading"}


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """What `register` is to tell its progress."""
    if not is_animated():
        yield _say_ends
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:>10}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(LABELS[progress.phase], total=progress.total_bytes)
            bars.update(tasks[progress.phase], completed=progress.done_bytes)

        yield show


def _say_ends(progress: Progress) -> None:
    if progress.done_bytes == progress.total_bytes and progress.total_bytes:
        note(f"{LABELS[progress.phase]}: {size(progress.total_bytes)} done")
