"""Measuring goes on whatever happens: what can't be measured grows old."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from controlplane.core.models import FleetShape
from controlplane.core.snapshot import Settings, Snapshot
from controlplane.metrics.readings import Interval
from controlplane.server.measuring import Measuring
from controlplane.server.memory import Memory


class Defective:
    """A source with a defect, until it is mended."""

    def __init__(self) -> None:
        self.intervals: dict[str, Interval] = {}
        self.problem = ""
        self.defect = True

    async def scrape(self, urls: Mapping[str, str]) -> None:
        if self.defect:
            raise RuntimeError("a defect")


async def test_a_defect_is_told_and_ends_nothing() -> None:
    memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
    source, turned = Defective(), asyncio.Event()
    measuring = Measuring(memory, Snapshot, turned.set, source)
    task = asyncio.create_task(measuring.run())
    try:
        async with asyncio.timeout(30):
            await turned.wait()
            assert "a defect" in measuring.problem and "cpu" not in memory.loads
            source.defect = False
            turned.clear()
            await turned.wait()
        assert measuring.problem == "" and memory.loads["cpu"].complete
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
