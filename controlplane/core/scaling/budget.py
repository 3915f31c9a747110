"""What all fleets share: so many replicas, so many GPUs. What one must have comes before what another would like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from controlplane.core.scaling.decision import is_fresh
from controlplane.core.scaling.limits import Limits, limits_of
from controlplane.core.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a fleet has and must have: replicas that are `present` (those that leave among them), the `least` that its
    limits allow, and the `gpus` of each. `spare`: so many of the present could go for what others must have."""

    present: int = 0
    least: int = 0
    gpus: int = 0
    spare: int = 0

    @property
    def missing(self) -> int:
        """How many it must have and has not."""
        return max(self.least - self.present, 0)

    def each(self, of: str) -> int:
        """What one replica takes of a thing."""
        return 1 if of == REPLICAS else self.gpus


REPLICAS, GPUS = "replicas", "GPUs"
MANY = 1 << 30


@dataclass(slots=True)
class Budget:
    """What fleets may still grow by: `left` of replicas and of GPUs (absent: without end), beyond all that is present.
    `gives`: how many replicas a fleet gives up for what others must have."""

    left: dict[str, int] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    gives: dict[str, int] = field(default_factory=dict)

    def allows(self, fleet: str, limits: Limits) -> Limits:
        """The limits of a fleet, as far as what is left goes. What others must have is kept for them; beyond that,
        what a fleet has is not taken away for others."""
        claim, gives = self.claims[fleet], self.gives.get(fleet, 0)
        more, of = min(((self._more(fleet, of), of) for of in self.left if claim.each(of)), default=(MANY, ""))
        most = claim.present - gives if gives else claim.present + more
        if most >= limits.most:
            return limits
        if gives:
            why = f"{limits.why}, and {gives} of what it has make room in the budget for what other fleets must have"
        else:
            kept = ", but for what other fleets must have" if self._kept(fleet, of) else ""
            why = f"{limits.why}, and the budget of {of} leaves {more} more{kept}"
        return Limits(least=min(limits.least, max(most, claim.present)), most=max(most, 0), why=why)

    def has_room(self, fleet: str) -> bool:
        """Whether one more replica may come to a fleet."""
        claim = self.claims[fleet]
        return all(self._more(fleet, of) >= 1 for of in self.left if claim.each(of))

    def take(self, fleet: str, replicas: int) -> None:
        """A fleet is to have so many. Those that leave do so in their own time."""
        claim = self.claims[fleet]
        more = max(replicas - claim.present, 0)
        for of in self.left:
            self.left[of] -= more * claim.each(of)
        self.claims[fleet] = replace(claim, present=claim.present + more)

    def _more(self, fleet: str, of: str) -> int:
        """By how many replicas a fleet may grow: to its least with all that is left, beyond that with what is not kept
        for the others' least."""
        claim = self.claims[fleet]
        left, each = self.left[of], claim.each(of)
        return max(min(claim.missing, left // each), (left - self._kept(fleet, of)) // each, 0)

    def _kept(self, fleet: str, of: str) -> int:
        """What is kept for the others."""
        return sum(each.missing * each.each(of) for name, each in self.claims.items() if name != fleet)


def budget_of(snapshot: Snapshot, needed: Collection[str | None], now: float) -> Budget:
    """What fleets may still grow by, and what they give up. `needed` ones have to have a replica."""
    settings = snapshot.settings
    present = Counter(each.fleet for each in snapshot.replicas.values())
    claims = {}
    for name, record in snapshot.fleets.items():
        limits = limits_of(record, now)
        least = max(limits.least, min(limits.most, int(name in needed)))
        spare = _spare(name, present[name], least, snapshot, now)
        claims[name] = Claim(present=present[name], least=least, gpus=record.shape.gpus, spare=spare)
    all_of = {REPLICAS: settings.max_replicas, GPUS: settings.max_gpus}
    used = {REPLICAS: len(snapshot.replicas), GPUS: sum(each.present * each.gpus for each in claims.values())}
    left = {of: most - used[of] for of, most in all_of.items() if most is not None}
    return Budget(left=left, claims=claims, gives=_gives(left, claims))


def _spare(fleet: str, present: int, least: int, snapshot: Snapshot, now: float) -> int:
    """How many replicas a fleet could give up: none without fresh measurements, nor what must be loaded."""
    load, scaler = snapshot.loads.get(fleet), snapshot.scalers.get(fleet)
    if load is None or not load.complete or not is_fresh(load, now):
        return 0
    return max(present - max(least, scaler.room.replicas if scaler is not None else 0), 0)


def _gives(left: Mapping[str, int], claims: Mapping[str, Claim]) -> dict[str, int]:
    """Who gives up how many, so that all may have their least: one at a time, who has most to spare first."""
    short = {of: sum(each.missing * each.each(of) for each in claims.values()) - max(left[of], 0) for of in left}
    gives: dict[str, int] = {}
    spare = {name: each.spare for name, each in claims.items()}
    while True:
        wanted = [of for of, amount in short.items() if amount > 0]
        able = [name for name, many in spare.items() if many and any(claims[name].each(of) for of in wanted)]
        if not able:
            return gives
        name = max(able, key=lambda each: (spare[each], each))
        gives[name] = gives.get(name, 0) + 1
        spare[name] -= 1
        for of in short:
            short[of] -= claims[name].each(of)
