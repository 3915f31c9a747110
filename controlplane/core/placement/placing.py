"""Which versions each replica of one fleet shall hold: as few changes as possible, by importance, within memory, in few
pools.

What is held stays unless it is no longer wanted or its room is needed for something more important. Nothing is counted
as free before it is gone: a version that gets its room from another one waits until that one has left.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.core.names import Key, Place, Reason, mib
from controlplane.core.placement.pools import Pools
from controlplane.core.placement.terms import Placement, Rank, Slot, Want
from controlplane.core.placement.victims import who_leaves

SPREAD_RESERVE = 0.1
"""The share of a replica's memory that copies beyond `min_copies` leave free, so that a new model finds room."""

EVEN = 0.1
"""A copy goes where others are together, so that pools are few, unless that replica has less room than another by more
than this share of its memory."""

FAR_LESS = 2.0
"""A spare copy leaves for one that is asked so many times as often; less would be to and fro."""

TOLD = 3
"""So many of those that stay are named."""


@dataclass(slots=True)
class _Room:
    slot: Slot
    held: set[Key]
    going: set[Key] = field(default_factory=set)
    used_bytes: int = 0
    going_bytes: int = 0

    @property
    def free_now(self) -> int:
        return self.slot.capacity_bytes - self.slot.leaked_bytes - self.used_bytes

    @property
    def free_soon(self) -> int:
        return self.free_now + self.going_bytes


def place(
    slots: Sequence[Slot],
    wants: Sequence[Want],
    *,
    sizes: Mapping[Key, int],
    leaving_before: Collection[Place] = (),
    clashes: Mapping[tuple[Key, Key], str] | None = None,
) -> Placement:
    """Place `wants` on `slots`. `sizes` gives the memory of every version that is wanted or held, in bytes."""
    return _Placer(slots, wants, sizes, frozenset(leaving_before), clashes or {}).run()


def left_over(
    slots: Sequence[Slot], wants: Sequence[Want], *, sizes: Mapping[Key, int], clashes: Mapping[tuple[Key, Key], str]
) -> int:
    """A trial: how many bytes of `wants` find no place on `slots`, where nobody makes room. 0 if all of it does."""
    return _Placer(slots, wants, sizes, frozenset(), clashes).trial()


