"""How many loads run at once, and which of them must be alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(slots=True)
class Pass:
    """One load's way through the gate. `alone`: no other load ran at the same time, from its begin until now."""

    alone: bool


class LoadGate:
    """Lets `limit` loads through at once, or one that asked to be alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: list[Pass] = []
        self._exclusive = False
        self._moved = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def enter(self, *, alone: bool) -> AsyncIterator[Pass]:
        """Wait for a place, and hold it."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._admits(alone))
            mine = Pass(alone=not self._inside)
            for other in self._inside:
                other.alone = False
            self._inside.append(mine)
            self._exclusive = alone
        try:
            yield mine
        finally:
            async with self._moved:
                self._inside.remove(mine)
                self._exclusive = False
                self._moved.notify_all()

    def _admits(self, alone: bool) -> bool:
        if alone:
            return not self._inside
        return not self._exclusive and len(self._inside) < self._limit
