"""How many replicas what must have a place takes: one more where it finds none, no fewer than can hold it all.

A place must have: what is always loaded, what is promoted, what somebody waits for, the copies that an entry asks for
beyond the first, what is of high priority, loaded and in use, and, where one of these may not share a server with
something that is loaded, that too. What a fleet grew for stays among them while it is in use, or each request would
start a replica anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from controlplane.core.load import Room
from controlplane.core.names import Key, Place
from controlplane.core.placement.placing import left_over
from controlplane.core.placement.terms import Placement, Rank, Slot, Want
from controlplane.core.snapshot import Snapshot

NO_PLACE = frozenset({"CLASH", "FEW_REPLICAS", "NO_ROOM", "ON_DEMAND"})
"""Codes of what found no place and would find one on a further replica."""
SHARES = 8
"""So many different sizes of large copies are looked at: those of which no more than so many fit on a replica."""
TRY_AGAIN_S = 900.0
"""After so long fewer replicas are tried again for the same needs: what stood in the way may be gone."""
TRIED = 100_000
"""So many copies are placed in the trials of one search, or three times all of them: it must not hold a plan up."""
NAMED = 3
"""So many versions are named for each reason."""


class Needs:
    """What must have a place on one fleet, as found now, with what was found `before`.

    `loaded`: versions that some replica has, in whatever state. `bad`: such as are found wanting wherever they are
    tried. `resting`: nobody asks anything of the fleet and it may be empty, so only what is always loaded is needed.
    """

    def __init__(
        self,
        wants: Sequence[Want],
        before: Room,
        *,
        capacity_bytes: int,
        sizes: Mapping[Key, int],
        clashes: Mapping[tuple[Key, Key], str],
        loaded: Collection[Key],
        bad: Collection[Key] = (),
        resting: bool = False,
    ) -> None:
        self._before = before
        self._capacity_bytes = capacity_bytes
        self._sizes = sizes
        self._clashes = clashes
        self._wants: dict[Key, Want] = {}
        self._copies: dict[Key, int] = {}
        self._why: dict[str, list[Key]] = defaultdict(list)
        for want in wants:
            why = _why(want, kept=want.key in before.kept, loaded=want.key in loaded, resting=resting)
            if why and want.key not in bad:
                self._add(want, min(want.minimum, max(want.least, 1)), why)
        self._add_apart(wants, loaded)

    def _add(self, want: Want, copies: int, why: str) -> None:
        size = want.size_bytes + sum(self._sizes.get(key, 0) for key in want.requires)
        if copies > 0 and size <= self._capacity_bytes:  # what fits on no replica needs none
            self._why[why].append(want.key)
            self._wants[want.key], self._copies[want.key] = want, copies

    def _add_apart(self, wants: Sequence[Want], loaded: Collection[Key]) -> None:
        others = {b if a in self._wants else a for a, b in self._clashes if (a in self._wants) != (b in self._wants)}
        for want in wants if others else ():
            if want.key in others and want.key in loaded:
                self._add(want, 1, "apart from these")

    def room(self, present: int, most: int, now: float) -> Room:
        """How many replicas it takes, of `present` now (seconds since 1970) and `most` at most. It stays for a while
        what it was as long as the same is needed and all of it has a place: so it costs next to nothing to ask again,
        and what was not enough is not tried again and again."""
        before = self._before
        needs = tuple((key, want.size_bytes, self._copies[key]) for key, want in self._wants.items())
        same = needs == before.needs and now - before.found_at < TRY_AGAIN_S
        replicas, found_at = (before.replicas, before.found_at) if same else (self._least(), now)
        cramped = before.cramped & self._wants.keys()
        if present < most and cramped:
            empty = [Slot(replica=f"{n:06}", capacity_bytes=self._capacity_bytes) for n in range(most - present)]
            more = self._search(1, empty, self._to_place(dict.fromkeys(cramped, 1)))
            replicas = max(replicas, present + more)
        return Room(replicas=replicas, needs=needs, found_at=found_at, kept=self._still_kept())

    def still_fits(self, fewer: int, slots: Sequence[Slot]) -> int:
        """How many of the replicas (as they are, who stays longest first) hold it all: `fewer`, or more."""
        if not self._wants:
            return fewer
        steps = {step for want in self._wants.values() for step in want.requires}
        spare = {key: count for key, count in self._copies.items() if self._wants[key].rank is not Rank.ALWAYS}
        here = []
        for slot in slots:
            held = {key for key in slot.held if key in steps or (key in self._wants and spare.get(key, 1) > 0)}
            for key in held & spare.keys():
                spare[key] -= 1  # further copies make room, but for those of what is always loaded
            here.append(
                Slot(
                    replica=slot.replica,
                    capacity_bytes=slot.capacity_bytes,
                    leaked_bytes=slot.leaked_bytes,
                    held=frozenset(held),
                    failed=slot.failed,
                )
            )
        return self._search(fewer, here, self._to_place(self._copies))

    def kept(self) -> frozenset[Key]:
        """What the fleet grows for now, and what it grew for before."""
        grown_for = {key for key in self._wants if self._wants[key].rank in (Rank.ROLLOUT, Rank.DEMAND)}
        return self._still_kept() | grown_for

    def _still_kept(self) -> frozenset[Key]:
        return frozenset(key for key in self._before.kept if key in self._wants)

    def cramped(self, placement: Placement) -> frozenset[Key]:
        """What found no place, although it must have one, and does not find one as soon as others have left: nobody is
        told to leave for what may leave itself."""
        found = {key for key, reason in placement.unplaced.items() if reason.code in NO_PLACE} & self._wants.keys()
        found = {key for key in found if _copies_in(placement, key) < self._copies[key]}  # more are nice to have
        return frozenset(key for key in found if not placement.leaving or self._wants[key].rank <= Rank.DEMAND)

    def why(self, replicas: int) -> str:
        """In a part of a sentence, what so many replicas are for."""
        told = "; ".join(f"{_names(keys)} ({why})" for why, keys in self._why.items())
        return f"{'1 replica has' if replicas == 1 else f'{replicas} replicas have'} a place for {told}"

    def _least(self) -> int:
        """No fewer can hold it, however well it is packed: by its memory, by its copies, and by its large copies, of
        which one has no room for many."""
        capacity = self._capacity_bytes
        wants = [(self._copies[key], want.size_bytes) for key, want in self._wants.items()]
        least = max((copies for copies, _ in wants), default=0)
        least = max(least, -(-sum(copies * size for copies, size in wants) // capacity))
        for share in range(1, SHARES + 1):
            large = sum(copies for copies, size in wants if size * (share + 1) > capacity)
            least = max(least, -(-large // share))
        return least

    def _to_place(self, copies: Mapping[Key, int]) -> list[Want]:
        """As wants for a trial: the large ones first, since they are the hardest to place."""
        wants = ((self._wants[key], count) for key, count in copies.items())
        return [
            Want(
                key=want.key,
                size_bytes=want.size_bytes,
                rank=Rank.DEMAND,
                minimum=count,
                maximum=count,
                requires=want.requires,
                use=float(want.size_bytes),
            )
            for want, count in wants
        ]

    def _search(self, least: int, slots: Sequence[Slot], wants: Sequence[Want]) -> int:
        """The least number of replicas on which a trial places everything; all of them where none of the trials did."""
        count = least
        for _ in range(max(3, TRIED // max(sum(want.minimum for want in wants), 1))):
            if count >= len(slots):
                break
            left = left_over(slots[:count], wants, sizes=self._sizes, clashes=self._clashes)
            if not left:
                return count
            count += max(1, left // (4 * self._capacity_bytes))
        return max(least, len(slots))


def missing(placement: Placement, snapshot: Snapshot, now: float) -> frozenset[Key]:
    """What is rolled out or asked for and has no room, on a fleet that can't grow."""

    def is_waited_for(key: Key) -> bool:
        model, asked_at = snapshot.models.get(key.model), snapshot.demand.get(key)
        rollout = model.running_rollout if model is not None else None
        if rollout is not None and rollout.target == key.version:
            return True
        return asked_at is not None and now - asked_at <= snapshot.settings.demand_s

    return frozenset(
        key for key, reason in placement.unplaced.items() if reason.code == "NO_ROOM" and is_waited_for(key)
    )


def _why(want: Want, *, kept: bool, loaded: bool, resting: bool) -> str:
    """Why a version must have a place; empty if it need not."""
    if want.rank is Rank.ROLLOUT:
        return "promoted"
    if want.rank is Rank.ALWAYS:
        return "always"
    if want.rank is Rank.DEMAND:
        return "somebody waits for it"
    if kept and want.in_use:
        return "asked of late"
    if want.high and want.in_use and loaded and not resting:
        return "of high priority"
    if want.rank is Rank.AUTO and want.least > 1 and want.idle_s is None and not resting:
        return "in several copies"
    return ""


def _copies_in(placement: Placement, key: Key) -> int:
    """How many stay, or come."""
    return sum(key in held and Place(key, name) not in placement.leaving for name, held in placement.holds.items())


def _names(keys: Iterable[Key]) -> str:
    names = [str(key) for key in keys]
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
