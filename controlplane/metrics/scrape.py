"""Scrapes servers directly, without a Prometheus in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx2

from controlplane.core.snapshot import Key
from controlplane.metrics.counters import Counters, parse_counters
from controlplane.metrics.signals import Signals, signals

SCRAPE_TIMEOUT_S = 2.0
PARALLEL_SCRAPES = 32


class Scraper:
    """Remembers each server's last reading, so that the next one gives signals. A server that does not answer keeps
    the signals it had: their age says so."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Mapping[Key, Counters]]] = {}
        self.signals: dict[str, dict[Key, Signals]] = {}
        """By replica, then by version."""

    async def scrape(self, urls: Mapping[str, str]) -> None:
        """Read every server's metrics page. `urls` is by replica; replicas that are not in it are forgotten."""
        for name in set(self._last) - set(urls):
            del self._last[name]
            self.signals.pop(name, None)
        limit = asyncio.Semaphore(PARALLEL_SCRAPES)
        async with httpx2.AsyncClient(timeout=SCRAPE_TIMEOUT_S) as http:

            async def one(name: str, url: str) -> None:
                async with limit:
                    try:
                        answer = await http.get(url)
                        answer.raise_for_status()
                        counters = parse_counters(answer.text)
                    except (httpx2.HTTPError, ValueError):
                        return
                self._take(name, time.time(), counters)

            await asyncio.gather(*(one(name, url) for name, url in urls.items()))

    def _take(self, name: str, now: float, counters: Mapping[Key, Counters]) -> None:
        at, before = self._last.get(name, (now, {}))
        self._last[name] = (now, counters)
        found = {
            key: signals(before[key], after, at=now, window_s=now - at)
            for key, after in counters.items()
            if key in before
        }
        self.signals[name] = {key: each for key, each in found.items() if each is not None}
