"""From what was read of a fleet's servers to its load: what arrives and waits, in replicas and seconds of work."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.core.entry import Entry
from controlplane.core.load import Load
from controlplane.core.models import Cost, FleetRecord, Manifest
from controlplane.core.names import Key
from controlplane.core.placement.popularity import Popularity
from controlplane.core.routes import Pace
from controlplane.core.scaling.analogs import Past
from controlplane.core.scaling.capacity import MOST_USED, all_it_can, at_once, fit, full_batch, instances_of, per_s
from controlplane.core.scaling.seasons import Seasons
from controlplane.metrics.batches import BatchMeter
from controlplane.metrics.counters import Counters
from controlplane.metrics.crowding import Crowding
from controlplane.metrics.readings import Interval
from controlplane.metrics.signals import busy_s
from controlplane.metrics.slowness import Slowness

START_S = 10.0
"""How long a start is taken to last while none was seen."""
STARTS_KEPT = 5
PEAK_FADES = 0.98
"""What is left of a version's highest demand after a step without any: half of it after a minute or so."""
A_LITTLE = 0.01
FRESH = 2
"""What a server told says something of now for so many times as long as it takes to be told anew."""
ENOUGH, ENOUGH_S = 20.0, 10.0
"""So many executions tell what one costs, or so many seconds of them: the first after a load are slow."""
FORGET = 0.95
"""What is kept of the past at each step of how many items a request brings."""
UNKNOWN = Pace(per_s=0.0, at_once=1)
A_FEW = 4.0
"""What fewer requests than these, since the reading before, would tell can wait: what is asked seldom needs little."""


