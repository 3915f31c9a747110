"""What the controller asks of whatever runs replicas. Everything else about a replica it hears from its agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from controlplane.core.models import FleetShape


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplica:
    """A replica that the backend has. `running`: its agent runs or is being started (again); `leaving`: somebody else
    ends it, whether the controller wants it or not; `stopped`: it was told to end and has ended, and waits to be
    removed. `reason`: why it leaves, or does not come up."""

    name: str
    fleet: str
    state: Literal["running", "leaving", "stopped"] = "running"
    reason: str = ""


class FleetBackend(Protocol):
    """Starts and stops replicas. Each call may be repeated: doing it twice is doing it once."""

    async def list(self) -> tuple[FleetReplica, ...]:
        """Every replica there is, by name. Also the occasion to start again what has died. Raises ControlPlaneError or
        OSError when that can't be known at present."""

    async def start(self, shape: FleetShape, replica: str) -> None:
        """Have one more replica of this fleet; returns before it is ready. Until `list` tells the name that it gets,
        which may be another one, it goes by this: asked for again before that, it is the same one. Raises
        ControlPlaneError or OSError."""

    def notes(self) -> Mapping[str, str]:
        """By fleet, what whoever asks why it is as it is should know besides: who else has changed its size."""

    async def remove(self, replica: str) -> None:
        """Have it no longer: its agent and its server are ended if they still run, and its folder is deleted. No error
        when it is not there."""
