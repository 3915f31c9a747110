"""What a plan asks to be done, beside assignments and routes. Each is safe to do twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from controlplane.core.models import Capabilities, Cost, History
from controlplane.core.names import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRollout:
    """Write a rollout's end into the registry; `succeeded` moves `stable`. `fleet`: the target's, if it has one."""

    fleet: str | None
    model: str
    target: int
    rollout: str
    state: Literal["succeeded", "failed"]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineVersion:
    """Keep a version off a fleet: it took a server down."""

    fleet: str
    key: Key
    digest: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFleet:
    """Publish what a fleet's servers can do and what was measured there: by digest the memory that copies take
    (bytes), how long they take to load (seconds) and what executions cost, then how long a start takes, and what was
    needed (None: nothing new)."""

    fleet: str
    capabilities: Capabilities | None
    measured_bytes: Mapping[str, int] = field(default_factory=dict)
    load_s: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    start_s: float | None = None
    history: History | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReplica:
    """Start one more replica."""

    fleet: str
    replica: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveReplica:
    """Remove a replica whose server has ended, or that is not coming back."""

    fleet: str
    replica: str
    reason: str


Action = FinishRollout | QuarantineVersion | RecordFleet | StartReplica | RemoveReplica
