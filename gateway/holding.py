"""Requests for models that are not loaded: they wait, within bounds, until the table leads somewhere."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import structlog

from controlplane.core.errors import ControlPlaneError, Unavailable
from controlplane.core.messages import Demand
from controlplane.core.routes import RouteTable
from gateway.resolving import Resolved, resolve
from gateway.settings import Settings

log = structlog.get_logger(__name__)


class Overloaded(ControlPlaneError):
    """Too many requests wait already."""

    code = "UNAVAILABLE"


class Holding:
    """The table that the Python side goes by, and the requests that wait for a better one.

    `poke` is called when somebody begins to wait for a version, so that the controller hears of it at once.
    """

    def __init__(self, settings: Settings, table: RouteTable, poke: Callable[[], None]) -> None:
        self._settings = settings
        self._poke = poke
        self._table = table
        self._news = asyncio.Event()
        self._waiting: Counter[tuple[str, int]] = Counter()
        self._bytes = 0

    @property
    def table(self) -> RouteTable:
        """The newest table."""
        return self._table

    @property
    def waiting(self) -> int:
        """How many requests wait, all together."""
        return self._waiting.total()

    @property
    def demand(self) -> tuple[Demand, ...]:
        """What is waited for."""
        return tuple(
            Demand(model=model, version=version, waiting=count)
            for (model, version), count in sorted(self._waiting.items())
            if count
        )

    def update(self, table: RouteTable) -> None:
        """Go by this table from now on, and let those who wait look again."""
        self._table = table
        self._news.set()
        self._news = asyncio.Event()

    async def route(
        self, model: str, wish: str, *, size_bytes: int, remaining_s: float | None, draw: float | None = None
    ) -> Resolved:
        """Where a request goes, as soon as it goes anywhere.

        `remaining_s` is what is left of the client's own deadline. Raises NotFound; Unavailable with the reason when
        the wait is over; Overloaded when too many wait.
        """
        chosen = random.uniform(0, 100) if draw is None else draw  # noqa: S311 - a share of traffic, not a secret
        resolved = resolve(self._table, model, wish, chosen)
        if resolved.members:
            return resolved
        wait_s = self._settings.cold_wait_s
        if remaining_s is not None:
            wait_s = min(wait_s, remaining_s - min(0.25, remaining_s / 10))  # the answer must still reach the client
        return await self._wait(model, wish, chosen, size_bytes, max(wait_s, 0.0))

    async def _wait(self, model: str, wish: str, draw: float, size_bytes: int, wait_s: float) -> Resolved:
        end = asyncio.get_running_loop().time() + wait_s
        self._bytes += size_bytes
        try:
            while True:
                news = self._news
                resolved = resolve(self._table, model, wish, draw)
                if resolved.members:
                    return resolved
                await self._turn(resolved, news, end, wait_s)
        finally:
            self._bytes -= size_bytes

    async def _turn(self, resolved: Resolved, news: asyncio.Event, end: float, waited_s: float) -> None:
        key = (resolved.model, resolved.version)
        why = f": {resolved.reason}" if resolved.reason else ""
        if self._waiting[key] >= self._settings.held_per_model or self.waiting >= self._settings.held_total:
            raise Overloaded(f"too many requests wait for {resolved.model} version {resolved.version}{why}")
        if self._bytes > self._settings.held_bytes:
            raise Overloaded(f"the requests that wait for models hold more than {self._settings.held_bytes} bytes{why}")
        self._waiting[key] += 1
        if self._waiting[key] == 1:
            log.info("requests wait for a model that is not loaded", model=resolved.model, version=resolved.version)
            self._poke()
        try:
            async with asyncio.timeout_at(end):
                await news.wait()
        except TimeoutError:
            raise Unavailable(
                f"{resolved.model} version {resolved.version} was not loaded within {waited_s:.3g} s{why}"
            ) from None
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
