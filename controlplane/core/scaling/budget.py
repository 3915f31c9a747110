"""What all fleets share: so many replicas, so many GPUs. What one must have comes before what another would like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from controlplane.core.scaling.limits import Limits, limits_of
from controlplane.core.snapshot import Snapshot

REPLICAS, GPUS = "replicas", "GPUs"
MANY = 1 << 30
ALL = 3
"""What a fleet must have is of so many ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a fleet has and is to have: replicas that are `present` (those that leave among them), at least as many as
    its deployment says (`floor`), then as many as its schedule or somebody's hand says (`least`), then one if it is
    `needed`, since somebody waits; never more than a budget that is all its own would allow. `gpus` of each."""

    present: int = 0
    floor: int = 0
    least: int = 0
    needed: bool = False
    gpus: int = 0

    @property
    def missing(self) -> tuple[int, int, int]:
        """How many it has not of these, the most important first; each with those before."""

        def lacks(wanted: int) -> int:
            return max(wanted - self.present, 0)

        least = max(self.floor, self.least)
        return lacks(self.floor), lacks(least), lacks(max(least, int(self.needed)))

    def each(self, of: str) -> int:
        """What one replica takes of a thing."""
        return 1 if of == REPLICAS else self.gpus


@dataclass(slots=True)
class Budget:
    """What fleets may still grow by: `left` of replicas and of GPUs (absent: without end), beyond all that is present.

    What somebody lacks of what is more important is kept for him while others grow. What a fleet has is not taken away
    for others.
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
        others = f" beside what others must have ({kept})" if (kept := self._kept(fleet, of, ALL)) else ""
        why = f"{limits.why}, and the budget of {of} leaves {more} more{others}"
        return Limits(least=min(limits.least, max(most, claim.present)), most=most, why=why, is_cut=True)

    def has_room(self, fleet: str) -> bool:
        """Whether one more replica than it is to have anyway may come to a fleet."""
        claim = self.claims[fleet]
        return all(
            self.left[of] >= self._kept(fleet, of, ALL) + (claim.missing[-1] + 1) * claim.each(of)
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
        """By how many replicas a fleet may grow: to what it must have with what is not kept for others who lack of what
        is more important than that, beyond it with what is kept for nobody."""
        claim = self.claims[fleet]
        left, each = self.left[of], claim.each(of)
        steps = [min(lacks, (left - self._kept(fleet, of, rank)) // each) for rank, lacks in enumerate(claim.missing)]
        return max(*steps, (left - self._kept(fleet, of, ALL)) // each, 0)

    def _kept(self, fleet: str, of: str, rank: int) -> int:
        """What is kept for the others: what they lack of the first so many that they must have. For whom somebody waits
        only if that one could come."""
        kept = 0
        for name, each in self.claims.items():
            if name != fleet and rank:
                count = each.missing[rank - 1] if rank < ALL or self._may_come(each) else each.missing[1]
                kept += count * each.each(of)
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
        limits, shape = limits_of(record, now), record.shape
        claim = Claim(present=present[name], gpus=shape.gpus)
        alone = min([all_of // claim.each(of) for of, all_of in most.items() if claim.each(of)] + [limits.most])
        claims[name] = replace(
            claim,
            floor=min(shape.min_replicas, alone),
            least=min(limits.least, alone),
            needed=name in needed and alone > 0,
        )
    used = {REPLICAS: len(snapshot.replicas), GPUS: sum(each.present * each.gpus for each in claims.values())}
    return Budget(left={of: all_of - used[of] for of, all_of in most.items()}, claims=claims)
