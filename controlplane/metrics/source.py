"""Where the servers' counters come from: from the servers themselves, or from a Prometheus that scrapes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from controlplane.local.home import Home
from controlplane.local.metrics import MetricsSettings, prometheus_url
from controlplane.metrics.prometheus import PrometheusSource
from controlplane.metrics.readings import Interval
from controlplane.metrics.scrape import Scraper


class Source(Protocol):
    """Remembers each server's last readings. Who can't be read keeps the interval it had: its age says so."""

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """By replica."""

    @property
    def problem(self) -> str:
        """Why the source as a whole can't be read; empty when it can."""

    async def scrape(self, urls: Mapping[str, str]) -> None:
        """Read what is new. `urls` (of metrics pages) is by replica; others are forgotten. Never raises for what the
        other side does."""


def source_of(settings: MetricsSettings, home: Home) -> Source:
    """The source that a system's settings name."""
    if settings.source == "prometheus":
        return PrometheusSource(lambda: prometheus_url(settings, home))
    return Scraper()