class _Placer:
    def __init__(
        self,
        slots: Sequence[Slot],
        wants: Sequence[Want],
        sizes: Mapping[Key, int],
        leaving_before: frozenset[Place],
        clashes: Mapping[tuple[Key, Key], str],
    ) -> None:
        self.wants = {
            want.key: want
            for want in sorted(wants, key=lambda w: (w.rank, not w.high, w.waits_since, -w.use, -w.last_used_at, w.key))
        }
        self.sizes = sizes
        self.clash_texts = clashes
        self.clashes: dict[Key, set[Key]] = {}
        for one, other in clashes:
            self.clashes.setdefault(one, set()).add(other)
            self.clashes.setdefault(other, set()).add(one)
        self.rooms = {slot.replica: self._room(slot) for slot in sorted(slots, key=lambda slot: slot.replica)}
        self.copies: dict[Key, set[str]] = {}
        for name, room in self.rooms.items():
            if room.slot.counts:
                for key in room.held:
                    if key not in room.slot.failed:
                        self.copies.setdefault(key, set()).add(name)
        self.leaving: dict[Place, Reason] = {}
        self.going_from: dict[Key, set[str]] = {}
        self.leaving_before = leaving_before
        self.unplaced: dict[Key, Reason] = {}
        self.added: dict[Place, Want] = {}
        self.heap: list[tuple[int, str]] = []
        self.distrusted: list[tuple[int, str]] = []
        self.pools: Pools | None = None  # most plans add nothing, and need none

    def _room(self, slot: Slot) -> _Room:
        going_bytes = self._bytes(slot.unloading)
        return _Room(slot, set(slot.held), used_bytes=self._bytes(slot.held) + going_bytes, going_bytes=going_bytes)

    def run(self) -> Placement:
        self._drop_unwanted()
        self._go_on_leaving()
        self._order()
        for want in self.wants.values():
            if want.idle_s is not None:
                self._leave_unloaded(want)
            elif want.rank is not Rank.KEEP:
                self._reach_minimum(want)
        self._spread()
        return Placement(
            holds={name: frozenset(room.held) for name, room in self.rooms.items()},
            leaving=self.leaving,
            unplaced=self.unplaced,
            added=self.added,
        )

    def trial(self) -> int:
        self._order()
        left = 0
        for want in self.wants.values():
            lacking = want.minimum - len(self.copies.get(want.key, ()))
            while lacking > 0 and self._add_to_the_roomiest(want):  # how many pools that makes is no matter
                lacking -= 1
            left += max(lacking, 0) * max(want.size_bytes, 1)
        return left

    def _order(self) -> None:
        """The replicas, the one with the most room first; apart from them those that are not trusted."""
        rooms = [(-room.free_soon, name) for name, room in self.rooms.items() if room.slot.open]
        self.heap = [each for each in rooms if self.rooms[each[1]].slot.trusted]
        self.distrusted = [each for each in rooms if not self.rooms[each[1]].slot.trusted]
        heapq.heapify(self.heap)
        heapq.heapify(self.distrusted)

    # What goes.

    def _leave(self, name: str, key: Key, reason: Reason) -> None:
        room = self.rooms[name]
        room.going.add(key)
        room.going_bytes += self.sizes.get(key, 0)
        self.leaving[Place(key, name)] = reason
        self.going_from.setdefault(key, set()).add(name)
        self._move(key, name, comes=False)

    def _stay(self, name: str, key: Key) -> None:
        room = self.rooms[name]
        room.going.discard(key)
        room.going_bytes -= self.sizes.get(key, 0)
        del self.leaving[Place(key, name)]
        self.going_from[key].discard(name)
        self._move(key, name, comes=True)

    def _move(self, key: Key, name: str, *, comes: bool) -> None:
        replicas = self.copies.setdefault(key, set())
        if self.pools is not None:
            self.pools.forget(replicas)
        if comes:
            replicas.add(name)
        else:
            replicas.discard(name)
        if self.pools is not None:
            self.pools.count(replicas)

    def _drop_unwanted(self) -> None:
        for name, room in self.rooms.items():
            required = {step for key in room.held if key in self.wants for step in self.wants[key].requires}
            for key in sorted(room.held):
                if key not in self.wants and key not in required:
                    self._leave(name, key, Reason(code="UNWANTED", text=f"{key} is not wanted on this fleet any more"))
                elif key not in required and (idle_s := self.wants[key].idle_s) is not None:
                    self._leave(name, key, Reason(code="IDLE", text=f"{key} was not asked for {idle_s:g} s and leaves"))
                elif key in room.slot.failed & room.slot.banned:
                    self._leave(name, key, Reason(code="QUARANTINED", text=f"{key} is quarantined and leaves {name}"))

    def _go_on_leaving(self) -> None:
        """What was leaving goes on leaving, so that a decision does not waver, unless it is now asked for more. What is
        asked for again because it leaves stays only if nobody has waited longer for its room (`_revive`)."""
        for key, name in sorted(self.leaving_before):
            room = self.rooms.get(name)
            if room is None or key not in room.held or key in room.going or key not in self.wants:
                continue
            if self.wants[key].rank >= Rank.DEMAND:
                self._leave(name, key, Reason(code="ROOM", text=f"{key} makes room on {name}"))

    # What comes.

    def _need(self, want: Want, room: _Room) -> tuple[Key, ...]:
        return tuple(key for key in (*want.requires, want.key) if key not in room.held)

    def _bytes(self, keys: Iterable[Key]) -> int:
        return sum(self.sizes.get(key, 0) for key in keys)

    def _admits(self, want: Want, room: _Room, *, but: Collection[Key] = ()) -> bool:
        slot = room.slot
        if not slot.open or want.key in room.held or want.key in slot.failed | slot.banned:
            return False
        clashing = self.clashes.get(want.key)
        return not (clashing and (clashing & room.held).difference(but))

    def _reach_minimum(self, want: Want) -> None:
        for _ in range(want.minimum - len(self.copies.get(want.key, ()))):
            if not (self._revive(want) or self._add(want) or self._wait_for_room(want) or self._part(want)):
                self.unplaced.setdefault(want.key, self._why_not(want))
                return

    def _leave_unloaded(self, want: Want) -> None:
        if not self.copies.get(want.key):
            text = f"{want.key} was not asked for {want.idle_s:g} s: the next request loads it"
            self.unplaced[want.key] = Reason(code="IDLE", text=text)

    def _revive(self, want: Want) -> bool:
        for name in sorted(self.going_from.get(want.key, ())):
            room = self.rooms[name]
            if room.slot.counts and want.key not in room.slot.failed:
                over = -room.free_soon + self.sizes.get(want.key, 0)
                if over <= 0 or want.rank < Rank.DEMAND:  # else it is for somebody who has waited longer
                    self._stay(name, want.key)
                    return True
        return False

    def _add(self, want: Want) -> bool:
        """Onto a replica where it fits now: one that makes its copies a pool that is there already, or the one with the
        most room, of those that are trusted if one of them has any."""
        return self._join(want) or self._add_to_the_roomiest(want)

    def _join(self, want: Want) -> bool:
        """Onto the roomiest replica of the pool with the most room, all of whose other replicas could take it too."""
        held = frozenset(self.copies.get(want.key, ()))
        if not held or want.minimum <= len(held):
            return False
        if self.pools is None:
            self.pools = Pools(self.copies.values())
        most = self._most_free()
        best: tuple[int, str] | None = None
        for pool in self.pools.around(held, want.minimum):
            rooms = [self.rooms[name] for name in pool - held]
            if all(room.slot.trusted and self._takes(want, room) and self._is_even(room, most) for room in rooms):
                least = min(room.free_soon for room in rooms)
                best = max(best or (-1, ""), (least, max((room.free_soon, room.slot.replica) for room in rooms)[1]))
        if best is None:
            return False
        self._put(want, self.rooms[best[1]])
        return True

    def _takes(self, want: Want, room: _Room) -> bool:
        return self._admits(want, room) and self._bytes(self._need(want, room)) <= room.free_now

    def _is_even(self, room: _Room, most: int) -> bool:
        return room.free_soon >= most - EVEN * room.slot.capacity_bytes

    def _most_free(self) -> int:
        """What the roomiest replica has free, soon at least."""
        while self.heap:
            free, name = self.heap[0]
            now = self.rooms[name].free_soon
            if -free == now:
                return now
            heapq.heapreplace(self.heap, (-now, name))
        return 0

    def _add_to_the_roomiest(self, want: Want) -> bool:
        return self._add_to_one_of(self.heap, want) or self._add_to_one_of(self.distrusted, want)

    def _add_to_one_of(self, heap: list[tuple[int, str]], want: Want) -> bool:
        passed: list[tuple[int, str]] = []
        try:
            while heap:
                free, name = heapq.heappop(heap)
                room = self.rooms[name]
                if -free != room.free_soon:
                    heapq.heappush(heap, (-room.free_soon, name))
                    continue
                passed.append((free, name))
                if -free < self.sizes.get(want.key, 0):
                    return False
                if self._takes(want, room):
                    self._put(want, room)
                    return True
            return False
        finally:
            for _, name in passed:
                heapq.heappush(heap, (-self.rooms[name].free_soon, name))

    def _put(self, want: Want, room: _Room) -> None:
        name = room.slot.replica
        for key in self._need(want, room):
            room.held.add(key)
            room.used_bytes += self.sizes.get(key, 0)
            self.added[Place(key, name)] = want
            self._move(key, name, comes=True)
        for step in want.requires:
            if step in room.going:
                self._stay(name, step)

    def _wait_for_room(self, want: Want) -> bool:
        """Where room is being made already, or where making it does the least harm; counts as unplaced until then."""
        if want.rank >= Rank.AUTO and not self._comes_back(want) and not (want.hot and self.copies.get(want.key)):
            return False
        best: tuple[tuple[int, int, int, float, float, int, str], _Room, list[Want]] | None = None
        for name, room in self.rooms.items():
            if not self._admits(want, room):
                continue
            missing = self._bytes(self._need(want, room)) - room.free_soon
            if missing <= 0:
                victims: list[Want] = []
                cost = (-1, -9, 0, 0.0, 0.0, 0, name)
            else:
                found = self._victims(want, room, missing)
                if found is None:
                    continue
                victims = found
                only = any(self._is_last_copy(each.key) for each in victims)
                worth_s = sum(each.worth_s for each in victims)
                newest = max(each.last_used_at for each in victims)
                high = sum(each.high for each in victims)
                least = min(each.rank for each in victims)
                cost = (int(only), -least, high, worth_s, newest, len(victims), name)
            if best is None or cost < best[0]:
                best = (cost, room, victims)
        if best is None:
            return False
        _, room, victims = best
        name = room.slot.replica
        for key in (each.key for each in victims):
            self._leave(name, key, Reason(code="ROOM", text=f"{key} makes room for {want.key} on {name}"))
        # The room is spoken for, so that the next want does not count on it too.
        room.going_bytes -= self._bytes(self._need(want, room))
        self._waits(want, room)
        return True

    def _waits(self, want: Want, room: _Room) -> None:
        going = sorted(room.going | room.slot.unloading)
        what = f"{', '.join(map(str, going)) or 'memory'} {'have' if len(going) > 1 else 'has'}"
        text = f"{want.key} waits until {what} left {room.slot.replica}"
        self.unplaced[want.key] = Reason(code="WAITS_FOR_ROOM", text=text)

    def _part(self, want: Want) -> bool:
        """Where every clashing copy is one to spare, those leave. Their version keeps as many as this one has."""
        if want.rank >= Rank.AUTO:
            return False
        best: tuple[tuple[bool, float, str], _Room, set[Key]] | None = None
        for name, room in self.rooms.items():
            clashing = self.clashes.get(want.key, set()) & room.held
            staying = clashing - room.going
            if not clashing or not self._admits(want, room, but=clashing):
                continue
            free = room.free_soon + self._bytes(sorted(staying))
            if self._bytes(self._need(want, room)) > free or not all(self._may_part(key, want) for key in staying):
                continue
            cost = (bool(staying), sum(self.wants[key].use for key in staying), name)
            if best is None or cost < best[0]:
                best = (cost, room, staying)
        if best is None:
            return False
        _, room, staying = best
        name = room.slot.replica
        for key in sorted(staying):
            text = f"{key} leaves {name} to {want.key}, which can't share a server with it"
            self._leave(name, key, Reason(code="CLASH", text=text))
        self._waits(want, room)
        return True

    def _may_part(self, key: Key, want: Want) -> bool:
        copies = len(self.copies.get(key, ()))
        return key in self.wants and not self._is_last_copy(key) and copies > len(self.copies.get(want.key, ())) + 1

    def _victims(self, want: Want, room: _Room, missing: int) -> list[Want] | None:
        protected = {step for key in room.held - room.going for step in self._requires(key)} | set(want.requires)
        evictable = (
            self.wants[key]
            for key in room.held - room.going
            if key in self.wants and key not in protected and self._makes_room(key, want)
        )
        return who_leaves(evictable, missing, sizes=self.sizes, is_last=self._is_last_copy)

    def _makes_room(self, key: Key, want: Want) -> bool:
        other, last = self.wants[key], self._is_last_copy(key)
        asked = want.rank is Rank.DEMAND and want.high
        if last and other.high and other.in_use and want.rank >= Rank.DEMAND and not asked:
            return False
        if self._comes_back(want):
            return other.rank >= Rank.AUTO and not (last and (other.high or (other.in_use and not want.in_use)))
        if other.rank > max(want.rank, Rank.DEMAND):
            return True
        # One more copy of what is asked much is worth the spare copy of what is asked far less.
        spare = other.rank is Rank.AUTO and not last and not other.hot
        return want.hot and spare and other.use * FAR_LESS < want.use

    def _comes_back(self, want: Want) -> bool:
        """Whether it is loaded nowhere and important enough to take room from others before somebody asks."""
        return want.rank is Rank.AUTO and want.high and not self.copies.get(want.key)

    def _requires(self, key: Key) -> tuple[Key, ...]:
        want = self.wants.get(key)
        return want.requires if want else ()

    def _is_last_copy(self, key: Key) -> bool:
        want = self.wants.get(key)
        return want is not None and len(self.copies.get(key, ())) <= want.minimum

    def _why_not(self, want: Want) -> Reason:
        key, size = want.key, want.size_bytes
        rooms = list(self.rooms.values())
        if not rooms:
            return Reason(code="NO_REPLICA", text=f"{key} has no replica to go to: the fleet has none running")
        if not any(room.slot.open for room in rooms):
            return Reason(code="NO_REPLICA", text=f"{key} waits for a replica: none of the fleet's is up")
        if all(key in room.slot.failed for room in rooms):
            return Reason(code="FAILED", text=f"{key} could not be loaded on any replica")
        if self.copies.get(key) and all(key in room.held for room in rooms if room.slot.open):
            text = f"{key} has {len(self.copies[key])} of {want.minimum} copies: there is no further replica"
            return Reason(code="FEW_REPLICAS", text=text)
        clashing = self.clashes.get(key, set())
        if clashing and all(clashing & room.held for room in rooms if room.slot.open):
            other = min(clashing)
            return Reason(
                code="CLASH",
                text=f"{key} can't share a server with {other}, which is on every replica: "
                + self.clash_texts[min((key, other), (other, key))],
            )
        largest = max((room.slot.capacity_bytes for room in rooms), default=0)
        if size > largest:
            return Reason(
                code="TOO_LARGE", text=f"{key} needs {mib(size)} and the fleet's replicas have {mib(largest)} each"
            )
        free = max((room.free_now for room in rooms if room.slot.open and room.free_now > 0), default=0)
        if want.rank is Rank.AUTO:
            return Reason(
                code="ON_DEMAND",
                text=f"{key} is loaded on demand: it needs {mib(size)}, the most that is free is {mib(free)}",
            )
        return Reason(
            code="NO_ROOM",
            text=f"{key} needs {mib(size)}, the most that is free on a replica is {mib(free)}, "
            f"and nothing that is there has to leave for it{self._who_stays()}",
        )

    def _who_stays(self) -> str:
        """Why what is there does not leave, in a part of a sentence; some names."""
        held = [self.wants[key] for room in self.rooms.values() for key in room.held if key in self.wants]
        for rank, why in ((Rank.DEMAND, "waited for a moment ago"), (Rank.ALWAYS, "always loaded")):
            names = sorted({str(want.key) for want in held if want.rank is rank})
            if names:
                more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
                return f" ({why}: {', '.join(names[:TOLD])}{more})"
        return ""

    def _spread(self) -> None:
        """More copies where there is room to spare."""
        open_rooms = [room for room in self.rooms.values() if room.slot.open and room.slot.trusted]
        most = max((room.free_now for room in open_rooms), default=0)
        for want in self.wants.values():
            idle = want.idle_s is not None
            if idle or want.rank is Rank.KEEP or want.key in self.unplaced or want.size_bytes > most:
                continue
            count = len(self.copies.get(want.key, ()))
            if count == 0 or (want.maximum is not None and count >= want.maximum):
                continue
            for room in open_rooms:
                if want.maximum is not None and count >= want.maximum:
                    break
                spare = room.free_now - int(room.slot.capacity_bytes * SPREAD_RESERVE)
                if self._bytes(self._need(want, room)) <= spare and self._admits(want, room) and not room.going:
                    self._put(want, room)
                    count += 1