@dataclass(slots=True)
class LoadMeter:
    """One fleet's load, measured every `step_s`."""

    step_s: float
    batches: BatchMeter = field(default_factory=BatchMeter)
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=STARTS_KEPT))
    """How long the last starts took, in seconds."""
    load: Load | None = None
    known: frozenset[Key] = frozenset()
    """The versions whose executions' cost was known at the last measurement."""
    seasons: Seasons = field(default_factory=Seasons)
    _past: Past | None = None
    _has_learned: bool = False
    """Whether it knows what a controller before this one has written down."""
    _popularity: Popularity = field(default_factory=Popularity)
    _copies: dict[Key, float] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)
    _slowness: Slowness = field(default_factory=Slowness)
    _crowding: Crowding = field(default_factory=Crowding)
    _blind_s: float = 0.0
    """For how long it was not known what all of them do."""
    _has_seen_all: bool = False
    """Whether all that serve were measured once."""
    _brought: dict[Key, tuple[float, float]] = field(default_factory=dict)
    """Items, and the requests that brought them; the past counts ever less."""

    def costs(self, record: FleetRecord, manifests: Mapping[Key, tuple[str, Manifest]]) -> dict[Key, Cost]:
        """What executions cost, as measured, or as the fleet's record remembers. Too few tell nothing."""
        found: dict[Key, Cost] = {}
        for key, (digest, _) in manifests.items():
            measured = fit(self.batches.totals.get(key, {}).values())
            if measured is not None and _is_enough(measured):
                found[key] = measured
            elif digest in record.costs:
                found[key] = record.costs[digest]
        return found

    def items(self, key: Key) -> float:
        """How many items a request brings, in the mean. Triton's batches and their costs are of items."""
        items, requests = self._brought.get(key, (0.0, 0.0))
        return max(items / requests, 1.0) if requests else 1.0

    def is_curious(self, intervals: Iterable[Interval]) -> bool:
        """Whether so much was asked of something whose cost is not known yet that batch statistics would soon tell, or
        failed, which may take another time."""
        return any(
            _would_tell(each.counted(key), known=key in self.known)
            for each in intervals
            for key in (each.after if each.window_s > 0 else ())
        )

    def start_s(self, record: FleetRecord) -> float:
        """How long a replica takes from its start to its first answer."""
        return statistics.median(self.starts) if self.starts else record.start_s or START_S

    def measure(
        self,
        record: FleetRecord,
        intervals: Mapping[str, Interval],
        *,
        manifests: Mapping[Key, tuple[str, Manifest]],
        serving: frozenset[str],
        held: Mapping[Key, int],
        now: float,
        refused: Mapping[Key, float] | None = None,
        down: bool = False,
    ) -> Load:
        """Take in the latest intervals of the fleet's servers.

        `manifests` (with their digests) are those of the versions that are loaded or waited for; `serving` replicas
        should have been read (`down`: some that have served can't be, just now); `held` requests wait at gateways,
        which have `refused` so many a second of late. A server that is read seldom (`every_s`) is taken to go on as it
        was until then. Where none has told anything new, the load stays what it was, and grows old.
        """
        served = {name: each for name, each in intervals.items() if name in serving and each.window_s > 0}
        news = {name: each for name, each in served.items() if each.at > self._seen.get(name, 0.0)}
        fresh = {name: each for name, each in served.items() if now - each.at <= FRESH * self._every_s(each)}
        told = fresh | news
        self._seen = {name: each.at for name, each in intervals.items()}
        if (serving or down) and not told and self.load is not None:
            return self.load
        costs, goal = self.costs(record, manifests), record.shape.goal

        def copy_of(key: Key) -> tuple[Entry, int]:
            entry = manifests[key][1].entry
            return entry, instances_of(entry, record.capabilities)

        def usual(key: Key) -> Pace:
            return self._usual(costs.get(key), *copy_of(key), key) if key in manifests else UNKNOWN

        arrived: dict[Key, float] = defaultdict(float)
        asked: dict[Key, float] = defaultdict(float)
        waiting: dict[Key, float] = defaultdict(float, held)
        copies = Counter(key for name in serving if name in intervals for key in intervals[name].after)
        computed: dict[Key, float] = defaultdict(float)
        in_flight = answered = met = 0.0
        for name, interval in told.items():
            for key in interval.after:
                counted = interval.counted(key)
                came = _came(counted, usual(key).per_s * interval.window_s if counted.failures else 0.0)
                arrived[key] += came / interval.window_s
                waiting[key] += interval.after[key].pending
                in_flight += counted.request_us / interval.window_s / 1e6
                if key not in costs:
                    computed[key] += (busy_s(counted, None) or 0.0) / interval.window_s
                if name in news:
                    asked[key] += came
                    answered += counted.success
                    met += counted.success if _is_met(counted, record) else 0.0
                    self._take_items(key, counted)
        _add_refused(arrived, refused or {})
        known = [key for key in {*arrived, *waiting} if key in costs]
        self.known = frozenset(costs)
        each = {
            key: arrived[key]
            / per_s(costs[key], goal, *copy_of(key), copies=max(copies[key], 1), items=self.items(key))
            for key in known
            if arrived[key]
        }
        # Of what is asked so seldom that its cost is not known, many together are a load: what they kept busy just now.
        each |= {key: busy / copy_of(key)[1] / MOST_USED for key, busy in computed.items() if busy and key in manifests}
        demand = sum(each.values()) if goal.in_flight is None else in_flight / goal.in_flight
        together = {
            key: max(at_once(arrived[key] / count, costs[key], *copy_of(key), items=self.items(key)), 1.0)
            for key, count in each.items()
            if key in costs
        }
        backlog_s = sum(
            waiting[key] / all_it_can(costs[key], *copy_of(key), items=self.items(key)) for key in known if waiting[key]
        )
        start_s = self.start_s(record)
        slack_s = (goal.queue_ms or goal.latency_ms or 0.0) / 1e3
        if record.history is not None and not self._has_learned:
            self.seasons.learn(record.history)
            self._has_learned = True
        # Those who have told before and are silent now have not nothing to do, but about as much as the others.
        silent = (served.keys() & serving) - fresh.keys()
        remembered = demand * (1 + len(silent) / len(fresh)) if fresh else demand
        past = self._remember(remembered, start_s, slack_s, goal.share, now)
        self._remember_models(each, asked, manifests)
        self._compare(manifests, now)
        if (serving or down) and not news and self.load is not None:
            return self.load
        complete = serving <= fresh.keys() and not down
        self.load = Load(
            at=now,
            step_s=max(map(self._every_s, told.values()), default=self.step_s),
            demand=demand,
            at_once=_mean(together, each) if goal.in_flight is None else goal.in_flight,
            backlog_s=backlog_s,
            rate_per_s=sum(arrived.values()),
            waiting=sum(waiting.values()),
            held=sum(held.values()),
            answered=answered,
            met=met / answered if answered and goal.in_flight is None else None,
            complete=complete,
            blind_s=self._unseen_s(news.values(), now, complete=complete),
            start_s=start_s,
            started=bool(self.starts),
            slack_s=slack_s,
            moments=tuple(past.moments),
            features=past.features(),
            steady=past.steady(),
            sequel=past.moments[-1] if past.moments else None,
            seasons=self.seasons.likely(now, start_s),
            history=self.seasons.history(),
            costs={manifests[key][0]: cost for key, cost in costs.items()},
            copies=dict(self._copies),
            use=self._popularity.counts(),
            crowded=self._crowded(told.values(), usual, now, complete=bool(fresh) and serving <= fresh.keys()),
            slow=self._slowness.slow(now),
        )
        return self.load

    def _unseen_s(self, news: Iterable[Interval], now: float, *, complete: bool) -> float:
        """For how long so far nobody was measured: of the time since the last load, what the news do not tell of; all
        of it, unless everybody has told by now."""
        passed_s = max(now - self.load.at, 0.0) if self.load is not None else 0.0
        seen_s = max((each.window_s for each in news), default=math.inf) + self.step_s  # they are a step late at most
        self._blind_s += max(passed_s - seen_s, 0.0) if complete else passed_s
        return self._blind_s

    def _take_items(self, key: Key, counted: Counters) -> None:
        executed = counted.success - counted.cache_hits
        if executed > 0 and counted.inferences > 0:
            items, requests = self._brought.get(key, (0.0, 0.0))
            self._brought[key] = items * FORGET + counted.inferences, requests * FORGET + executed

    def _crowded(
        self, told: Iterable[Interval], usual: Callable[[Key], Pace], now: float, *, complete: bool
    ) -> Mapping[Key, Pace] | None:
        crowded = self._crowding.take(told, usual, now)
        self._has_seen_all = self._has_seen_all or complete
        return crowded if self._has_seen_all else None

    def _usual(self, cost: Cost | None, entry: Entry, instances: int, key: Key) -> Pace:
        """What a copy can do, given what its executions have cost (0: that is not known)."""
        items = self.items(key)
        return Pace(
            per_s=all_it_can(cost, entry, instances, items=items) if cost is not None else 0.0,
            at_once=math.ceil(instances * max(full_batch(entry) / items, 1.0)),
        )

    def _every_s(self, interval: Interval) -> float:
        """How often a server is read."""
        return max(self.step_s, interval.every_s)

    def _remember_models(
        self, demand: Mapping[Key, float], asked: Mapping[Key, float], manifests: Mapping[Key, tuple[str, Manifest]]
    ) -> None:
        """What each version's load keeps busy, as the most of late, and how often each is asked."""
        self._popularity.add(asked, loaded=len(manifests))
        faded = {key: most * PEAK_FADES for key, most in self._copies.items()}
        most = {key: max(faded.get(key, 0.0), demand.get(key, 0.0)) for key in {*faded, *demand}}
        self._copies = {key: count for key, count in most.items() if count > A_LITTLE}
        self._brought = {key: each for key, each in self._brought.items() if key in manifests}

    def _compare(self, manifests: Mapping[Key, tuple[str, Manifest]], now: float) -> None:
        """Find the replicas that are slower than others. A sequence stays where it began, so its model's executions
        may differ between replicas for other reasons."""
        alike = {key for key, (_, each) in manifests.items() if each.entry.sequence_batching is None}
        self._slowness.take(self.batches.executed(), alike, now)

    def _remember(self, demand: float, start_s: float, slack_s: float, share: float, now: float) -> Past:
        if self._past is None:
            self._past = Past(step_s=self.step_s, horizon_s=start_s, slack_s=slack_s, share=share)
        elif abs(start_s - self._past.horizon_s) > self.step_s or (slack_s, share) != (
            self._past.slack_s,
            self._past.share,
        ):
            self._past.reset(start_s, slack_s, share)
        moment = self._past.add(demand, now)
        if moment is not None:
            self.seasons.add(moment.at, moment.need)
        return self._past


