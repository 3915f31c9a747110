"""Measures the fleets' load: reads the servers' metrics, again and again, into the controller's memory."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from controlplane.core.errors import ControlPlaneError
from controlplane.core.fleets import fleet_of
from controlplane.core.messages import ReplicaReport
from controlplane.core.models import FleetRecord, Manifest
from controlplane.core.names import Key, authority
from controlplane.core.scaling.fitness import FLAPS, FLAPS_WITHIN_S
from controlplane.core.snapshot import Snapshot
from controlplane.metrics.loads import LoadMeter
from controlplane.metrics.readings import Interval
from controlplane.metrics.source import Source
from controlplane.server.memory import Memory

log = structlog.get_logger(__name__)

STEP_S = 2.0
"""How often the servers' counters are read."""
BATCHES_EVERY = 5
"""At every so many readings their batch statistics are read, too: a larger page that changes slowly. A fleet that is
asked for something whose cost is not known is read at once."""

COMES_BACK: Final = ("starting", "down")
"""How a server is that has served and ended unexpectedly."""
DOWN_S = 60.0
"""For so long what it had to do is not taken to be over, while others serve."""


class Measuring:
    """Keeps `memory.loads` current. `snapshot` gives the latest snapshot, `changed` is called when there is news."""

    def __init__(
        self, memory: Memory, snapshot: Callable[[], Snapshot], changed: Callable[[], None], source: Source
    ) -> None:
        self.scraper = source
        self.meters: dict[str, LoadMeter] = {name: LoadMeter(step_s=STEP_S) for name in memory.shapes}
        """By fleet."""
        self.problem = ""
        """Why measuring fails at present."""
        self._ready_at: dict[str, float] = {}
        self._memory = memory
        self._snapshot = snapshot
        self._changed = changed

    async def run(self) -> None:
        """Until cancelled."""
        turn = 0
        while True:
            began = time.monotonic()
            try:
                await self._read(all_batches=turn % BATCHES_EVERY == 0)
                self._note_starts()
                self._measure()
                self.problem = ""
            except Exception as error:
                if self.problem != repr(error):
                    log.exception("measuring failed; loads grow old, and no fleet gets smaller")
                self.problem = repr(error)
            self._changed()
            turn += 1
            await asyncio.sleep(max(STEP_S - (time.monotonic() - began), 0.1))

    async def _read(self, *, all_batches: bool) -> None:
        pages: dict[str, dict[str, str]] = defaultdict(dict)
        metrics: dict[str, str] = {}
        for name, (report, _) in self._memory.reports.items():
            if report.server == "ready" and report.endpoint is not None and report.metrics_port is not None:
                host, http_port = report.endpoint.host, report.endpoint.http_port
                metrics[name] = f"http://{authority(host, report.metrics_port)}/metrics"
                pages[report.fleet][name] = f"http://{authority(host, http_port)}/v2/models/stats"
        await self.scraper.scrape(metrics)
        told = self.scraper.intervals
        await asyncio.gather(
            *(
                meter.batches.read(pages[name])
                for name, meter in self.meters.items()
                if all_batches or meter.is_curious(told[each] for each in pages[name] if each in told)
            )
        )

    def _note_starts(self) -> None:
        """How long starts took that have ended."""
        for name, start in list(self._memory.starts.items()):
            if start.took_s is not None:
                del self._memory.starts[name]
                report, _ = self._memory.reports.get(name, (None, 0.0))
                if report is not None and report.fleet in self.meters:
                    self.meters[report.fleet].starts.append(start.took_s)

    def _measure(self) -> None:
        snapshot, now = self._snapshot(), time.time()
        held, refused = self._memory.held(now), self._memory.refused(now)
        serving: dict[str, set[str]] = defaultdict(set)
        loaded: dict[str, set[Key]] = defaultdict(set)
        intervals: dict[str, dict[str, Interval]] = defaultdict(dict)
        self._ready_at = {name: at for name, at in self._ready_at.items() if name in self._memory.reports}
        down: dict[str, set[str]] = defaultdict(set)
        for name, (report, _) in self._memory.reports.items():
            if name in self._ready_at and report.server in COMES_BACK:
                down[report.fleet].add(name)
            if report.server == "ready":
                self._ready_at[name] = now
                serving[report.fleet].add(name)
                loaded[report.fleet] |= {Key(copy.model, copy.version) for copy in report.copies}
                interval = self.scraper.intervals.get(name)
                if interval is not None and _is_of(interval, report):
                    intervals[report.fleet][name] = interval
        for name, meter in self.meters.items():
            record = snapshot.fleets.get(name) or FleetRecord(shape=self._memory.shapes[name])
            asked = {key: count for key, count in held.items() if count and _fleet(key, snapshot) == name}
            manifests = _manifests(snapshot, loaded[name] | asked.keys())
            meter.batches.forget_others(manifests)
            self._memory.loads[name] = meter.measure(
                record,
                intervals[name],
                manifests=manifests,
                serving=frozenset(serving[name]),
                held=asked,
                refused=refused,
                now=now,
                # What those would tell is missing, and not zero. Where others serve, they have it by and by.
                down=any(not serving[name] or self._comes_back(each, now) for each in down[name]),
            )

    def _comes_back(self, replica: str, now: float) -> bool:
        """Whether a server that is down will probably go on in a moment."""
        crashes = sum(now - at <= FLAPS_WITHIN_S for at in self._memory.crashed_at.get(replica, ()))
        return now - self._ready_at[replica] <= DOWN_S and crashes < FLAPS


def _is_of(interval: Interval, report: ReplicaReport) -> bool:
    """Whether a server was told of that holds what the replica holds. A Prometheus that keeps nothing of it but that it
    is up says nothing of its load: that is not zero."""
    ready = {Key(copy.model, copy.version) for copy in report.copies if copy.state == "ready"}
    return not ready or not ready.isdisjoint(interval.after)


def _manifests(snapshot: Snapshot, keys: set[Key]) -> Mapping[Key, tuple[str, Manifest]]:
    """Those that are known, with their digests."""
    found = ((key, snapshot.digest(key), snapshot.manifest(key)) for key in keys)
    return {key: (digest, manifest) for key, digest, manifest in found if digest is not None and manifest is not None}


def _fleet(key: Key, snapshot: Snapshot) -> str | None:
    manifest = snapshot.manifest(key)
    try:
        return fleet_of(manifest.entry, snapshot.fleets) if manifest is not None else None
    except ControlPlaneError:
        return None
