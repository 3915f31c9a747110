"""Reads the servers' counters from a Prometheus that scrapes them.

Samples are taken as they were scraped, with the time of the scrape: what is old must look old. So a range of samples is
asked for, and no instant value, which Prometheus repeats for minutes after the last scrape.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated
from urllib.parse import urlsplit

import requests
import structlog
from annotated_types import MinLen
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from controlplane.core.snapshot import Key
from controlplane.metrics.counters import FIELDS, Counters
from controlplane.metrics.readings import Interval

log = structlog.get_logger(__name__)

WINDOW_S = 30
"""How far back samples are asked for. A Prometheus that scrapes less often than every 15 s tells nothing."""
TIMEOUT_S = 2.0
"""How long an answer may take until the reading is given up."""
MAX_AHEAD_S = 5.0
"""How much later than now a sample may be: a clock that goes further ahead would make what is old look new."""
QUERY = '{{__name__=~"(?:{names})(?:_total)?",replica!=""}}[{window_s}s]'.format(
    names="|".join(FIELDS), window_s=WINDOW_S
)
REPLICA_LABEL = "replica"


@validated(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, and its samples (seconds since 1970, value), oldest first."""

    metric: dict[str, str]
    values: Annotated[list[tuple[float, float]], MinLen(1)]


_ANSWER = TypeAdapter(list[Series])


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
        self._client: tuple[str, PrometheusConnect] | None = None
        self._asking: asyncio.Task[list[Series]] | None = None

    async def scrape(self, urls: Mapping[str, str]) -> None:
        """Take what Prometheus has scraped since the last time. `urls` (of metrics pages) is by replica; replicas that
        are not in it are forgotten. Whatever Prometheus does, nothing is raised: `problem` says it."""
        for name in set(self.intervals) - set(urls):
            del self.intervals[name]
        now = time.monotonic()
        self._heard = {name: self._heard.get(name, now) for name in urls}
        url = self._url()
        if url is None:
            self._say("it has not been started yet")
            return
        if self._asking is None:
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask, url))
        # A thread can't be interrupted. One that hangs is waited for at the next reading: there is never a second one.
        done, _ = await asyncio.wait({self._asking}, timeout=2 * self._timeout_s)
        if not done:
            self._say(f"no answer after {2 * self._timeout_s:g} s")
            return
        asked, self._asking = self._asking, None
        try:
            series = asked.result()
        except (ValueError, KeyError, TypeError) as error:  # what answers there is no Prometheus
            self._say(f"the answer can't be understood: {_in_short(error)}")
        except (requests.RequestException, PrometheusApiClientException) as error:
            self._say(_in_short(error))
        else:
            self._take(series, urls)

    def _ask(self, url: str) -> list[Series]:
        if self._client is None or self._client[0] != url:
            session = requests.Session()
            session.trust_env = False  # no proxies: nobody else does either
            client = PrometheusConnect(url, session=session, timeout=self._timeout_s, method="POST")
            session.mount(url, requests.adapters.HTTPAdapter(max_retries=0))  # the next reading is the retry
            self._client = (url, client)
        answer = self._client[1].custom_query(QUERY, params={"timeout": f"{self._timeout_s * 1000:.0f}ms"})
        try:
            return _ANSWER.validate_python(answer)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"]) from error

    def _take(self, series: Iterable[Series], urls: Mapping[str, str]) -> None:
        now, ahead_s = time.time(), 0.0
        by_replica: dict[str, list[Series]] = defaultdict(list)
        for each in series:
            if each.metric.get(REPLICA_LABEL) in urls:
                by_replica[each.metric[REPLICA_LABEL]].append(each)
        for name, found in by_replica.items():
            readings = readings_of(found, address=urlsplit(urls[name]).netloc)
            if not readings:
                continue
            (first_at, first), (at, latest) = readings[0], readings[-1]
            if at - now > MAX_AHEAD_S:
                ahead_s = max(ahead_s, at - now)
                continue
            known = self.intervals.get(name)
            if known is not None and at <= known.at:
                continue
            if known is None or at - known.at > WINDOW_S:
                # What happened in all the time before says little of now.
                known = Interval(at=first_at, window_s=0.0, after=first)
            self.intervals[name] = known.then(at, latest) if at > known.at else known
            self._heard[name] = time.monotonic()
        silent = sorted(name for name, at in self._heard.items() if time.monotonic() - at > WINDOW_S)
        if ahead_s:
            self._say(f"its clock is {ahead_s:.0f} s ahead of this machine's: not believed")
        elif silent:
            self._say(
                f"it has nothing new of {len(silent)} of {len(urls)} replicas ({', '.join(silent[:3])}, …): does it "
                "scrape what /v1/targets lists? (docs/metrics.md)"
            )
        else:
            self._say("")

    def _say(self, problem: str) -> None:
        if problem and not self.problem:
            log.warning("Prometheus can't be read; what was measured grows old", reason=problem)
        elif self.problem and not problem:
            log.info("Prometheus can be read again")
        self.problem = problem


def readings_of(series: Iterable[Series], *, address: str) -> list[tuple[float, Mapping[Key, Counters]]]:
    """The oldest and the latest reading of one replica, with the times of their scrapes; one where there is no second.

    A replica that was started again elsewhere leaves series of its earlier `address` (host:port), and two jobs may
    scrape it: one target alone is read, at best the one at `address`, else the one that was scraped last. Series that
    stopped before the others have vanished from the page.
    """
    targets: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for each in series:
        targets[each.metric.get("job", ""), each.metric.get("instance", "")].append(each)
    if not targets:
        return []

    def worth(target: tuple[str, str]) -> tuple[bool, float, tuple[str, str]]:
        return target[1] == address, max(each.values[-1][0] for each in targets[target]), target

    found = targets[max(targets, key=worth)]
    latest_at = max(each.values[-1][0] for each in found)
    first_at = min(each.values[0][0] for each in found)
    return [(at, _counters(found, at)) for at in sorted({first_at, latest_at})]


def _counters(series: Iterable[Series], at: float) -> Mapping[Key, Counters]:
    """What was scraped at that time. Series that differ only in labels that are not Triton's are copies of one."""
    values: dict[tuple[str, Key, str], float] = {}
    for each in series:
        name, model = each.metric.get("__name__", "").removesuffix("_total"), each.metric.get("model")
        version = each.metric.get("version", "")
        value = next((number for when, number in each.values if when == at), math.nan)
        if name in FIELDS and model is not None and version.isdigit() and math.isfinite(value):
            values[name, Key(model, int(version)), each.metric.get("gpu_uuid", "")] = value
    found: dict[Key, Counters] = {}
    for (name, key, _), value in values.items():
        counters, field = found.get(key, Counters()), FIELDS[name]
        found[key] = replace(counters, **{field: getattr(counters, field) + value})
    return found


def _in_short(error: Exception) -> str:
    """An error in a line. `requests` wraps the cause in layers of names and addresses."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.RequestException):
        return type(error).__name__  # its text may hold the address, and that a password
    return " ".join(str(error).split())[:200]
