"""Scrapes servers directly, without a Prometheus in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import httpx2

from controlplane.metrics.counters import parse_counters
from controlplane.metrics.readings import Interval

SCRAPE_TIMEOUT_S = 2.0
"""How long a whole page may take."""
PARALLEL_SCRAPES = 32

T = TypeVar("T")


async def read_pages(
    urls: Mapping[str, str], parse: Callable[[str], T], *, timeout_s: float = SCRAPE_TIMEOUT_S
) -> dict[str, tuple[float, T]]:
    """What `parse` makes of each replica's page, and when that came (seconds since 1970). `urls` is by replica. Who
    does not answer whole and in time is absent, and so is what `parse` raises ValueError for."""
    limit = asyncio.Semaphore(PARALLEL_SCRAPES)
    found: dict[str, tuple[float, T]] = {}
    async with httpx2.AsyncClient(timeout=timeout_s, trust_env=False) as http:

        async def one(name: str, url: str) -> None:
            # The client's own timeout is one for each read: a byte now and then would hold up everybody.
            async with limit:
                try:
                    async with asyncio.timeout(timeout_s):
                        answer = await http.get(url)
                    answer.raise_for_status()
                    found[name] = time.time(), parse(answer.text)
                except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError):
                    return

        await asyncio.gather(*(one(name, url) for name, url in urls.items()))
    return found


class Scraper:
    """Remembers each server's last reading, so that the next one makes an interval. A server that does not answer keeps
    the interval it had: its age says so."""

    def __init__(self) -> None:
        self.intervals: dict[str, Interval] = {}
        """By replica."""
        self.problem = ""
        """Always empty: each server answers for itself."""

    async def scrape(self, urls: Mapping[str, str]) -> None:
        """Read every server's metrics page. `urls` is by replica; replicas that are not in it are forgotten."""
        for name in set(self.intervals) - set(urls):
            del self.intervals[name]
        for name, (at, counters) in (await read_pages(urls, parse_counters)).items():
            known = self.intervals.get(name)
            self.intervals[name] = (
                known.then(at, counters) if known is not None else Interval(at=at, window_s=0.0, after=counters)
            )
