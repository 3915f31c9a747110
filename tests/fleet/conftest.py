from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.fleet.local import LocalFleet
from controlplane.fleet.protocol import FleetBackend
from controlplane.local import processes
from controlplane.local.home import Home

Make = Callable[[], FleetBackend]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    made.prepare()
    yield made
    processes.sweep(made.root)


@pytest.fixture(params=["local"])
def make(request: pytest.FixtureRequest, home: Home) -> Make:
    """Makes the backend anew, as a controller that starts does; all of them see the same replicas."""
    return {"local": lambda: LocalFleet(home)}[request.param]
