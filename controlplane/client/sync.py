"""The sync call: a report goes up, an order comes down, over and over, with a long poll in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import httpx2
import structlog
from pydantic import TypeAdapter

from controlplane.backoff import backoff_s
from controlplane.client.access import Access
from controlplane.client.following import MISDIRECTED, MOST_HOPS, Leader
from controlplane.core.errors import ControlPlaneError

log = structlog.get_logger(__name__)

Report = TypeVar("Report")
Order = TypeVar("Order")

LONG_POLL_S = 20.0
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0
RETRY_AFTER_MAX_S = 5.0
"""How long a pause a controller may ask for."""


class SyncLoop(Generic[Report, Order]):
    """Keeps one reporter in touch with the controller for as long as `run` runs.

    `report` is asked for the present report before each call; `poke` interrupts a long poll so that news goes up at
    once, but not the call that follows an order or a failure: that one asks for no long poll, and arrives whole. An
    unreachable controller is no error here: the loop waits, with back-off and jitter, and `run` never raises because
    of it. The address and the token are read anew for each call, since both may change under way. A controller that
    stands by names the leader, which is called from then on, until it fails.
    """

    def __init__(
        self,
        *,
        path: str,
        access: Callable[[], Access],
        report: Callable[[], Report],
        apply: Callable[[Order], Awaitable[None]],
        report_type: type[Report],
        order_type: type[Order],
    ) -> None:
        self._path = path
        self._access = access
        self._report = report
        self._apply = apply
        self._reports = TypeAdapter(report_type)
        self._orders = TypeAdapter(order_type)
        self._news = asyncio.Event()
        self._failures = 0
        self._pause_s = 0.0
        self._leader = Leader()

    def poke(self) -> None:
        """There is something new to report."""
        self._news.set()

    async def run(self) -> None:
        """Report and apply until cancelled."""
        async with httpx2.AsyncClient(timeout=httpx2.Timeout(10.0, read=LONG_POLL_S + 10.0), trust_env=False) as http:
            owed = True
            while True:
                self._news.clear()
                order = await (self._call(http, wait_s=0) if owed else self._call_or_news(http))
                if order is not None:
                    await self._apply(order)
                await asyncio.sleep(self._pause_s)
                owed = order is not None or self._failures > 0

    async def tell(self, *, timeout_s: float) -> bool:
        """Report once more, without waiting for an order: the last word, after `run` has ended. Whether it arrived."""
        try:
            async with asyncio.timeout(timeout_s), httpx2.AsyncClient(timeout=timeout_s, trust_env=False) as http:
                answer = await self._post(http, wait_s=0)
            return bool(answer.is_success)
        except (httpx2.HTTPError, OSError, ValueError, ControlPlaneError):
            return False

    async def _call_or_news(self, http: httpx2.AsyncClient) -> Order | None:
        call = asyncio.ensure_future(self._call(http, wait_s=LONG_POLL_S))
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait((call, news), return_when=asyncio.FIRST_COMPLETED)
            return call.result() if call.done() else None
        finally:
            for task in (call, news):
                task.cancel()
            await asyncio.gather(call, news, return_exceptions=True)

    async def _call(self, http: httpx2.AsyncClient, *, wait_s: float) -> Order | None:
        try:
            answer = await self._post(http, wait_s=wait_s)
            answer.raise_for_status()
            # 204: nothing newer. An empty order would be something else: to give everything up.
            order = (
                None if answer.status_code == httpx2.codes.NO_CONTENT else self._orders.validate_json(answer.content)
            )
        except (httpx2.HTTPError, OSError, ValueError, ControlPlaneError) as error:
            self._failures += 1
            self._leader.failed()
            if self._failures in (1, 10, 100):
                log.warning("controller does not answer", path=self._path, error=str(error), attempts=self._failures)
            self._pause_s = max(backoff_s(self._failures, RETRY_MIN_S, RETRY_MAX_S), _asked_pause_s(error))
            return None
        if self._failures:
            log.info("controller answers again", path=self._path, attempts=self._failures)
        self._failures, self._pause_s = 0, 0.0
        return order

    async def _post(self, http: httpx2.AsyncClient, *, wait_s: float) -> httpx2.Response:
        """Send the present report to whoever leads."""
        access = self._access()
        content = self._reports.dump_json(self._report())
        hops = 0
        while True:
            answer = await http.post(
                f"{self._leader.url(access.url)}{self._path}",
                params={"wait_s": wait_s},
                content=content,
                headers={"authorization": f"Bearer {access.token}", "content-type": "application/json"},
            )
            if answer.status_code != MISDIRECTED or hops == MOST_HOPS:
                return answer
            if not self._leader.follow(answer.headers.get("location")):
                return answer
            hops += 1


def _asked_pause_s(error: Exception) -> float:
    """The pause that a controller asks for with its refusal."""
    if not isinstance(error, httpx2.HTTPStatusError):
        return 0.0
    asked = error.response.headers.get("retry-after", "")
    if not asked.isdecimal():
        return 0.0
    # Many may have been told the same at once: they don't come back all at once.
    return min(float(asked), RETRY_AFTER_MAX_S) * random.uniform(1.0, 1.5)  # noqa: S311
