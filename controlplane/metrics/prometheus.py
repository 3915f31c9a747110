"""Reads the servers' counters from a Prometheus that scrapes them.

Samples are taken as they were scraped, with the time of the scrape: what is old must look old. So a range of samples is
asked for, and no instant value, which Prometheus repeats for minutes after the last scrape.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import requests
import structlog
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException

from controlplane.metrics.counters import FIELDS
from controlplane.metrics.readings import Interval
from controlplane.metrics.sampled import Sampled
from controlplane.metrics.series import REPLICA_LABEL, UP, Readings, read_answer

log = structlog.get_logger(__name__)

WAIT_S = 2.0
"""How long one turn waits for an answer; a later one is taken at the next turn."""
TIMEOUT_S = 10.0
"""After so long without a byte of it, an answer is given up."""
SERIES = f'{{__name__=~"{UP}|(?:{"|".join(FIELDS)})(?:_total)?",{REPLICA_LABEL}!=""}}'


class PrometheusSource:
    """Remembers each replica's last reading. Replicas are told apart by the label `replica`."""

    def __init__(self, url: Callable[[], str | None], *, timeout_s: float = TIMEOUT_S) -> None:
        self.problem = ""
        """Why Prometheus could not be read; empty when it could."""
        self._url = url
        self._timeout_s = timeout_s
        self._sampled = Sampled()
        self._client: tuple[str, PrometheusConnect] | None = None
        self._asked_at = 0.0
        self._asking: asyncio.Task[dict[str, Readings]] | None = None

    @property
    def intervals(self) -> Mapping[str, Interval]:
        """By replica."""
        return self._sampled.intervals

    async def scrape(self, urls: Mapping[str, str]) -> None:
        """Take what Prometheus has scraped since the last time. `urls` (of metrics pages) is by replica; replicas that
        are not in it are forgotten. Whatever Prometheus does, nothing is raised: `problem` says it."""
        self._sampled.expect(urls, time.time())
        if not urls:
            self._say("")  # there is nothing to ask for
            return
        url = self._url()
        if url is None:
            self._say("it has not been started yet")
            return
        if self._asking is None:
            addresses = {name: urlsplit(each).netloc for name, each in urls.items()}
            window_s = self._sampled.window_s(time.time())
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask, url, window_s, addresses))
        # A thread can't be interrupted: one that hangs is waited for, and there is never a second one.
        done, _ = await asyncio.wait({self._asking}, timeout=WAIT_S)
        if not done:
            if time.monotonic() - self._asked_at > 2 * self._timeout_s:
                self._say(f"no whole answer after {2 * self._timeout_s:g} s")
            return
        asked, self._asking = self._asking, None
        try:
            readings = asked.result()
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # what answers there is no Prometheus
            self._say(f"the answer can't be understood: {_in_short(error)}")
        except (requests.RequestException, PrometheusApiClientException) as error:
            self._say(_in_short(error))
        else:
            self._say(self._sampled.take(readings, time.time()))

    def _ask(self, url: str, window_s: int, addresses: Mapping[str, str]) -> dict[str, Readings]:
        if self._client is None or self._client[0] != url:
            session = requests.Session()
            session.trust_env = False  # no proxies: nobody else does either
            client = PrometheusConnect(url, session=session, timeout=self._timeout_s, method="POST")
            session.mount(url, requests.adapters.HTTPAdapter(max_retries=0))  # the next reading is the retry
            self._client = (url, client)
        return read_answer(
            self._client[1].custom_query(
                f"{SERIES}[{window_s}s]", params={"timeout": f"{self._timeout_s * 1000:.0f}ms"}
            ),
            addresses,
        )

    def _say(self, problem: str) -> None:
        if problem and not self.problem:
            log.warning("Prometheus can't be read; what was measured grows old", reason=problem)
        elif self.problem and not problem:
            log.info("Prometheus can be read again")
        self.problem = problem


def _in_short(error: Exception) -> str:
    """An error in a line. `requests` wraps the cause in layers of names and addresses."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.RequestException):
        return type(error).__name__  # its text may hold the address, and that a password
    return " ".join(str(error).split())[:200]
