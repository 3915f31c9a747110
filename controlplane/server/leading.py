"""Who leads: of several controllers one holds a lease; the others stand by and know its address.

Nobody trusts another machine's clock. A candidate takes a lease over when *it* has seen it unchanged for as long as it
lasts; the times written into it are for people. The holder counts from before it sent its last good renewal, and stops
leading well before anybody else may begin. Each write is a compare-and-set, so of two candidates one wins. Should both
ever act at once all the same (a process that was frozen while it acted), the epoch in the registry refuses the older.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from controlplane.backoff import backoff_s
from controlplane.core.errors import Busy, Conflict, ControlPlaneError, NotLeader, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

LONGEST_S = 60.0
"""A lease that says that it lasts longer is taken to last so long."""
RETRY_MIN_S = 0.2
CONFLICT_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. `lease_s`: how long a lease lasts that is not renewed. `renew_s`: how often the holder renews it,
    `give_up_s`: after how long without a good renewal it stops leading; it has the rest of `lease_s` to come to an end.
    `look_s`: how often a standby looks. `call_s`: what one call to the API server may take. `release_s`: what giving
    the lease back may take at the end."""

    lease_s: float = 10.0
    renew_s: float = 2.0
    give_up_s: float = 7.0
    look_s: float = 1.0
    call_s: float = 2.0
    release_s: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a lease says. `holder` is empty when it has been given back. `version` names this state of the lease for a
    compare-and-set; `mark` changes whenever it is taken, renewed or given back, and with nothing else."""

    version: str
    mark: tuple[str, ...]
    holder: str = ""
    address: str = ""
    lease_s: float = 10.0
    transitions: int = 0


class Lease(Protocol):
    """The lease, wherever it is kept. The calls block, and raise Conflict when somebody else was first, `Busy` when a
    pause is asked for, or any other ControlPlaneError: whatever it is, it may be granted later, be it a right."""

    def read(self) -> Record | None:
        """The present state; None when there is no lease."""

    def create(self, *, holder: str, address: str, lease_s: float) -> Record:
        """Make it, held."""

    def write(self, before: Record, *, holder: str, address: str, lease_s: float) -> Record:
        """Take it, renew it, or (with no holder) give it back, if it is still as it was `before`."""


class Sight:
    """What a candidate has seen of the lease, and since when by its own clock. Pure: times are given."""

    def __init__(self, identity: str, lease_s: float) -> None:
        self._identity = identity
        self._lease_s = lease_s
        self.record: Record | None = None
        self.since = 0.0
        """When the present holder's last sign of life was seen."""

    def look(self, record: Record | None, *, at: float) -> None:
        """A read that ended `at`. A lease that is gone says nothing about whether its holder still leads."""
        if record is not None and (self.record is None or record.mark != self.record.mark):
            self.record, self.since = record, at

    def expires_at(self) -> float:
        """When the lease may be taken, if nothing changes until then."""
        if self.record is None or self.record.holder in ("", self._identity):
            return self.since
        return self.since + max(self._lease_s, min(self.record.lease_s, LONGEST_S))

    def free(self, *, asked_at: float) -> bool:
        """Whether the lease, unchanged in a read that was begun `asked_at`, may be taken."""
        return asked_at >= self.expires_at()

    def leader(self, *, now: float) -> Record | None:
        """Somebody else who leads as far as is known."""
        other = self.record is not None and self.record.holder not in ("", self._identity)
        return self.record if other and now < self.expires_at() else None


def new_identity(name: str) -> str:
    """An identity for one life of one process: a container that starts anew in its pod is somebody else."""
    return f"{name}_{secrets.token_hex(4)}"


