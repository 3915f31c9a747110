"""What all fleets share: so many replicas, so many GPUs. What one must have comes before what another would like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from controlplane.core.scaling.limits import Limits, limits_of
from controlplane.core.snapshot import Snapshot

REPLICAS, GPUS = "replicas", "GPUs"
MANY = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a fleet has and is to have: replicas that are `present` (those that leave among them), the `least` that its
    limits allow (as far as a budget that is all its own would go), one at least if it is `needed`; `gpus` of each."""

    present: int = 0
    least: int = 0
    needed: bool = False
    gpus: int = 0

    @property
    def missing(self) -> int:
        """How many it must have and has not."""
        return max(self.least - self.present, 0)

    @property
    def awaited(self) -> int:
        """The same, with the one that is waited for."""
        return max(self.missing, int(self.needed) - self.present)

    def each(self, of: str) -> int:
        """What one replica takes of a thing."""
        return 1 if of == REPLICAS else self.gpus


@dataclass(slots=True)
class Budget:
    """What fleets may still grow by: `left` of replicas and of GPUs (absent: without end), beyond all that is present.

    Whoever lacks of its least comes first, who has none and is waited for second; nobody else grows into what is left
    for them. What a fleet has is not taken away for others.
    """

    left: dict[str, int] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)

    def allows(self, fleet: str, limits: Limits) -> Limits:
        """The limits of a fleet, as far as what is left goes."""
        claim = self.claims[fleet]
        more, of = min(((self._more(fleet, of), of) for of in self.left if claim.each(of)), default=(MANY, ""))
        most = claim.present + more
        if most >= limits.most:
            return limits
        kept = ", but for what other fleets must have" if self._kept(fleet, of, awaited=True) else ""
        why = f"{limits.why}, and the budget of {of} leaves {more} more{kept}"
        return Limits(least=min(limits.least, max(most, claim.present)), most=most, why=why)

    def has_room(self, fleet: str) -> bool:
        """Whether one more replica than it is to have anyway may come to a fleet."""
        claim = self.claims[fleet]
        return all(
            self.left[of] >= self._kept(fleet, of, awaited=True) + (claim.awaited + 1) * claim.each(of)
            for of in self.left
            if claim.each(of)
        )

    def take(self, fleet: str, replicas: int) -> None:
        """A fleet is to have so many. Those that leave do so in their own time."""
        claim = self.claims[fleet]
        more = max(replicas - claim.present, 0)
        for of in self.left:
            self.left[of] -= more * claim.each(of)
        self.claims[fleet] = replace(claim, present=claim.present + more)

    def _more(self, fleet: str, of: str) -> int:
        """By how many replicas a fleet may grow: to its least with all that is left, to the one that is waited for with
        what is not kept for the others' least, beyond that with what is not kept for what is waited for elsewhere."""
        claim = self.claims[fleet]
        left, each = self.left[of], claim.each(of)
        first = min(claim.missing, left // each)
        second = min(claim.awaited, (left - self._kept(fleet, of, awaited=False)) // each)
        third = (left - self._kept(fleet, of, awaited=True)) // each
        return max(first, second, third, 0)

    def _kept(self, fleet: str, of: str, *, awaited: bool) -> int:
        """What is kept for the others: for their least, and with `awaited` for who is waited for and could come."""
        others = [each for name, each in self.claims.items() if name != fleet]
        kept = sum(each.missing * each.each(of) for each in others)
        if awaited:
            kept += sum((each.awaited - each.missing) * each.each(of) for each in others if self._may_come(each))
        return kept

    def _may_come(self, claim: Claim) -> bool:
        return all(self.left[of] >= claim.each(of) for of in self.left)


def budget_of(snapshot: Snapshot, needed: Collection[str | None], now: float) -> Budget:
    """What fleets may still grow by. `needed` ones are waited for."""
    settings = snapshot.settings
    most = {
        of: all_of
        for of, all_of in ((REPLICAS, settings.max_replicas), (GPUS, settings.max_gpus))
        if all_of is not None
    }
    present = Counter(each.fleet for each in snapshot.replicas.values())
    claims = {}
    for name, record in snapshot.fleets.items():
        limits = limits_of(record, now)
        claim = Claim(present=present[name], gpus=record.shape.gpus)
        alone = min((all_of // claim.each(of) for of, all_of in most.items() if claim.each(of)), default=MANY)
        claims[name] = replace(
            claim, least=min(limits.least, alone), needed=name in needed and min(limits.most, alone) > 0
        )
    used = {REPLICAS: len(snapshot.replicas), GPUS: sum(each.present * each.gpus for each in claims.values())}
    return Budget(left={of: all_of - used[of] for of, all_of in most.items()}, claims=claims)
