"""What is to be placed, where, and what comes of it: versions, the replicas of one fleet, a placement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from controlplane.core.names import Key, Place, Reason


class Rank(IntEnum):
    """How important a version is. The lower takes room from the higher when it must."""

    ROLLOUT = 0
    ALWAYS = 1
    DEMAND = 2
    AUTO = 3
    KEEP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A version that a fleet shall serve, on `minimum` to `maximum` replicas (None: wherever there is room).

    `requires` are versions that must be on the same replica (an ensemble's steps). AUTO takes only free room, KEEP asks
    for no new copy at all. Of one rank those of `high` priority come first and leave last: for another model's request
    not at all while they are `in_use` (asked for or promoted not long ago), unless that one is of high priority too.
    What is waited for gets room in the order in which that began (`waits_since`). Who makes room is who is asked least
    (`use`) and loaded anew soonest (`reload_s`, in seconds) for the memory that it takes, then who was asked longest
    ago. `hot`: its load needs more copies than its entry asks for (`least`); spare
    copies of others may leave for them. `idle_s`: nobody has asked for it for so long, so it leaves and is not loaded
    before somebody does (None: it is not idle).
    """

    key: Key
    size_bytes: int
    rank: Rank
    minimum: int = 1
    maximum: int | None = None
    least: int = 1
    requires: tuple[Key, ...] = ()
    last_used_at: float = 0.0
    use: float = 0.0
    reload_s: float = 1.0
    waits_since: float = float("inf")
    hot: bool = False
    high: bool = False
    in_use: bool = False
    idle_s: float | None = None

    def why(self, key: Key) -> str:
        """Why a copy of `key`, this version or one that it requires, is placed."""
        if key != self.key:
            return f"{self.key} needs it on the same replica"
        if self.rank is Rank.ROLLOUT:
            return "it is rolled out"
        if self.hot:
            return f"its load keeps {self.minimum} copies busy"
        if self.rank is Rank.DEMAND:
            return "it is asked for"
        return "it is always to be loaded" if self.rank is Rank.ALWAYS else "there is room for it"

    @property
    def worth_s(self) -> float:
        """What a copy is worth: the seconds of loading that its absence costs, as often as it is asked for."""
        return self.use * self.reload_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A replica as placement sees it. `unloading` is what it `held` and was told to unload; until that is gone it takes
    memory. `leaked_bytes` are lost to what was unloaded before. `failed` are versions that could not be loaded there,
    `banned` such as are not to be loaded on this fleet (a copy that serves stays); `open` False: nothing new; `trusted`
    False: nothing new that has room elsewhere; `counts` False: what it holds does not count as a copy."""

    replica: str
    capacity_bytes: int
    leaked_bytes: int = 0
    held: frozenset[Key] = frozenset()
    unloading: frozenset[Key] = frozenset()
    failed: frozenset[Key] = frozenset()
    banned: frozenset[Key] = frozenset()
    open: bool = True
    trusted: bool = True
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What each replica holds (what leaves included, until it has left), what leaves, what found no room, and what is
    `added`, with what it is for."""

    holds: Mapping[str, frozenset[Key]]
    leaving: Mapping[Place, Reason]
    unplaced: Mapping[Key, Reason]
    added: Mapping[Place, Want]

    def why_added(self) -> Iterator[tuple[Key, Reason]]:
        """Why new copies come, of each version together."""
        replicas: dict[Key, list[str]] = defaultdict(list)
        wants: dict[Key, Want] = {}
        for place, want in self.added.items():
            replicas[place.key].append(place.replica)
            wants[place.key] = want
        for key, names in replicas.items():
            yield key, Reason(code="PLACED", text=f"{key} comes to {', '.join(names)}: {wants[key].why(key)}")
