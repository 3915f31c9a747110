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
        for version in self.versions:  # asked a million times a minute: no generator
            if version.number == number:
                return version
        return None

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
class Goal:
    """What a fleet is scaled for: `share` of the requests wait in Triton's queue no longer than `queue_ms`, or are
    answered within `latency_ms`; or a replica has no more than `in_flight` requests. One of the three is given."""

    queue_ms: float | None = None
    latency_ms: float | None = None
    in_flight: float | None = None
    share: float = 0.99

    def __str__(self) -> str:
        if self.in_flight is not None:
            return f"{self.in_flight:g} requests in flight a replica"
        if self.latency_ms is not None:
            return f"{self.share:.3%} of the requests within {self.latency_ms:g} ms".replace(".000", "")
        return f"{self.share:.3%} of the requests no longer than {self.queue_ms:g} ms in the queue".replace(".000", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of the week in which other limits hold. `days`: 0 is Monday; minutes are those of the day. It goes over
    midnight where it ends before it begins."""

    days: tuple[int, ...]
    begins_min: int
    ends_min: int
    timezone: str = "UTC"
    min_replicas: int | None = None
    max_replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetShape:
    """What the deployment says of a fleet: its name, between which sizes it moves, and what one replica has for models.

    `load_timeout_s` is the longest that one load may take, warm-up included. `goal` says what it is scaled for,
    `schedule` when other limits hold. Fewer replicas must have been enough for `down_after_s` before there are fewer
    (None: twice as long as a start takes, 15 s at least); nothing must have been asked for `idle_s` before there are
    none. Models that nobody has asked for `model_idle_s` are unloaded (None: never for that alone); `min_loaded` of all
    stay.
    """

    name: str
    min_replicas: int = 1
    max_replicas: int = 1
    goal: Goal = Goal(queue_ms=100.0)
    schedule: tuple[Window, ...] = ()
    down_after_s: float | None = None
    idle_s: float = 300.0
    model_idle_s: float | None = None
    min_loaded: int = 0
    memory_bytes: int = 4 << 30
    disk_bytes: int = 20 << 30
    gpus: int = 0
    load_timeout_s: float = 300.0
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualScale:
    """A size that somebody has set by hand. It holds before all else, `until` then (None: until it is lifted)."""

    replicas: int
    actor: str
    at: datetime
    until: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an execution takes of an instance: ``fixed_s + size · each_s`` seconds. `executions` were measured."""

    fixed_s: float
    each_s: float
    executions: float = 0.0

    def of(self, size: float) -> float:
        """Seconds for a batch of this size."""
        return self.fixed_s + self.each_s * size


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a fleet needed: the most replicas in each slot of five minutes (counted since 1970), from the slot `first`
    on, None where that is not known, a week at most. `believed`: which forecast has served best, `moved` by how many
    replicas (empty: nobody knows).
    """

    first: int
    most: tuple[float | None, ...]
    believed: str = ""
    moved: float = 0.0

    @property
    def last(self) -> int:
        """The last slot of which something is known."""
        return self.first + len(self.most) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRecord:
    """A fleet as the registry knows it.

    By version digest: `measured_bytes`, the memory that one loaded copy took, `load_s`, how long its load took, and
    `costs`, what executions take.
    `start_s`: from a replica's start to its first ready model, without what it waited for something to load. `history`:
    what its load needed, for forecasts.
    """

    shape: FleetShape
    capabilities: Capabilities | None = None
    quarantines: tuple[Quarantine, ...] = ()
    measured_bytes: Mapping[str, int] = field(default_factory=dict)
    load_s: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    start_s: float | None = None
    history: History | None = None
    manual: ManualScale | None = None
