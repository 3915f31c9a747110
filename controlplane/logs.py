"""How every process of the control plane logs: readable lines on a terminal, one JSON object a line everywhere else."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from typing import TextIO, cast

import structlog


class _Unfailing(io.TextIOBase):
    """A stream that goes on when what lies behind it can't: a full disk must not end a process that has more important
    things to do than to say so."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._out.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._out.flush()


def unfailing(out: TextIO) -> TextIO:
    """The stream, made one whose writes never raise OSError; what it can't take is lost."""
    return cast(TextIO, _Unfailing(out))


def configure(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Set up structlog, and bring what libraries log through `logging` (warnings and worse) into the same form.

    `stream` is where lines go; absent: standard error. Call it once, before the first line.
    """
    given = stream if stream is not None else sys.stderr
    terminal, out = given.isatty(), unfailing(given)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(out),
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last], foreign_pre_chain=shared
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
