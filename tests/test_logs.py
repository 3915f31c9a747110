"""Logs: JSON off a terminal, lines for people on one, libraries' warnings in the same form."""

from __future__ import annotations

import io
import json
import logging

import structlog

from controlplane.logs import configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_json_object_a_line_off_a_terminal() -> None:
    out = io.StringIO()
    configure(out)
    structlog.get_logger("x").info("version is ready", model="m", version=2)
    logging.getLogger("library").warning("careful %s", "now")
    logging.getLogger("library").info("chatter")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["event"], first["model"], first["version"], first["level"]) == ("version is ready", "m", 2, "info")
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["level"]) == ("careful now", "warning")


def test_an_exception_is_one_line_too() -> None:
    out = io.StringIO()
    configure(out)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("x").exception("it failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_readable_on_a_terminal() -> None:
    out = Terminal()
    configure(out)
    structlog.get_logger("x").info("version is ready", model="m")
    assert "version is ready" in out.getvalue()
    assert not out.getvalue().startswith("{")
