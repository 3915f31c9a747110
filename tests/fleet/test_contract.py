"""The contract of fleet backends, with replicas as processes of this machine."""

from __future__ import annotations

import pytest

from controlplane.fleet.local import LocalFleet
from controlplane.fleet.protocol import FleetBackend
from controlplane.local.home import Home
from tests.fleet.contract import *  # noqa: F403 - its tests


class _Local:
    def __init__(self, home: Home) -> None:
        self._home = home

    async def __call__(self) -> LocalFleet:
        return LocalFleet(self._home)

    async def settled(self, backend: FleetBackend) -> None:
        """What is asked for is there at once."""


@pytest.fixture
def make(home: Home) -> _Local:
    return _Local(home)
