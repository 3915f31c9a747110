"""The election, on a lease in memory: what is seen, when it may be taken, and what trouble does to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controlplane.core.errors import Busy, Conflict, ControlPlaneError, NotLeader, Unauthenticated, Unavailable
from controlplane.server.leading import LONGEST_S, Election, Record, Sight, Timing

T = TypeVar("T")
QUICK = Timing(renew_s=0.1, look_s=0.05, call_s=0.2)
"""Looks often; nobody loses a lease because this process stood still for some seconds."""
SHORT = replace(QUICK, lease_s=6.0, give_up_s=4.2)
"""For what happens when a lease runs out."""


def held(by: str = "other", mark: str = "1", **more: Any) -> Record:
    return Record(version="1", mark=(by, mark), holder=by, address=f"http://{by}:1", **more)


@pytest.mark.parametrize(
    ("record", "free_at"),
    [
        pytest.param(None, 0.0, id="there is none"),
        pytest.param(held(""), 100.0, id="given back"),
        pytest.param(held("me"), 100.0, id="mine, by a write whose answer was lost"),
        pytest.param(held(), 110.0, id="held"),
        pytest.param(held(lease_s=3), 110.0, id="held for less than we grant"),
        pytest.param(held(lease_s=20), 120.0, id="held for longer"),
        pytest.param(held(lease_s=1e9), 100.0 + LONGEST_S, id="held for ever, as it says"),
    ],
)
def test_when_a_lease_may_be_taken(record: Record | None, free_at: float) -> None:
    sight = Sight("me", 10.0)
    sight.look(record, at=100.0)
    assert sight.expires_at() == free_at
    assert sight.free(asked_at=free_at) and not sight.free(asked_at=free_at - 0.01)


def test_only_signs_of_life_count() -> None:
    sight = Sight("me", 10.0)
    sight.look(held(), at=100.0)
    sight.look(replace(held(), version="2", address="http://edited"), at=105.0)
    assert sight.expires_at() == 110.0, "an edit is no renewal"
    sight.look(None, at=106.0)
    assert sight.expires_at() == 110.0, "somebody has deleted it, and its holder may lead yet"
    sight.look(held(mark="2"), at=107.0)
    assert sight.expires_at() == 117.0
    assert sight.leader(now=116.9) is not None
    assert sight.leader(now=117.0) is None


@given(st.lists(st.tuples(st.floats(0.1, 4.0), st.booleans()), max_size=60), st.floats(0.0, 2.0))
@example([(4.0, True), (2.0, False), (4.0, False)], 0.0)
def test_a_holder_has_stopped_before_anybody_else_may_begin(looks: list[tuple[float, bool]], delay_s: float) -> None:
    """The holder renews at some of a candidate's looks; its renewals are seen late. Then it renews no more."""
    timing, sight, now, renewed_at, mark = Timing(), Sight("me", 10.0), 0.0, 0.0, 0
    sight.look(held(mark=str(mark)), at=now + delay_s)
    for pause_s, renews in looks:
        now += pause_s
        if renews:
            renewed_at, mark = now, mark + 1
        if sight.record is not None and sight.record.mark == ("other", str(mark)) and sight.free(asked_at=now):
            assert now >= renewed_at + timing.give_up_s
            return
        sight.look(held(mark=str(mark)), at=now + delay_s)


