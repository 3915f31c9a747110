from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.local import processes
from controlplane.local.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    made.prepare()
    yield made
    processes.sweep(made.root)