def _came(counted: Counters, most: float) -> float:
    """How many requests arrived: those that were answered, with an error too, and by how many more wait now. What fails
    may fail quickly, so it counts for no more than the `most` that a copy can do (0: not known). What was given up in
    the queue counts at most as much again: whoever does not wait for long may ask again at once."""
    failures = min(counted.failures, max(most - counted.success, 0.0)) if most else counted.failures
    came = max(counted.success + failures + counted.pending, 0.0)
    return came + min(counted.not_run, came)


def _add_refused(arrived: dict[Key, float], refused: Mapping[Key, float]) -> None:
    """Count what gateways refused among what arrives; at most as much again, for who is refused may ask again at once,
    and counts each time."""
    for key, refused_per_s in refused.items():
        if key in arrived:
            arrived[key] += min(refused_per_s, arrived[key])


def _would_tell(counted: Counters, *, known: bool) -> bool:
    """Whether batch statistics would tell of these executions what is not `known`."""
    return counted.failures >= max(A_FEW, counted.success) if known else counted.ended >= A_FEW


def _is_enough(cost: Cost) -> bool:
    return cost.executions >= ENOUGH or cost.executions * cost.of(1) >= ENOUGH_S


def _mean(at_once: Mapping[Key, float], demand: Mapping[Key, float]) -> float:
    """How many requests a replica executes at the same time: one number for all versions, with which the demand spreads
    as theirs do together."""
    spreads = sum(demand[key] / count for key, count in at_once.items())
    return sum(demand.values()) / spreads if spreads else 1.0


def _is_met(counted: Counters, record: FleetRecord) -> bool:
    """Whether requests met the goal in the mean: Triton tells no more of them."""
    goal = record.shape.goal
    if not counted.success:
        return True
    if goal.queue_ms is not None:
        return counted.queue_us / counted.success / 1e3 <= goal.queue_ms
    return goal.latency_ms is None or counted.request_us / counted.success / 1e3 <= goal.latency_ms
