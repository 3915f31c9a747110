"""Real systems, ended after use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.system import System


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two replicas, shared by a module's tests: each uses models of its own."""
    made = System(tmp_path_factory.mktemp("system"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., System]]:
    """Starts a system for one test."""
    made: list[System] = []

    def starter(definition: str, **options: Any) -> System:
        system = System(tmp_path / f"system-{len(made)}", definition, **options)
        made.append(system)
        system.up()
        return system

    yield starter
    for system in made:
        system.down()
