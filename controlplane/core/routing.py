"""Builds the route table: which versions may be asked for, and which replicas answer for each."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane.core.entry import Priority
from controlplane.core.fleets import is_new
from controlplane.core.members import quick, trusted
from controlplane.core.names import Key, Place, Reason
from controlplane.core.routes import Endpoint, Pace, Route, RouteTable, Target
from controlplane.core.snapshot import Snapshot

HOPELESS = frozenset({"QUARANTINED", "TOO_LARGE"})
"""Reasons for which a version is served nowhere that no time and no further replica changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A model's versions by role. `weight_percent` of unversioned requests go to the rollout's target."""

    model: str
    stable: int | None = None
    target: int | None = None
    warm: int | None = None
    aliased: frozenset[int] = frozenset()
    weight_percent: int = 0

    def allowed(self) -> tuple[int, ...]:
        """Every version that may be asked for by its number."""
        named = {number for number in (self.stable, self.target, self.warm) if number is not None}
        return tuple(sorted(named | self.aliased))


def build_table(
    snapshot: Snapshot,
    now: float,
    *,
    serving: Mapping[str, Serving],
    ready: Mapping[Key, Sequence[str]],
    holds: Mapping[str, Collection[Key]],
    going: Collection[Place],
    draining: Collection[str],
    gone: Collection[str],
    lost: Collection[str],
    distrusted: Collection[str],
    slow: Mapping[str, float],
    reasons: Mapping[Key, Reason],
) -> RouteTable:
    """The table without epoch and generation.

    Only what is in a replica's assignment (`holds`) is led there: a copy whose end is ordered may still be reported.
    `going` places get no requests any more, `draining` replicas are marked, `gone` ones left out. Lost replicas are
    left out too, except where nobody else has the version: then silence is no proof that they are gone. So are those
    that are `distrusted`, except where nobody else could take a new request: serving badly beats not serving. Of the
    `slow` ones (how many times as long they take) some are left out of each version (`members.quick`), but for
    versions with sequences: these are not compared, and where a sequence goes is found by who is there. A version of
    which more is asked than can be done has a pool of its own, so that it takes no place from others.
    """
    pools: dict[str, tuple[str, ...]] = {}
    ids: dict[tuple[Key | None, tuple[str, ...]], str] = {}
    paces = _paces(snapshot, now)
    crowded: dict[str, Pace] = {}

    def pool_of(key: Key) -> str | None:
        here = [
            name
            for name in ready.get(key, ())
            if name not in gone and key in holds.get(name, ()) and Place(key, name) not in going
        ]
        members = tuple(name for name in here if name not in lost) or tuple(here)
        if distrusted:
            members = trusted(members, distrusted, draining)
        if slow and not slow.keys().isdisjoint(members) and not _has_sequences(snapshot, key):
            members = quick(members, slow, draining)
        if not members or all(name in draining for name in members):
            # Nobody who may take a new request. Those who drain still end theirs: they stay endpoints.
            return None
        pace = paces.get(key)
        own = (key if pace is not None else None, members)
        if own not in ids:
            alone = (str(key), "") if pace is not None else ()
            ids[own] = "p" + hashlib.sha256("\n".join((*alone, *members)).encode()).hexdigest()[:12]
            pools[ids[own]] = members
            if pace is not None:
                crowded[ids[own]] = pace
        return ids[own]

    routes: dict[str, Route] = {}
    for name in sorted(serving):
        each = serving[name]
        allowed = each.allowed()
        if not allowed:
            continue
        pinned = {number: pool_of(Key(name, number)) for number in allowed}
        if each.warm is not None and pinned[each.warm] is None and each.warm not in each.aliased:
            del pinned[each.warm]  # only what is kept warm may still be asked for; it is not loaded again for that
        why = {
            number: reasons[Key(name, number)]
            for number, pool in pinned.items()
            if pool is None and Key(name, number) in reasons
        }
        routes[name] = Route(
            model=name,
            targets=_targets(each, pinned),
            pinned=pinned,
            sequence_idle_s=_sequence_idle_s(snapshot, name, allowed),
            priority=_priority(snapshot, each, allowed),
            reasons={number: reason.text for number, reason in why.items()},
            refused=tuple(number for number, reason in sorted(why.items()) if reason.code in HOPELESS) if why else (),
        )
    for name in sorted(snapshot.unread):
        route = _as_before(name, snapshot)
        if route is not None:
            routes[name] = replace(
                route,
                targets=tuple(replace(each, pool=pool_of(Key(name, each.version))) for each in route.targets),
                pinned={number: pool_of(Key(name, number)) for number in route.pinned},
            )
    endpoints: dict[str, Endpoint] = {}
    for name in sorted(snapshot.replicas):
        endpoint = snapshot.replicas[name].endpoint
        if endpoint is not None and name not in gone:
            endpoints[name] = replace(endpoint, draining=name in draining)
    asleep = all(name in gone or is_new(each) for name, each in snapshot.replicas.items())
    return RouteTable(endpoints=endpoints, pools=pools, crowded=crowded, routes=routes, asleep=asleep)


def _paces(snapshot: Snapshot, now: float) -> Mapping[Key, Pace]:
    """What the copies do of each version of which more is asked than that. After a controller's start, while not all of
    a fleet has been measured, what the gateways go by stays."""
    known = {name: load.crowded for name, load in snapshot.loads.items() if load.crowded is not None}
    paces: dict[Key, Pace] = {}
    if not known.keys() >= snapshot.fleets.keys():
        live = (each for each in snapshot.gateways.values() if now - each.heard_at <= snapshot.settings.gateway_live_s)
        for table in (table for gateway in live for table in gateway.tables() if table.crowded):
            for route in table.routes.values():
                for number, pool in route.pinned.items():
                    pace = table.crowded.get(pool or "")
                    if pace is not None and not known.keys() >= _fleets(table.pools[pool or ""], snapshot):
                        paces[Key(route.model, number)] = pace
    return paces | {key: pace for crowded in known.values() for key, pace in crowded.items()}


def _fleets(replicas: Collection[str], snapshot: Snapshot) -> set[str]:
    return {snapshot.replicas[name].fleet for name in replicas if name in snapshot.replicas}


def _has_sequences(snapshot: Snapshot, key: Key) -> bool:
    manifest = snapshot.manifest(key)
    return manifest is None or manifest.entry.sequence_batching is not None


def _as_before(model: str, snapshot: Snapshot) -> Route | None:
    """How the gateways lead requests for a model whose document can't be read."""
    for gateway in snapshot.gateways.values():
        for table in gateway.tables():
            if model in table.routes:
                return table.routes[model]
    return None


