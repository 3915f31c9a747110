"""What plans ask for is done, whatever goes wrong once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import psutil
import pytest

from controlplane.core.actions import StartReplica
from controlplane.core.errors import Unavailable
from controlplane.core.models import FleetShape
from controlplane.core.snapshot import Settings
from controlplane.server.acting import Actor
from controlplane.server.memory import Memory


class Failing:
    """A backend that can start nothing."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.started = 0

    async def start(self, shape: FleetShape, replica: str) -> None:
        self.started += 1
        raise self.error


@pytest.mark.parametrize("error", [Unavailable("no room"), OSError("no room"), psutil.AccessDenied(1), ValueError("?")])
async def test_an_action_that_fails_is_told_and_not_tried_again_at_once(error: Exception) -> None:
    memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
    backend, absent = Failing(error), cast("Any", None)
    actor = Actor(absent, cast("Any", backend), memory, absent, done=lambda: None)
    for _ in range(20):
        actor.act([StartReplica(fleet="cpu", replica="cpu-0", reason="it is needed")])
        await asyncio.sleep(0)
    assert backend.started == 1
    assert not memory.starts, "what has not begun tells nothing of how long a start takes"
    (reason,) = actor.failures()["fleet cpu"]
    assert "starting one more replica fails" in reason.text
    await actor.close()
