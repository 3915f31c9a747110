"""Scrapes servers directly, without a Prometheus in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx2

from controlplane.metrics.counters import parse_counters
from controlplane.metrics.readings import Interval

SCRAPE_TIMEOUT_S = 2.0
PARALLEL_SCRAPES = 32


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
        limit = asyncio.Semaphore(PARALLEL_SCRAPES)
        async with httpx2.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False) as http:

            async def one(name: str, url: str) -> None:
                async with limit:
                    try:
                        answer = await http.get(url)
                        answer.raise_for_status()
                        counters = parse_counters(answer.text)
                    except (httpx2.HTTPError, ValueError):
                        return
                at, known = time.time(), self.intervals.get(name)
                self.intervals[name] = (
                    known.then(at, counters) if known is not None else Interval(at=at, window_s=0.0, after=counters)
                )

            await asyncio.gather(*(one(name, url) for name, url in urls.items()))