class Memory:
    """A lease in memory, with faults to come: each is raised by a call before it does anything, or after it."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.before: list[ControlPlaneError] = []
        self.after: list[ControlPlaneError] = []
        self.away: ControlPlaneError | None = None
        self.calls = self._versions = 0
        self._lock = threading.Lock()

    def read(self) -> Record | None:
        return self._do(lambda: self.record)

    def create(self, *, holder: str, address: str, lease_s: float) -> Record:
        def do() -> Record:
            if self.record is not None:
                raise Conflict("it is there")
            return self._put(holder, address, 0)

        return self._do(do)

    def write(self, before: Record, *, holder: str, address: str, lease_s: float) -> Record:
        def do() -> Record:
            if self.record is None or self.record.version != before.version:
                raise Conflict("somebody was first")
            return self._put(holder, address, before.transitions + (holder not in ("", before.holder)))

        return self._do(do)

    def take(self, holder: str) -> None:
        with self._lock:
            self._put(holder, f"http://{holder}:1", 9)

    def _put(self, holder: str, address: str, transitions: int) -> Record:
        self._versions += 1
        version = str(self._versions)
        self.record = Record(
            version=version,
            mark=(holder, version),
            holder=holder,
            address=address,
            transitions=transitions,
            lease_s=1.0,
        )
        return self.record

    def _do(self, do: Callable[[], T]) -> T:
        with self._lock:
            self.calls += 1
            if self.away is not None:
                raise self.away
            if self.before:
                raise self.before.pop(0)
            done = do()
            if self.after:
                raise self.after.pop(0)
            return done


class Candidate:
    """An election with a leader that does nothing but be."""

    def __init__(self, lease: Memory, name: str, timing: Timing = QUICK) -> None:
        self.election = Election(lease, identity=name, address=f"http://{name}:1", timing=timing)
        self.terms = 0
        self._at_work = False
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.slow_s = 0.0
        self.task = asyncio.ensure_future(self.election.run(self._lead))

    async def _lead(self) -> None:
        self.terms += 1
        self._failure = asyncio.get_running_loop().create_future()
        self._at_work = True
        try:
            await self._failure
        finally:
            self._at_work = False
            if self.slow_s:
                await asyncio.sleep(self.slow_s)

    @property
    def leads(self) -> bool:
        """It is elected, and what a leader does has begun, which is a moment later."""
        return self.election.leading and self._at_work

    def fail(self, error: Exception) -> None:
        """What the leader does raises this."""
        self._failure.set_exception(error)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not true after {timeout_s} s"
        await asyncio.sleep(0.01)


async def test_one_leads_the_other_knows_where_and_follows_it() -> None:
    lease = Memory()
    first = Candidate(lease, "first", SHORT)
    await until(lambda: first.leads)
    second = Candidate(lease, "second", SHORT)
    await until(lambda: second.election.elsewhere == "http://first:1")
    assert first.election.elsewhere is None and second.election.heard
    await asyncio.sleep(1.5 * SHORT.lease_s)
    assert first.election.leading and not second.terms
    await first.stop()
    assert lease.record is not None and lease.record.holder in ("", "second")
    await until(lambda: second.leads)
    await second.stop()
    assert lease.record.holder == "" and lease.record.address == ""


REFUSALS = [
    Unavailable("HTTP status 500"),
    Unavailable("HTTP status 410"),
    Busy("HTTP status 429", retry_after_s=0.05),
    Unauthenticated("may not patch leases"),
    Conflict("HTTP status 409"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
async def test_refusals_that_pass_change_nothing(refusal: ControlPlaneError) -> None:
    lease = Memory()
    lease.before = [refusal] * 3
    leader = Candidate(lease, "leader")
    await until(lambda: leader.leads)
    for _ in range(3):
        calls = lease.calls
        lease.before = [refusal]
        await until(lambda calls=calls: not lease.before and lease.calls > calls + 2)  # type: ignore[misc]
    assert leader.election.leading and leader.terms == 1
    lease.before = [refusal]
    await leader.stop()
    assert lease.record is not None and lease.record.holder == ""


@pytest.mark.parametrize("refusal", REFUSALS[:4], ids=str)
async def test_who_cant_renew_stops_leading_and_leads_again_later(refusal: ControlPlaneError) -> None:
    lease = Memory()
    leader = Candidate(lease, "leader", SHORT)
    await until(lambda: leader.leads)
    lease.away = refusal
    await until(lambda: not leader.election.leading)
    assert not leader.task.done()
    lease.away = None
    await until(lambda: leader.leads)
    assert leader.terms == 2
    await leader.stop()


async def test_writes_whose_answers_are_lost_are_found_again() -> None:
    lease = Memory()
    lost = Unavailable("the connection broke")
    lease.after = [lost, lost]  # of the read, then of the creation
    leader = Candidate(lease, "leader")
    await until(lambda: leader.leads)
    lease.after = [lost]
    await until(lambda: not lease.after)
    calls = lease.calls
    await until(lambda: lease.calls > calls + 5)
    assert leader.terms == 1 and leader.election.leading
    await leader.stop()
    assert lease.record is not None and lease.record.holder == ""


async def test_who_is_stopped_after_a_write_whose_answer_was_lost_gives_it_back() -> None:
    lease = Memory()
    candidate = Candidate(lease, "candidate", replace(QUICK, renew_s=5.0))
    lease.before, lease.after = [], [Unavailable("of the read"), Unavailable("of the creation")]
    await until(lambda: lease.record is not None)
    await candidate.stop()
    assert lease.record is not None and lease.record.holder == ""


async def test_a_taken_lease_ends_a_term_at_once() -> None:
    lease = Memory()
    leader = Candidate(lease, "leader")
    await until(lambda: leader.leads)
    lease.take("thief")
    await until(lambda: not leader.election.leading)
    assert leader.election.elsewhere == "http://thief:1"
    await leader.stop()
    assert lease.record is not None and lease.record.holder == "thief", "what is somebody else's is not given back"


async def test_a_deleted_lease_is_made_again_by_its_holder() -> None:
    lease = Memory()
    leader = Candidate(lease, "leader", SHORT)
    await until(lambda: leader.leads)
    other = Candidate(lease, "other", SHORT)
    await until(lambda: other.election.elsewhere is not None)
    lease.record = None
    await until(lambda: lease.record is not None)
    await asyncio.sleep(SHORT.lease_s)
    assert lease.record is not None and lease.record.holder == "leader"
    assert leader.terms == 1 and not other.terms
    await other.stop()
    await leader.stop()


async def test_an_error_of_the_leader_gives_the_lease_back() -> None:
    lease = Memory()
    leader = Candidate(lease, "leader")
    await until(lambda: leader.leads)
    leader.fail(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await leader.task
    assert lease.record is not None and lease.record.holder == ""


async def test_who_is_deposed_in_the_registry_stands_by_if_the_lease_is_another_s() -> None:
    lease = Memory()
    leader = Candidate(lease, "leader", replace(QUICK, renew_s=5.0))
    await until(lambda: leader.leads)
    lease.take("other")
    leader.fail(NotLeader("epoch 2 has begun"))
    await until(lambda: leader.election.elsewhere == "http://other:1")
    assert not leader.task.done()
    await leader.stop()


async def test_who_is_deposed_in_the_registry_by_a_stranger_ends() -> None:
    lease = Memory()
    leader = Candidate(lease, "leader")
    await until(lambda: leader.leads)
    leader.fail(NotLeader("epoch 2 has begun"))
    with pytest.raises(NotLeader, match="epoch 2"):
        await leader.task


async def test_a_leader_that_does_not_end_in_time_keeps_the_lease_from_others() -> None:
    lease = Memory()
    leader = Candidate(lease, "leader", SHORT)
    await until(lambda: leader.leads)
    leader.slow_s = 60.0
    leader.task.cancel()
    with pytest.raises(NotLeader, match="in time"):
        await leader.task
    assert lease.record is not None and lease.record.holder == "leader"


async def test_a_server_that_hangs_is_not_waited_for() -> None:
    class Hanging(Memory):
        hang = threading.Event()

        def _do(self, do: Callable[[], T]) -> T:
            if self.hang.is_set():
                time.sleep(1.0)
            return super()._do(do)

    lease = Hanging()
    leader = Candidate(lease, "leader", SHORT)
    await until(lambda: leader.leads)
    lease.hang.set()
    await until(lambda: not leader.election.leading)
    lease.hang.clear()
    await until(lambda: leader.leads)
    await leader.stop()
