"""Requests for models that are not loaded: they wait, within bounds, until the table leads somewhere."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable

import structlog

from controlplane.core.errors import Overloaded, Unavailable
from controlplane.core.messages import Demand
from controlplane.core.routes import RouteTable
from gateway.resolving import Resolved, resolve
from gateway.settings import Settings

log = structlog.get_logger(__name__)

FIRST_START_S = 10.0
"""How long a start is thought to take while none has been seen; only for the advice when to ask again."""


class _Waiter:
    """One request that waits. Thousands of these may be there at once, so they hold little.

    `wake` is done when there is reason to look again: a new table, `expired`, since its time is over, or `dropped`, why
    it may not wait any longer.
    """

    __slots__ = ("dropped", "expired", "key", "model", "size_bytes", "wake")

    def __init__(self, resolved: Resolved, size_bytes: int) -> None:
        self.model = resolved.model
        self.key = (resolved.model, resolved.version)
        self.size_bytes = size_bytes
        self.dropped: Overloaded | None = None
        self.expired = False
        self.wake: asyncio.Future[None] | None = None

    def look(self) -> None:
        """Have it look again."""
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def expire(self) -> None:
        """Its time is over."""
        self.expired = True
        self.look()


class _Queue:
    """The waiters of one model, in the order in which they came."""

    __slots__ = ("high", "size_bytes", "waiters")

    def __init__(self, high: bool) -> None:
        self.high = high
        self.size_bytes = 0
        self.waiters: dict[_Waiter, None] = {}


class Holding:
    """The table that the Python side goes by, and the requests that wait for a better one.

    The room is shared fairly: when it is full, whoever comes for a model that has less of it than the model that has
    most takes the place of that one's latest. Models of normal priority give way to those of high priority, never the
    other way. `poke` is called when somebody begins to wait for a version, so that the controller hears of it at once.
    """

    def __init__(self, settings: Settings, table: RouteTable, poke: Callable[[], None]) -> None:
        self._settings = settings
        self._poke = poke
        self._table = table
        self._queues: dict[str, _Queue] = {}
        self._waiting: Counter[tuple[str, int]] = Counter()
        self._since: dict[tuple[str, int], float] = {}
        self._start_s = FIRST_START_S
        self._count = self._bytes = 0

    @property
    def table(self) -> RouteTable:
        """The newest table."""
        return self._table

    @property
    def waiting(self) -> int:
        """How many requests wait, all together."""
        return self._count

    @property
    def waiting_bytes(self) -> int:
        """The size of the requests that wait."""
        return self._bytes

    @property
    def demand(self) -> tuple[Demand, ...]:
        """What is waited for."""
        return tuple(
            Demand(model=model, version=version, waiting=count)
            for (model, version), count in sorted(self._waiting.items())
        )

    def update(self, table: RouteTable) -> None:
        """Go by this table from now on, and let those who wait look again."""
        self._table = table
        for queue in self._queues.values():
            for waiter in queue.waiters:
                waiter.look()

    async def route(
        self, model: str, wish: str, *, size_bytes: int, remaining_s: float | None, draw: float | None = None
    ) -> Resolved:
        """Where a request goes, as soon as it goes anywhere.

        `remaining_s` is what is left of the client's own deadline. Raises NotFound; Unavailable with the reason when
        the wait is over, or there is no use in it; Overloaded when too many wait, or later when others have a better
        claim to the room.
        """
        chosen = random.uniform(0, 100) if draw is None else draw  # noqa: S311 - a share of traffic, not a secret
        resolved = resolve(self._table, model, wish, chosen)
        if resolved.members:
            return resolved
        _check(resolved)
        wait_s = self._settings.cold_wait_s
        if remaining_s is not None:
            wait_s = min(wait_s, remaining_s - min(0.25, remaining_s / 10))  # the answer must still reach the client
        wait_s = max(wait_s, 0.0)
        loop = asyncio.get_running_loop()
        waiter = self._admit(resolved, size_bytes)
        timer = loop.call_later(wait_s, waiter.expire)
        try:
            while not resolved.members:
                if waiter.dropped is not None:
                    raise waiter.dropped
                _check(resolved)
                if waiter.expired:
                    version = f"{resolved.model} version {resolved.version}"
                    raise Unavailable(f"{version} was not loaded within {wait_s:.3g} s{_why(resolved)}")
                self._wait_for(waiter, (resolved.model, resolved.version))
                waiter.wake = loop.create_future()
                await waiter.wake
                resolved = resolve(self._table, model, wish, chosen)
            if waiter.key in self._since:
                self._start_s = loop.time() - self._since[waiter.key]
            return resolved
        finally:
            timer.cancel()
            self._remove(waiter)

    def _admit(self, resolved: Resolved, size_bytes: int) -> _Waiter:
        """Give the request room, if need be that of others. Raises Overloaded."""
        waiter = _Waiter(resolved, size_bytes)
        queue = self._queues.get(waiter.model) or _Queue(resolved.high)
        queue.high = resolved.high
        if len(queue.waiters) >= self._settings.held_per_model:
            raise self._overloaded(waiter.key, f"too many requests wait for {resolved.model}{_why(resolved)}")
        while self._count >= self._settings.held_total:
            self._displace(waiter, queue, lambda each: len(each.waiters), 1, "too many requests wait for models")
        text = f"the requests that wait for models hold more than {self._settings.held_bytes} bytes"
        if size_bytes > self._settings.held_bytes:
            raise self._overloaded(waiter.key, text)
        while self._bytes + size_bytes > self._settings.held_bytes:
            self._displace(waiter, queue, lambda each: each.size_bytes, size_bytes, text)
        self._queues[waiter.model] = queue
        queue.waiters[waiter] = None
        queue.size_bytes += size_bytes
        self._count += 1
        self._bytes += size_bytes
        self._enter(waiter.key)
        return waiter

    def _displace(self, waiter: _Waiter, queue: _Queue, measure: Callable[[_Queue], int], more: int, text: str) -> None:
        """Drop the latest request of the model that has most room by this measure; `more` is what `waiter` needs.

        Raises Overloaded, for `waiter`, where it has no better claim: then its model would have as much itself.
        """
        found = max(self._queues.values(), key=lambda each: (not each.high, measure(each)), default=None)
        claim = found is not None and (
            queue.high if found.high != queue.high else measure(found) > measure(queue) + more
        )
        if found is None or not claim:
            raise self._overloaded(waiter.key, text)
        latest = next(reversed(found.waiters))
        latest.dropped = self._overloaded(latest.key, f"{text}, and {latest.model} has the most of them")
        self._remove(latest)
        latest.look()

    def _remove(self, waiter: _Waiter) -> None:
        """Take it out, if it is still in."""
        queue = self._queues.get(waiter.model)
        if queue is None or waiter not in queue.waiters:
            return
        del queue.waiters[waiter]
        queue.size_bytes -= waiter.size_bytes
        self._count -= 1
        self._bytes -= waiter.size_bytes
        if not queue.waiters:
            del self._queues[waiter.model]
        self._leave(waiter.key)

    def _wait_for(self, waiter: _Waiter, key: tuple[str, int]) -> None:
        """Another version than before, perhaps: what is stable has moved."""
        if key != waiter.key:
            self._enter(key)
            self._leave(waiter.key)
            waiter.key = key

    def _enter(self, key: tuple[str, int]) -> None:
        self._waiting[key] += 1
        if self._waiting[key] == 1:
            self._since[key] = asyncio.get_running_loop().time()
            log.info("requests wait for a model that is not loaded", model=key[0], version=key[1])
            self._poke()

    def _leave(self, key: tuple[str, int]) -> None:
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key], self._since[key]

    def _overloaded(self, key: tuple[str, int], text: str) -> Overloaded:
        """The error; it advises to ask again when the model is there, if this start takes as long as the last one."""
        now = asyncio.get_running_loop().time()
        left_s = self._start_s - (now - self._since.get(key, now))
        return Overloaded(text, retry_after_s=math.ceil(min(max(left_s, 1.0), max(self._settings.cold_wait_s, 1.0))))


def _check(resolved: Resolved) -> None:
    """Raises Unavailable where there is no use in waiting."""
    if resolved.refused:
        raise Unavailable(f"{resolved.model} version {resolved.version} can't be loaded{_why(resolved)}")


def _why(resolved: Resolved) -> str:
    return f": {resolved.reason}" if resolved.reason else ""
