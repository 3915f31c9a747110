"""One real tritonserver for the folder: each test loads models of its own names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.render.server import Server, running


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with a response cache and a rate limiter."""
    root: Path = tmp_path_factory.mktemp("triton")
    with running(root) as server:
        yield server