class Election:
    """One candidate. `address` is the base URL where others reach this controller's API.

    `leading` is true while `run`'s callback runs; `elsewhere` is the address of another one who leads.
    `heard` is true once the lease has been read: from then on a standby can do its part.
    """

    def __init__(self, lease: Lease, *, identity: str, address: str, timing: Timing | None = None) -> None:
        self._lease = lease
        self._identity = identity
        self._address = address
        self._timing = timing or Timing()
        self._sight = Sight(identity, self._timing.lease_s)
        # Threads of its own: a registry that hangs must not keep the lease from being renewed.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="lease")
        self._mine: Record | None = None
        self._renewed_at = 0.0
        self._troubles = 0
        self._known_leader = ""
        self._tried = self._stuck = False
        self.leading = False
        self.heard = False

    @property
    def identity(self) -> str:
        """What this candidate writes into the lease."""
        return self._identity

    @property
    def elsewhere(self) -> str | None:
        """The address of whoever leads elsewhere; None while that is nobody, or nobody knows."""
        other = None if self.leading else self._sight.leader(now=_now())
        return (other.address or None) if other is not None else None

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Stand by and lead in turn, until cancelled or until `lead` ends by itself.

        `lead` is run while the lease is held, and cancelled when it is lost; it must end within `lease_s − give_up_s`
        then. Whichever way this ends, the lease is given back, after `lead` has ended. Raises what `lead` raises;
        NotLeader when `lead` does not end in time: then the process must.
        """
        try:
            while True:
                await self._campaign()
                if await self._reign(lead):
                    return
        finally:
            if self._tried and not self._stuck:  # what still runs here must not meet a new leader early
                await self._release()
            self._threads.shutdown(wait=False, cancel_futures=True)

    # Standing by.

    async def _campaign(self) -> None:
        """Wait until the lease is held."""
        while True:
            pause_s = self._timing.look_s * random.uniform(0.7, 1.0)  # noqa: S311 - jitter, not a secret
            try:
                asked_at = _now()
                record = await self._call(self._lease.read)
                self._sight.look(record, at=_now())
                self.heard = True
                self._tell_leader()
                if self._sight.free(asked_at=asked_at):
                    await self._take(record)
                    return
                pause_s = min(pause_s, max(self._sight.expires_at() - _now(), 0.0) + CONFLICT_PAUSE_S)
            except Conflict:
                pause_s = CONFLICT_PAUSE_S * random.uniform(0.5, 1.5)  # noqa: S311
            except ControlPlaneError as error:
                pause_s = self._trouble(error)
            else:
                self._troubles = 0
            await asyncio.sleep(pause_s)

    async def _take(self, record: Record | None) -> None:
        began = _now()
        self._tried = True
        if record is None:
            self._mine = await self._call(self._lease.create, **self._held())
        else:
            self._mine = await self._call(self._lease.write, record, **self._held())
        self._renewed_at = began
        self._troubles = 0
        self._sight.look(self._mine, at=_now())
        log.info("leads", identity=self._identity, transitions=self._mine.transitions)

    def _tell_leader(self) -> None:
        other = self._sight.leader(now=_now())
        known = other.holder if other is not None else ""
        if known and known != self._known_leader:
            log.info("stands by", leader=known)
        self._known_leader = known

    # Leading.

    async def _reign(self, lead: Callable[[], Awaitable[None]]) -> bool:
        """Lead until the lease is lost (False) or `lead` has ended by itself (True). Raises what `lead` raises."""
        self.leading = True
        work = asyncio.ensure_future(lead())
        renewing = asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait((work, renewing), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.warning("leads no more", reason=renewing.result())
                return False
            try:
                work.result()
            except NotLeader as error:
                if not await self._deposed():
                    raise
                log.warning("leads no more", reason=str(error))
                return False
            return True
        finally:
            self.leading = False
            renewing.cancel()
            await self._end(work)

    async def _end(self, work: asyncio.Future[None]) -> None:
        """See that what the leader does comes to an end. Raises NotLeader."""
        if work.done():
            return
        work.cancel()
        await asyncio.wait((work,), timeout=self._timing.lease_s - self._timing.give_up_s)
        if not work.done():
            self._stuck = True
            raise NotLeader(
                "what the leader does did not come to an end in time",
                remedy="this process ends; whoever leads now goes on",
            )
        if not work.cancelled() and work.exception() is not None:
            log.warning("what the leader did ended with an error", error=repr(work.exception()))

    async def _keep(self) -> str:
        """Renew until that is over; why it is."""
        while True:
            await asyncio.sleep(self._timing.renew_s * random.uniform(0.9, 1.0))  # noqa: S311
            try:
                async with asyncio.timeout_at(self._renewed_at + self._timing.give_up_s):
                    await self._renew()
            except TimeoutError:
                return f"the lease could not be renewed for {self._timing.give_up_s:g} s"
            except NotLeader as error:
                return str(error)

    async def _renew(self) -> None:
        """Renew once, however often that has to be tried. Raises NotLeader when somebody else has the lease."""
        while True:
            began = _now()
            try:
                if self._mine is None:
                    self._mine = await self._call(self._lease.create, **self._held())
                else:
                    self._mine = await self._call(self._lease.write, self._mine, **self._held())
                self._renewed_at = began
                self._sight.look(self._mine, at=_now())
                self._troubles = 0
                return
            except Conflict:
                await self._read_mine()
                await asyncio.sleep(CONFLICT_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311
            except ControlPlaneError as error:
                await asyncio.sleep(self._trouble(error))

    async def _read_mine(self) -> None:
        """Look again at a lease that was not as remembered. It may be so by a write of ours whose answer was lost."""
        try:
            record = await self._call(self._lease.read)
        except ControlPlaneError as error:
            await asyncio.sleep(self._trouble(error))
            return
        if record is not None and record.holder != self._identity:
            self._sight.look(record, at=_now())
            raise NotLeader(f"the lease was taken by {record.holder}" if record.holder else "the lease was taken away")
        self._mine = record

    async def _deposed(self) -> bool:
        """Whether somebody else holds the lease: then it is no wonder that the registry knows a newer controller."""
        try:
            record = await self._call(self._lease.read)
        except ControlPlaneError:
            return False
        if record is None or record.holder == self._identity:
            return False
        self._sight.look(record, at=_now())
        return True

    # The end.

    async def _release(self) -> None:
        """Give the lease back if it is ours, also by a write whose answer never came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.release_s):
                while True:
                    try:
                        record = await self._call(self._lease.read)
                        if record is None or record.holder != self._identity:
                            return
                        await self._call(self._lease.write, record, holder="", address="", lease_s=self._timing.lease_s)
                        log.info("the lease is given back", identity=self._identity)
                        return
                    except Conflict:
                        await asyncio.sleep(CONFLICT_PAUSE_S)
                    except ControlPlaneError as error:
                        await asyncio.sleep(self._trouble(error))
            return
        log.warning("the lease could not be given back; it runs out by itself", after_s=self._timing.lease_s)

    # Calls.

    def _held(self) -> dict[str, Any]:
        return {"holder": self._identity, "address": self._address, "lease_s": self._timing.lease_s}

    async def _call(self, call: Callable[..., T], *arguments: Any, **settings: Any) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*arguments, **settings))
        try:
            async with asyncio.timeout(self._timing.call_s + 0.5):
                return await future
        except TimeoutError as error:
            raise Unavailable("the API server did not answer in time") from error

    def _trouble(self, error: ControlPlaneError) -> float:
        """How long to wait before asking again."""
        self._troubles += 1
        if self._troubles in (1, 10, 100) or not self._troubles % 1000:
            log.warning("the lease can't be looked after", reason=str(error), attempts=self._troubles)
        least_s = max(RETRY_MIN_S, error.retry_after_s) if isinstance(error, Busy) else RETRY_MIN_S
        return backoff_s(self._troubles, least_s, self._timing.renew_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
