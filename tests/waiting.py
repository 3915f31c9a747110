"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], *, timeout_s: float = 120.0, every_s: float = 0.02, what: str = "") -> T:
    """What `condition` returns as soon as that is true; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, what or f"not true after {timeout_s} s"
        time.sleep(every_s)
