"""What is measured of a fleet's load, and what its autoscaler remembers: both part of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controlplane.core.models import Cost, History
from controlplane.core.names import Key, Reason
from controlplane.core.routes import Pace

Features = tuple[float, float, float]
"""A moment: the logarithms of the mean demand over three spans before it (and one, so that none is 0)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What was known `at` a time (seconds since 1970), what capacity the time after it needed, and how much work that
    time held (its weight)."""

    features: Features
    need: float
    weight: float
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A fleet's load.

    `at`: when it was measured (seconds since 1970), each `step_s`. `demand`: how many replicas what arrives keeps busy,
    when each does as much as it can within the goal, which is `at_once` requests at the same time; `backlog_s`: for how
    long one replica would be busy with what waits. `rate_per_s` requests arrive and `waiting` wait, of all models
    together, also of those whose cost is not known yet. `held`: requests that wait at gateways for a model that is
    loaded nowhere. `met`: the share of the requests `answered` since the load before that met the goal (None: there
    were none). `complete` False: a replica that serves has not told lately; `blind_s`: for how long that was so in all
    so far, or nothing was measured. `start_s`: how long a replica takes from its start to its first answer (`started`:
    a start was seen). `slack_s`: how long a request may wait. `moments` and `features`: the past and the present (see
    `analogs`); `steady`: how many replicas would have been enough for all of the last hours (None: they are too few to
    tell); `sequel`: the newest moment whose sequel is known; `seasons`: what was needed at this time of other days, by
    the season's name; `history`: what was needed so far, for the fleet's record. `costs` of executions are by version
    digest. By version: `copies`, how many its own load has lately kept busy at most, and `use`, how often it is asked
    (see `popularity`). `crowded`: the versions of which more is asked than their copies can do, and what that is (None:
    not all is known yet). `slow`: replicas that have computed slower than the others for a while, and how many times as
    long they take.
    """

    at: float
    step_s: float
    demand: float = 0.0
    at_once: float = 1.0
    backlog_s: float = 0.0
    rate_per_s: float = 0.0
    waiting: float = 0.0
    held: int = 0
    answered: float = 0.0
    met: float | None = None
    complete: bool = True
    blind_s: float = 0.0
    start_s: float = 10.0
    started: bool = False
    slack_s: float = 0.1
    moments: Sequence[Moment] = ()
    features: Features = (0.0, 0.0, 0.0)
    steady: float | None = None
    sequel: Moment | None = None
    seasons: Mapping[str, float] = field(default_factory=dict)
    history: History | None = None
    costs: Mapping[str, Cost] = field(default_factory=dict)
    copies: Mapping[Key, float] = field(default_factory=dict)
    use: Mapping[Key, float] = field(default_factory=dict)
    crowded: Mapping[Key, Pace] | None = field(default_factory=dict)
    slow: Mapping[str, float] = field(default_factory=dict)

    @property
    def asked(self) -> bool:
        """Whether anything is asked of the fleet."""
        return bool(self.demand or self.backlog_s or self.rate_per_s or self.waiting or self.held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What forecasts `said` at a time (seconds since 1970), in replicas, and what was needed after it, with the work of
    that time as its weight."""

    at: float
    need: float
    weight: float
    said: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Believed:
    """A forecast, and by how many replicas it is moved."""

    name: str
    moved: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Which forecast is believed, as compared at `compared_at`: the `usual` one (None: nothing was judged yet), or a
    `season` where it was better. `handed_down`: the usual one is, or was at first, what another controller has found.
    They were `judged`, and seasons by what is noted seldom and kept for longer, `of_days`. `open`: what each said at
    moments whose sequel is not known yet. Times are in seconds since 1970."""

    usual: Believed | None = None
    handed_down: bool = False
    season: Believed | None = None
    compared_at: float = 0.0
    judged: tuple[Judged, ...] = ()
    of_days: tuple[Judged, ...] = ()
    open: tuple[tuple[float, Mapping[str, float]], ...] = ()

    @property
    def believed(self) -> Believed | None:
        """The one that counts where it says anything. None: to foresee nothing."""
        return self.season or self.usual


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many `replicas` have a place for what must have one, as found for `needs` (version, bytes, copies) at a time
    (seconds since 1970).

    `cramped`: what of it found none in the plan before, on all replicas that there were to be. `kept`: what the fleet
    has grown for and was asked for of late.
    """

    replicas: int = 0
    needs: tuple[tuple[Key, int, int], ...] = ()
    found_at: float = 0.0
    cramped: frozenset[Key] = frozenset()
    kept: frozenset[Key] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejection:
    """A slow replica, which takes `ratio` times as long as the others, gets no requests `until` a time (seconds since
    1970); it is the so manieth of `times` in which it was slow when it was tried."""

    until: float
    times: int
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaler:
    """What a fleet's autoscaler knows from before: part of a plan, and of the next snapshot.

    `began`: when it first saw a load of everybody; `at`: which one it saw last, and `need` what it made of it, in
    replicas, from `likely`, what the past lets expect, as the forecast `said_by` says. `miss`: the share of the work
    that may be late, as corrected at `adjusted_at` by how many of the requests `answered` were `late` (both fade).
    `contest`: which forecast is believed. `capped`: `likely` is the steady number that was enough so far, which is less
    than what the forecast says; so many requests were late while that was so: `capped_late` (it fades, too).
    `wants`: how many replicas were wanted when, as far back as fewer must be enough before there are fewer.
    `idle_since`: since when nothing has been asked. `replacing`: the replica that is to leave when a new one serves,
    and why; `replaced_at`: when the last such one was chosen. `room`: how many must have a place for their versions.
    `ejections` of its replicas, those of late that are over among them.
    The time in which not everybody was measured, `blind_s` in all so far, is left out of `began`, `wants` and
    `idle_since`, as if it had not passed.
    """

    began: float | None = None
    at: float = 0.0
    blind_s: float = 0.0
    need: float = 0.0
    likely: float = 0.0
    said_by: str = ""
    contest: Contest = Contest()
    answered: float = 0.0
    late: float = 0.0
    capped: bool = False
    capped_late: float = 0.0
    miss: float | None = None
    adjusted_at: float = 0.0
    wants: tuple[tuple[float, int], ...] = ()
    idle_since: float | None = None
    replacing: tuple[str, Reason] | None = None
    replaced_at: float = 0.0
    room: Room = Room()
    ejections: Mapping[str, Ejection] = field(default_factory=dict)

    def shifted(self, by: Callable[[float], float]) -> Scaler:
        """The same after the clock was set: `by` says what a time is now."""
        contest = replace(
            self.contest,
            compared_at=by(self.contest.compared_at),
            judged=tuple(replace(each, at=by(each.at)) for each in self.contest.judged),
            of_days=tuple(replace(each, at=by(each.at)) for each in self.contest.of_days),
            open=tuple((by(at), said) for at, said in self.contest.open),
        )
        return replace(
            self,
            began=None if self.began is None else by(self.began),
            at=by(self.at),
            contest=contest,
            adjusted_at=by(self.adjusted_at),
            wants=tuple((by(at), count) for at, count in self.wants),
            idle_since=None if self.idle_since is None else by(self.idle_since),
            replaced_at=by(self.replaced_at),
            room=replace(self.room, found_at=by(self.room.found_at)),
            ejections={name: replace(each, until=by(each.until)) for name, each in self.ejections.items()},
        )
