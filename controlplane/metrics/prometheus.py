"""Reads the servers' counters from a Prometheus that scrapes them.

Samples are taken as they were scraped, with the time of the scrape: what is old must look old. So a range of samples is
asked for, and no instant value, which Prometheus repeats for minutes after the last scrape.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import requests
import structlog
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException

from controlplane.metrics.counters import FIELDS
from controlplane.metrics.readings import Interval
from controlplane.metrics.series import REPLICA_LABEL, UP, Readings, read_answer

log = structlog.get_logger(__name__)

WINDOW_S = 30
"""How far back samples are asked for at most. A Prometheus that scrapes less often than every 15 s tells nothing."""
MIN_WINDOW_S, MARGIN_S = 5, 2
WAIT_S = 2.0
"""How long one turn waits for an answer; a later one is taken at the next turn."""
TIMEOUT_S = 10.0
"""After so long without a byte of it, an answer is given up."""
MAX_AHEAD_S = 5.0
"""How much later than now a sample may be: a clock that goes further ahead would make what is old look new."""
MAX_APART_S, SURE = 4.5, 3
"""Scrapes that are further apart than this, this many times in a row, are too seldom to scale by (docs/metrics.md)."""
SERIES = f'{{__name__=~"{UP}|(?:{"|".join(FIELDS)})(?:_total)?",{REPLICA_LABEL}!=""}}'


class PrometheusSource:
    """Remembers each replica's last reading. Replicas are told apart by the label `replica`."""

    def __init__(self, url: Callable[[], str | None], *, timeout_s: float = TIMEOUT_S) -> None:
        self.intervals: dict[str, Interval] = {}
        """By replica."""
        self.problem = ""
        """Why Prometheus could not be read; empty when it could."""
        self._url = url
        self._timeout_s = timeout_s
        self._heard: dict[str, float] = {}
        """When there was last something new of each replica, or when it was first asked for (monotonic, in seconds)."""
        self._seldom = 0
        """So many times in a row all scrapes were far apart."""
        self._client: tuple[str, PrometheusConnect] | None = None
        self._asked_at = 0.0
        self._asking: asyncio.Task[dict[str, Readings]] | None = None

    async def scrape(self, urls: Mapping[str, str]) -> None:
        """Take what Prometheus has scraped since the last time. `urls` (of metrics pages) is by replica; replicas that
        are not in it are forgotten. Whatever Prometheus does, nothing is raised: `problem` says it."""
        for name in set(self.intervals) - set(urls):
            del self.intervals[name]
        now = time.monotonic()
        self._heard = {name: self._heard.get(name, now) for name in urls}
        if not urls:
            self._say("")  # there is nothing to ask for
            return
        url = self._url()
        if url is None:
            self._say("it has not been started yet")
            return
        if self._asking is None:
            addresses = {name: urlsplit(each).netloc for name, each in urls.items()}
            self._asked_at = now
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask, url, self._window_s(), addresses))
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
            self._take({name: each for name, each in readings.items() if name in urls})

    def _window_s(self) -> int:
        """How far back to ask: to the last reading of each that still tells something, since each sample costs time."""
        ages = (time.time() - each.at for each in self.intervals.values())
        longest_s = max((age_s for age_s in ages if age_s < WINDOW_S), default=WINDOW_S)
        return min(max(math.ceil(longest_s) + MARGIN_S, MIN_WINDOW_S), WINDOW_S)

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

    def _take(self, readings: Mapping[str, Readings]) -> None:
        now, ahead_s = time.time(), 0.0
        for name, each in readings.items():
            known = self.intervals.get(name)
            if each.at - now > MAX_AHEAD_S:
                ahead_s = max(ahead_s, each.at - now)
            elif known is None:
                self._keep(name, Interval(at=each.first_at, window_s=0.0, after=each.first), each)
            elif each.at - known.at > WINDOW_S:
                # What happened in all the time before says little of now, and one reading alone nothing: not even zero.
                if each.at > each.first_at:
                    self._keep(name, Interval(at=each.first_at, window_s=0.0, after=each.first), each)
            elif each.at > known.at:
                self._keep(name, known, each)
        silent = sorted(name for name, at in self._heard.items() if time.monotonic() - at > WINDOW_S)
        apart_s = min((each.apart_s for each in readings.values() if each.apart_s is not None), default=None)
        if apart_s is not None:
            self._seldom = self._seldom + 1 if apart_s > MAX_APART_S else 0
        if ahead_s:
            self._say(f"its clock is {ahead_s:.0f} s ahead of this machine's: not believed")
        elif silent:
            self._say(
                f"it has nothing new of {', '.join(silent[:3])}{', …' if len(silent) > 3 else ''}, which run: does it "
                "scrape what /v1/targets lists? (docs/metrics.md)"
            )
        elif self._seldom >= SURE:
            self._say(
                "it scrapes too seldom for anything to be made smaller: let it scrape every 2 s (docs/metrics.md)"
            )
        else:
            self._say("")

    def _keep(self, name: str, before: Interval, news: Readings) -> None:
        self.intervals[name] = before.then(news.at, news.latest) if news.at > before.at else before
        self._heard[name] = time.monotonic()

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
