"""What plans ask for is done, whatever goes wrong once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import psutil
import pytest
from structlog.testing import capture_logs

from controlplane.core.actions import RecordFleet, StartReplica
from controlplane.core.errors import Unavailable
from controlplane.core.models import FleetShape
from controlplane.core.snapshot import Settings
from controlplane.server.acting import RETRY_MAX_S, RETRY_S, WRITE_AGAIN_S, Actor
from controlplane.server.memory import Memory


class Failing:
    """A backend that can start nothing."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.started = 0

    async def start(self, shape: FleetShape, replica: str) -> None:
        self.started += 1
        raise self.error


@pytest.mark.parametrize("error", [Unavailable("no room"), OSError("no room"), psutil.AccessDenied(1), ValueError("?")])
async def test_an_action_that_fails_is_told_and_not_tried_again_at_once(error: Exception) -> None:
    memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
    backend, absent = Failing(error), cast("Any", None)
    actor = Actor(absent, cast("Any", backend), memory, absent, done=lambda: None)
    for _ in range(20):
        actor.act([StartReplica(fleet="cpu", replica="cpu-0", reason="it is needed")])
        await asyncio.sleep(0)
    assert backend.started == 1
    assert not memory.starts, "what has not begun tells nothing of how long a start takes"
    (reason,) = actor.failures()["fleet cpu"]
    assert "starting one more replica fails" in reason.text
    await actor.close()


class Shelf:
    """An actor whose clock the test sets, and whose backend refuses as long as it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.why: str = "no room"
        self.tried: list[str] = []
        absent = cast("Any", None)
        memory = Memory(started_at=0.0, settings=Settings(), shapes={"cpu": FleetShape(name="cpu")})
        self.actor = Actor(
            cast("Any", self), cast("Any", self), memory, absent, done=lambda: None, clock=lambda: self.now
        )

    async def start(self, _shape: FleetShape, replica: str) -> None:
        self.tried.append(replica)
        if self.why:
            raise Unavailable(self.why)

    def update_fleet(self, fleet: str, _change: object) -> None:
        self.tried.append(fleet)
        raise Unavailable(self.why)

    async def wants(self, *numbers: int) -> list[str]:
        """A plan that wants these replicas: which of them are tried."""
        self.tried = []
        self.actor.act(StartReplica(fleet="cpu", replica=f"cpu-{n}", reason="more") for n in numbers)
        for _ in range(3):
            await asyncio.sleep(0)
        return self.tried

    async def pauses(self, *numbers: int, tries: int) -> list[int]:
        """How many seconds pass before each of so many tries."""
        found = []
        for _ in range(tries):
            began = self.now
            while not await self.wants(*numbers):
                self.now += 1.0
            found.append(int(self.now - began))
        return found


async def test_the_pauses_grow_up_to_a_minute_and_the_reason_stays() -> None:
    shelf = Shelf()
    first, *pauses = await shelf.pauses(0, 1, tries=12)
    assert first == 0 and pauses[0] <= RETRY_S
    for number, pause in enumerate(pauses):
        limit = min(RETRY_S * 2**number, RETRY_MAX_S)
        assert limit / 2 <= pause <= limit + 1, "one pause for all starts of a fleet, however many they are"
        assert "no room" in shelf.actor.failures()["fleet cpu"][0].text
    assert pauses[-1] >= RETRY_MAX_S / 2
    await shelf.actor.close()


async def test_the_same_reason_is_logged_once_until_it_changes() -> None:
    shelf = Shelf()
    with capture_logs() as logs:
        await shelf.pauses(0, 1, 2, tries=5)
        assert [each["reason"] for each in logs if each["log_level"] == "warning"] == ["no room"]
        shelf.why = "no quota"
        await shelf.pauses(0, 1, 2, tries=3)
    assert [each["reason"] for each in logs if each["log_level"] == "warning"] == ["no room", "no quota"]
    await shelf.actor.close()


async def test_who_wants_another_number_does_not_wait_for_what_was_refused_before() -> None:
    shelf = Shelf()
    await shelf.pauses(0, 1, tries=9)
    shelf.now += RETRY_S
    assert await shelf.wants(0, 1) == []
    assert await shelf.wants(0, 1, 2) == ["cpu-0", "cpu-1", "cpu-2"], "more"
    assert await shelf.wants(0, 1, 2) == []
    await shelf.pauses(0, 1, 2, tries=9)
    shelf.now += RETRY_S
    assert await shelf.wants(0) == [], "it may only have been seen as done"
    assert await shelf.wants(0) == ["cpu-0"], "fewer"
    await shelf.pauses(0, tries=9)
    assert await shelf.wants(1) == ["cpu-1"], "what has never failed is tried at once"
    await shelf.actor.close()


async def test_what_is_seen_as_done_while_it_is_tried_does_not_shorten_the_pauses() -> None:
    """A pod that was asked for is listed until the call has failed, in the plan after that perhaps, too."""
    shelf = Shelf()
    await shelf.pauses(0, 1, tries=9)
    shelf.now += RETRY_S
    assert await shelf.wants() == []
    assert [await shelf.wants(0, 1) for _ in range(3)] == [[], [], []]
    assert shelf.actor.failures()
    await shelf.actor.close()


async def test_what_is_wanted_no_more_is_no_failure_and_is_tried_at_once_when_it_is_wanted_again() -> None:
    shelf = Shelf()
    await shelf.pauses(0, tries=9)
    for _ in range(3):
        await shelf.wants()
    assert not shelf.actor.failures()
    assert await shelf.wants(0) == ["cpu-0"]
    await shelf.actor.close()


async def test_what_has_worked_begins_anew_with_a_short_pause() -> None:
    shelf = Shelf()
    await shelf.pauses(0, tries=9)
    shelf.why = ""
    await shelf.pauses(0, tries=1)
    assert not shelf.actor.failures()
    shelf.why = "no room"
    assert await shelf.wants(1) == ["cpu-1"]
    assert (await shelf.pauses(1, tries=1))[0] <= RETRY_S
    await shelf.actor.close()


async def test_what_is_written_into_the_registry_never_waits_long_for_it() -> None:
    shelf = Shelf()
    longest = 0.0
    for _ in range(8):
        shelf.tried, began = [], shelf.now
        while not shelf.tried:
            shelf.now += 1.0
            shelf.actor.act([RecordFleet(fleet="cpu", capabilities=None)])
            await asyncio.gather(*list(shelf.actor._tasks.values()))
            await asyncio.sleep(0)
        longest = max(longest, shelf.now - began)
    assert WRITE_AGAIN_S / 2 <= longest <= WRITE_AGAIN_S + 1
    await shelf.actor.close()