def _targets(serving: Serving, pinned: Mapping[int, str | None]) -> tuple[Target, ...]:
    shares: list[tuple[int, int]] = []
    if serving.target is not None and serving.weight_percent and pinned.get(serving.target) is not None:
        shares.append((serving.target, serving.weight_percent))
    rest = 100 - sum(weight for _, weight in shares)
    if serving.stable is not None and rest:
        shares.insert(0, (serving.stable, rest))
    return tuple(Target(version=number, pool=pinned[number], weight_percent=weight) for number, weight in shares)


def _sequence_idle_s(snapshot: Snapshot, model: str, allowed: Sequence[int]) -> float | None:
    """The idle time-out of the model's sequences, if any of its versions has sequence batching."""
    for number in allowed:
        manifest = snapshot.manifest(Key(model, number))
        if manifest is not None and manifest.entry.sequence_batching is not None:
            return manifest.entry.sequence_batching.max_sequence_idle_us / 1e6
    return None


def _priority(snapshot: Snapshot, serving: Serving, allowed: Sequence[int]) -> Priority:
    """The model's priority: the stable version says it; where none is stable, the rollout's target, then the newest."""
    roles = (serving.stable, serving.target, *reversed(allowed))
    for number in (number for number in roles if number is not None):
        manifest = snapshot.manifest(Key(serving.model, number))
        if manifest is not None:
            return manifest.entry.serving.priority
    return "normal"


def leads(table: RouteTable, place: Place) -> bool:
    """Whether a table can lead a request for this version to this replica."""
    key, replica = place
    route = table.routes.get(key.model)
    if route is None:
        return False
    pools = [target.pool for target in route.targets if target.version == key.version]
    pools.append(route.pinned.get(key.version))
    return any(pool is not None and replica in table.pools.get(pool, ()) for pool in pools)
