"""How many loads run at once, which of them must be alone, and which were: only then is it known what one took."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Pass:
    """One load's way through the gate, or an unload's beside it. `alone`: nothing else was loaded or unloaded at the
    same time, from its begin until now."""

    alone: bool


class LoadGate:
    """Lets `limit` loads through at once, or one that asked to be alone. Unloads pass beside it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: list[Pass] = []
        self._beside: list[Pass] = []
        self._exclusive = False
        self._moved = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def enter(self, *, alone: bool) -> AsyncIterator[Pass]:
        """Wait for a place, and hold it."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._admits(alone))
            mine = self._meet()
            self._inside.append(mine)
            self._exclusive = alone
        try:
            yield mine
        finally:
            async with self._moved:
                self._inside.remove(mine)
                self._exclusive = False
                self._moved.notify_all()

    @contextlib.contextmanager
    def unload(self) -> Iterator[Pass]:
        """Be known to be unloading; nobody waits for that."""
        mine = self._meet()
        self._beside.append(mine)
        try:
            yield mine
        finally:
            self._beside.remove(mine)

    def _meet(self) -> Pass:
        others = [*self._inside, *self._beside]
        for other in others:
            other.alone = False
        return Pass(alone=not others)

    def _admits(self, alone: bool) -> bool:
        if alone:
            return not self._inside
        return not self._exclusive and len(self._inside) < self._limit
