"""What the registry holds of a model (versions, aliases, the rollout, the history) and of a fleet (its record)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from controlplane.core.entry import Entry

STABLE = "stable"
"""The alias that an unversioned request gets. Only a rollout moves it."""

HISTORY_IN_DOCUMENT = 50
"""How many of the latest history entries a model's document carries; all of them are objects of their own."""

RolloutState = Literal["running", "succeeded", "failed", "aborted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """One file of a version: its path inside the version (forward slashes, relative) and its content's address."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An immutable version: its entry and its files. Its own SHA-256 is the version's digest."""

    entry: Entry
    files: tuple[ArtifactFile, ...]

    @property
    def size_bytes(self) -> int:
        """The artifact's size, all files together."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A number in a model's document, and the digest of the manifest that it stands for, for ever."""

    number: int
    digest: str
    created_at: datetime
    actor: str
    labels: Mapping[str, str] = field(default_factory=dict)
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stage of a rollout: the share of unversioned requests that the target gets."""

    weight_percent: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The way of `stable` from `source` (None: it pointed nowhere) to `target`."""

    id: str
    source: int | None
    target: int
    steps: tuple[Step, ...] = (Step(),)
    step: int = 0
    state: RolloutState = "running"
    reason: str = ""
    actor: str
    started_at: datetime
    ended_at: datetime | None = None
    deadline_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryItem:
    """Who changed what, when and why."""

    id: str
    at: datetime
    actor: str
    action: str
    version: int | None = None
    previous: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's document. `previous_stable` is where `ctl rollback` goes."""

    name: str
    versions: tuple[Version, ...] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)
    previous_stable: int | None = None
    rollout: Rollout | None = None
    history: tuple[HistoryItem, ...] = ()

    def version(self, number: int) -> Version | None:
        """The version with this number, also when it is deleted."""
        return next((version for version in self.versions if version.number == number), None)

    @property
    def stable(self) -> int | None:
        """The version that an unversioned request gets."""
        return self.aliases.get(STABLE)

    @property
    def running_rollout(self) -> Rollout | None:
        """The rollout that is under way."""
        return self.rollout if self.rollout is not None and self.rollout.state == "running" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a fleet's servers can do, as probed on one of them."""

    server_version: str
    backends: tuple[str, ...]
    gpus: int = 0
    response_cache: bool = False
    python_packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A version that took a server of this fleet down. It is not loaded there again until somebody lifts it."""

    model: str
    version: int
    digest: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetShape:
    """What the deployment says of a fleet: its name, size, and what one replica has for models.

    `load_timeout_s` is the longest that one load may take, warm-up included.
    """

    name: str
    replicas: int = 1
    memory_bytes: int = 4 << 30
    disk_bytes: int = 20 << 30
    gpus: int = 0
    load_timeout_s: float = 300.0
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRecord:
    """A fleet as the registry knows it. `measured_bytes` is by version digest: the memory one loaded copy took."""

    shape: FleetShape
    capabilities: Capabilities | None = None
    quarantines: tuple[Quarantine, ...] = ()
    measured_bytes: Mapping[str, int] = field(default_factory=dict)
