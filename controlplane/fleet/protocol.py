"""What the controller asks of whatever runs replicas. Everything else about a replica it hears from its agent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from controlplane.core.models import FleetShape


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplica:
    """A replica that the backend has. `running`: its agent runs or is being started (again); `leaving`: somebody else
    ends it, whether the controller wants it or not. `reason`: why it leaves, or does not come up. `extra`: it is there
    beside as many as were asked for, by a rolling update say, and whoever made it ends one in time."""

    name: str
    fleet: str
    state: Literal["running", "leaving"] = "running"
    reason: str = ""
    extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Something that has happened to a fleet, or to one replica of it where that is named. `code` is in capitals, with
    underscores; `warning`: somebody may have to do something about it."""

    fleet: str
    replica: str = ""
    code: str
    text: str
    warning: bool = False


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

    def past(self) -> Mapping[str, str]:
        """By fleet, what was noted lately and is so no more."""

    def problems(self) -> Mapping[str, str]:
        """What it can't see or write at present, by what that is about, with the reason. They end by themselves."""

    def tell(self, news: News) -> None:
        """Show news where whoever runs the fleets looks, besides the logs. Never waits, never fails."""

    def gateways(self) -> Collection[str] | None:
        """The gateways that there are; None where that is not known: a silent one may be there all the same."""

    async def remove(self, replica: str) -> None:
        """Have it no longer: its agent and its server are ended if they still run, and its folder is deleted. No error
        when it is not there."""
