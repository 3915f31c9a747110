from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from stamina.instrumentation import set_on_retry_hooks


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """What a test sets up for the whole process (`ctl` does, when it is called in this one) ends with it: its streams
    are closed then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
    set_on_retry_hooks(None)
