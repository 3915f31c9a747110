"""What each model asks of its fleet: which versions may be asked for, how important they are, on how many replicas."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from controlplane.core.census import Census
from controlplane.core.models import Model
from controlplane.core.names import Key
from controlplane.core.placement.terms import Rank, Want
from controlplane.core.routing import Serving
from controlplane.core.snapshot import Snapshot

MANY = 1 << 30
HOT_MARGIN = 1.2
"""So many times what its load keeps busy is what a version gets in copies."""


def serving_of(model: Model, census: Census) -> Serving:
    """Which versions of a model may be asked for, and which of them is what."""
    live = {each.number for each in model.versions if each.deleted_at is None}
    stable = model.stable if model.stable in live else None
    rollout = model.running_rollout
    target = rollout.target if rollout is not None and rollout.target in live else None
    warm = None
    last = model.rollout
    moved = last is not None and last.state == "succeeded" and last.source in live and stable is not None
    if last is not None and moved and last.ended_at is not None:
        warm = last.source if census.now - last.ended_at.timestamp() < census.snapshot.settings.warm_s else None
    aliases = frozenset(number for name, number in model.aliases.items() if number in live and number != stable)
    return Serving(model=model.name, stable=stable, target=target, warm=warm, aliased=aliases)


def wants_of(serving: Iterable[Serving], census: Census) -> dict[str, list[Want]]:
    """By fleet, what is wanted there. Versions without a fleet (`census.blocked`) are left out; of quarantined ones no
    copy is asked for, but what serves, serves on."""
    wants: dict[str, list[Want]] = defaultdict(list)
    for each in serving:
        for number in each.allowed():
            key = Key(each.model, number)
            fleet = census.fleet(key)
            want = _want(each, key, fleet, census) if fleet is not None else None
            if fleet is not None and want is not None:
                quarantined = key in census.quarantined.get(fleet, ())
                wants[fleet].append(replace(want, rank=Rank.ALWAYS, minimum=0, maximum=0) if quarantined else want)
    for key, replicas in census.copies.items():
        if census.is_unread(key):
            for fleet in {replica.fleet for replica in replicas}:
                wants[fleet].append(Want(key=key, size_bytes=0, rank=Rank.ALWAYS, minimum=0, maximum=0))
    least = {name: record.shape.min_loaded for name, record in census.snapshot.fleets.items()}
    return {name: _spare(each, least.get(name, 0), census) for name, each in wants.items()}


def _want(serving: Serving, key: Key, fleet: str, census: Census) -> Want | None:
    manifest = census.snapshot.manifest(key)
    if manifest is None:
        return None
    how = manifest.entry.serving
    asked_at = census.snapshot.demand.get(key)
    demanded = asked_at is not None and census.now - asked_at <= census.snapshot.settings.demand_s
    minimum, maximum = how.min_copies, how.max_copies
    if key.version == serving.target:
        rank = Rank.ROLLOUT
        source = Key(key.model, serving.stable) if serving.stable is not None else None
        present = len(census.ready.get(source, ())) if source else 0
        if census.is_bad(key):
            minimum = maximum = 0  # the rollout is about to end
        elif not census.ready.get(key):
            minimum = maximum = 1  # on one replica first: whatever it breaks, it breaks there alone
        else:
            minimum = max(minimum, min(present, maximum or present))
            maximum = maximum if maximum is not None or how.load != "on_demand" else minimum
    elif key.version == serving.stable and how.load == "always":
        rank = Rank.ALWAYS
    elif demanded:
        rank = Rank.DEMAND
    elif key.version == serving.stable and how.load == "auto":
        rank = Rank.AUTO
    else:
        rank = Rank.KEEP
    if rank is Rank.DEMAND and key.version != serving.stable:
        minimum = maximum = 1
    elif how.load == "on_demand" and maximum is None:
        maximum = minimum
    if key.version == serving.stable:
        minimum = max(minimum, min(_busy(key, fleet, census), how.max_copies or MANY))
        maximum = None if maximum is None else max(minimum, maximum)
    load = census.snapshot.loads.get(fleet)
    return Want(
        key=key,
        size_bytes=census.size_bytes(key, fleet),
        rank=rank,
        minimum=minimum,
        maximum=maximum,
        least=how.min_copies,
        requires=census.requires(key),
        last_used_at=census.snapshot.used.get(key, 0.0),
        use=load.use.get(key, 0.0) if load is not None else 0.0,
        reload_s=census.reload_s(key, fleet),
        waits_since=census.snapshot.waiting.get(key, math.inf),
        hot=minimum > max(how.min_copies, 1),
        high=how.priority == "high" and key.version in (serving.stable, serving.target),
        in_use=census.now - _asked_at(key, census) < census.snapshot.fleets[fleet].shape.idle_s,
        idle_s=_idle_s(key, fleet, census) if rank >= Rank.AUTO and key.version != serving.warm else None,
    )


def _idle_s(key: Key, fleet: str, census: Census) -> float | None:
    """After how long without a request it leaves, if nobody has asked for the version for so long, nor promoted it."""
    snapshot = census.snapshot
    manifest = snapshot.manifest(key)
    own = manifest.entry.serving.idle_s if manifest is not None else None
    limit_s = own if own is not None else snapshot.fleets[fleet].shape.model_idle_s
    return limit_s if limit_s is not None and census.now - _asked_at(key, census) >= limit_s else None


def _asked_at(key: Key, census: Census) -> float:
    """When somebody last asked for a version, or had promoted it (seconds since 1970)."""
    rollout, used = census.snapshot.models[key.model].rollout, census.snapshot.used.get(key, 0.0)
    if rollout is not None and rollout.target == key.version and rollout.ended_at is not None:
        return max(used, rollout.ended_at.timestamp())
    return used


def _spare(wants: list[Want], least: int, census: Census) -> list[Want]:
    """Idle ones stay while fewer than `least` versions were loaded without them: of what is loaded the most asked."""
    idle = sorted(
        (each for each in wants if each.idle_s is not None),
        key=lambda each: (each.key not in census.copies, -each.use, -each.last_used_at, each.key),
    )
    loaded = sum(each.idle_s is None and each.key in census.copies for each in wants)
    spared = {each.key for each in idle[: max(least - loaded, 0)]}
    return [replace(each, idle_s=None) if each.key in spared else each for each in wants]


def apart(wants: Iterable[Want], snapshot: Snapshot) -> dict[tuple[Key, Key], str]:
    """Pairs of versions of which one wants to be apart from the other's model, lower first, with the reason."""
    by_model: dict[str, list[Key]] = defaultdict(list)
    for want in wants:
        by_model[want.key.model].append(want.key)
    pairs = {}
    for key in (key for keys in by_model.values() for key in keys):
        manifest = snapshot.manifest(key)
        for name in manifest.entry.serving.apart_from if manifest is not None else ():
            for other in by_model.get(name, ()):
                pairs[min(key, other), max(key, other)] = f"{key.model} is to be apart from {name}"
    return pairs


def _busy(key: Key, fleet: str, census: Census) -> int:
    """How many copies a version's own load needs; no more than there are replicas."""
    load = census.snapshot.loads.get(fleet)
    busy = load.copies.get(key, 0.0) if load is not None else 0.0
    return min(math.ceil(busy * HOT_MARGIN), len(census.by_fleet.get(fleet, ())))
