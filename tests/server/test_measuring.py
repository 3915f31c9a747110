"""Measuring goes on whatever happens: what can't be measured grows old."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from controlplane.core.messages import Copy, ReplicaReport
from controlplane.core.models import FleetShape
from controlplane.core.names import Key
from controlplane.core.plan import Plan
from controlplane.core.scaling.fitness import FLAPS
from controlplane.core.snapshot import Settings, Snapshot
from controlplane.metrics.counters import Counters
from controlplane.metrics.readings import Interval
from controlplane.server.measuring import DOWN_S, Measuring
from controlplane.server.memory import Memory, Start


class Defective:
    """A source with a defect, until it is mended."""

    def __init__(self) -> None:
        self.intervals: dict[str, Interval] = {}
        self.problem = ""
        self.defect = True

    async def scrape(self, urls: Mapping[str, str]) -> None:
        if self.defect:
            raise RuntimeError("a defect")


class Told:
    """A source that has read what it is given."""

    def __init__(self, intervals: Mapping[str, Interval]) -> None:
        self.intervals = intervals
        self.problem = ""

    async def scrape(self, urls: Mapping[str, str]) -> None:
        pass


async def turn(measuring: Measuring, turned: asyncio.Event) -> None:
    """One turn of measuring."""
    task = asyncio.create_task(measuring.run())
    try:
        async with asyncio.timeout(30):
            await turned.wait()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def holds(replica: str, *versions: int) -> ReplicaReport:
    return ReplicaReport(
        replica=replica,
        fleet="cpu",
        incarnation="one",
        epoch=1,
        generation=1,
        server="ready",
        copies=tuple(Copy(model="m", version=each, digest="d", state="ready") for each in versions),
    )


@pytest.mark.parametrize(
    ("versions", "after", "complete"),
    [
        pytest.param((1,), {Key("m", 1): Counters()}, True, id="what it holds was told"),
        pytest.param((1, 2), {Key("m", 1): Counters()}, True, id="a part of it: the other one is new"),
        pytest.param((1,), {}, False, id="that it is up, and nothing more"),
        pytest.param((2,), {Key("m", 1): Counters()}, False, id="what it held before"),
        pytest.param((), {}, True, id="it holds nothing"),
    ],
)
async def test_a_replica_of_whose_models_nothing_is_told_has_not_told(
    versions: tuple[int, ...], after: Mapping[Key, Counters], complete: bool
) -> None:
    memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
    memory.reports["cpu-0"] = (holds("cpu-0", *versions), time.time())
    turned = asyncio.Event()
    told = Told({"cpu-0": Interval(at=time.time(), window_s=2.0, after=after)})
    measuring = Measuring(memory, Snapshot, turned.set, told)
    await turn(measuring, turned)
    assert not measuring.problem and memory.loads["cpu"].complete is complete


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("server", ["down", "starting"])
async def test_a_server_that_has_served_and_is_down_has_told_nothing(server: Any, served: bool) -> None:
    """One that has never served has nothing to tell."""
    memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
    memory.reports["cpu-0"] = (holds("cpu-0", 1), time.time())
    told = Told({"cpu-0": Interval(at=time.time(), window_s=2.0, after={Key("m", 1): Counters()})})
    turned = asyncio.Event()
    measuring = Measuring(memory, Snapshot, turned.set, told)
    if served:
        await turn(measuring, turned)
    told.intervals = {}
    memory.reports["cpu-0"] = (replace(holds("cpu-0"), server=server), time.time())
    before = memory.loads.get("cpu")
    turned.clear()
    await turn(measuring, turned)
    load = memory.loads["cpu"]
    assert load is before if served else load.complete, "what was measured grows old"


@pytest.mark.parametrize(
    ("down_s", "crashes", "complete"),
    [
        pytest.param(5.0, 1, False, id="it comes back in a moment"),
        pytest.param(DOWN_S + 1, 1, True, id="the others have had its part for long"),
        pytest.param(5.0, FLAPS, True, id="it keeps ending: it must not keep a fleet large for ever"),
    ],
)
async def test_what_one_that_is_down_had_to_do_is_not_over_at_once(down_s: float, crashes: int, complete: bool) -> None:
    memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
    now = time.time()
    told = {name: Interval(at=now, window_s=2.0, after={Key("m", 1): Counters()}) for name in ("cpu-0", "cpu-1")}
    memory.reports = {name: (holds(name, 1), now) for name in told}
    turned = asyncio.Event()
    source = Told(told)
    measuring = Measuring(memory, Snapshot, turned.set, source)
    await turn(measuring, turned)
    measuring._ready_at["cpu-1"] -= down_s
    memory.reports["cpu-1"] = (replace(holds("cpu-1"), server="down"), now)
    memory.crashed_at["cpu-1"] = (now,) * crashes
    source.intervals = {**told, "cpu-0": replace(told["cpu-0"], at=time.time())}
    turned.clear()
    await turn(measuring, turned)
    assert memory.loads["cpu"].complete is complete


MODEL = Key("m", 1)


def starting(*states: Any, server: Any = "ready") -> ReplicaReport:
    copies = tuple(Copy(model="m", version=1, digest="d", state=each) for each in states)
    return replace(holds("cpu-0"), server=server, copies=copies)


@pytest.mark.parametrize(
    ("told", "expected_s"),
    [
        pytest.param(
            [(5, starting(server="starting"), True), (9, starting("loading"), True)], 12, id="ordered at once"
        ),
        pytest.param([(9, starting("loading"), True)], 12, id="ordered when it is ready"),
        pytest.param(
            [(9, starting(), False), (600, starting(), False), (601, starting(), True)], 612 - 592, id="later"
        ),
        pytest.param(
            [(5, starting("loading"), True), (9, starting("failed"), True), (600, starting("loading"), True)],
            612 - 591,
            id="what was ordered has failed",
        ),
        pytest.param(
            [(9, starting(), False), (20, starting("loading"), True), (30, starting(), False), (50, starting(), True)],
            612 - 11 - 20,
            id="waiting twice",
        ),
    ],
)
async def test_a_start_is_counted_without_what_it_waited_for_something_to_load(
    told: list[tuple[float, ReplicaReport, bool]], expected_s: float
) -> None:
    """Told are what it reported when, and whether a version was ordered then. In the end that is ready."""
    memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
    ends = max(at for at, _, _ in told) + 3 if expected_s == 12 else 612
    began = time.time() - ends
    memory.starts["cpu-0"] = Start(began)
    for at, report, ordered in told:
        memory.hear_replica(report, began + at)
        memory.note_starts(Plan(holds={"cpu-0": frozenset({MODEL} if ordered else ())}), began + at)
    memory.hear_replica(starting("ready"), began + ends)
    memory.hear_replica(starting("ready"), began + ends + 1)  # it goes on reporting until somebody looks
    turned = asyncio.Event()
    measuring = Measuring(memory, Snapshot, turned.set, Told({}))
    await turn(measuring, turned)
    assert list(measuring.meters["cpu"].starts) == [pytest.approx(expected_s)]
    assert memory.loads["cpu"].started and not memory.starts


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
