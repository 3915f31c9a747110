"""What is told of how models are executed: signals of each copy, batches and advice on them, what a copy can do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from controlplane.core.entry import Entry
from controlplane.core.models import Cost, FleetRecord, Goal, Manifest, Model
from controlplane.core.names import Key, Reason
from controlplane.core.scaling.batching import Batching, explain
from controlplane.core.scaling.capacity import all_it_can, instances_of, per_s
from controlplane.metrics.loads import LoadMeter
from controlplane.metrics.signals import signals
from controlplane.render.sharing import combined

if TYPE_CHECKING:
    from controlplane.server.controller import Controller

FRESH_S = 30.0
"""Older signals say nothing of now."""


def signals_of(controller: Controller, replica: str, key: Key, now: float) -> dict[str, Any] | None:
    """What was measured of a copy, and how long ago (`age_s`); None where nothing was."""
    interval = controller.measuring.scraper.intervals.get(replica)
    manifest = controller.snapshot.manifest(key)
    if interval is None or manifest is None or key not in interval.after:
        return None
    record = controller.snapshot.fleets[controller.snapshot.replicas[replica].fleet]
    cost = record.costs.get(controller.snapshot.digest(key) or "")
    found = signals(interval, key, instances=instances_of(manifest.entry, record.capabilities), cost=cost)
    if found is None:
        return None
    shown = {name: value for name, value in asdict(found).items() if name != "at" and value is not None}
    return {"age_s": round(now - found.at, 1), **{name: round(value, 3) for name, value in shown.items()}}


def batches(controller: Controller, document: Model, now: float) -> Iterator[dict[str, Any]]:
    """Which batches were executed of late, how long one took in the mean, and when the last were (`age_s`)."""
    for fleet, meter in controller.measuring.meters.items():
        for each in document.versions:
            key = Key(document.name, each.number)
            executions = meter.batches.totals.get(key, {})
            count = sum(size.count for size in executions.values())
            for size in sorted(executions.values(), key=lambda size: size.size):
                if size.count >= 1:
                    share, mean_ms = size.count / count, size.total_s / size.count * 1e3
                    told = {"size": size.size, "share": round(share, 4), "mean_ms": round(mean_ms, 3)}
                    at = meter.batches.executed_at.get(key)
                    age_s = None if at is None else round(now - at, 1)
                    yield {"fleet": fleet, "version": each.number, "age_s": age_s, **told}


def batching(controller: Controller, document: Model, now: float) -> Iterator[Reason]:
    """Which batches the stable version is executed in, and whether they should be others."""
    for case in _measured(controller, document):
        executions = case.meter.batches.totals.get(case.key)
        if not executions:
            continue
        busy = [
            found
            for name, replica in controller.snapshot.replicas.items()
            if replica.fleet == case.fleet
            and (found := signals_of(controller, name, case.key, now)) is not None
            and "duty_cycle" in found
            and found["age_s"] <= FRESH_S
        ]
        measured = Batching(
            executions=tuple(executions.values()),
            cost=case.cost,
            duty=fmean(each["duty_cycle"] for each in busy) if busy else None,
            used=fmean(each["requests_per_s"] for each in busy) / case.most if busy and case.cost is not None else None,
            limit_ms=_left_to_the_queue_ms(case),
            items=case.meter.items(case.key),
            age_s=now - case.meter.batches.executed_at.get(case.key, now),
        )
        yield from explain(case.entry, measured)


def capacity(controller: Controller, document: Model) -> Iterator[Reason]:
    """What one copy of the stable version can do."""
    for case in _measured(controller, document):
        if case.cost is None:
            continue
        text = f"a copy of {case.key} on fleet {case.fleet} answers {_rate(case.most)} requests a second at most"
        too_tight = tuple(_too_tight(case.key, case.record, case.cost, case.items))
        if (goal := _told(case.goal)) is not None:
            instances = instances_of(case.entry, case.record.capabilities)
            within = _rate(per_s(case.cost, case.goal, case.entry, instances, items=case.items))
            text += f", none within {goal}" if too_tight else f", {within} within {goal} if it is the only one"
        yield Reason(code="CAPACITY", text=text)
        yield from too_tight


def too_tight(controller: Controller, fleet: str) -> Iterator[Reason]:
    """Where a fleet's goal is shorter than an execution of what it serves, so that no size of it is enough."""
    record, meter = controller.snapshot.fleets.get(fleet), controller.measuring.meters.get(fleet)
    if record is None or meter is None or record.shape.goal.latency_ms is None:
        return
    for document in controller.snapshot.models.values():
        key = Key(document.name, document.stable or 0)
        manifest, digest = controller.snapshot.manifest(key), controller.snapshot.digest(key)
        if manifest is not None and digest is not None:
            cost = meter.costs(record, {key: (digest, manifest)}).get(key)
            yield from _too_tight(key, record, cost, meter.items(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """The stable version of a model on a fleet, and the settings that it is executed with there."""

    fleet: str
    record: FleetRecord
    meter: LoadMeter
    key: Key
    entry: Entry
    cost: Cost | None

    @property
    def goal(self) -> Goal:
        return self.record.shape.goal

    @property
    def items(self) -> float:
        return self.meter.items(self.key)

    @property
    def most(self) -> float:
        """Requests a second that a copy does when it is always busy; 0: its cost is not known."""
        instances = instances_of(self.entry, self.record.capabilities)
        return all_it_can(self.cost, self.entry, instances, items=self.items) if self.cost is not None else 0.0


def _measured(controller: Controller, document: Model) -> Iterator[_Measured]:
    if document.stable is None:
        return
    key = Key(document.name, document.stable)
    manifest, digest = controller.snapshot.manifest(key), controller.snapshot.digest(key) or ""
    for fleet, meter in controller.measuring.meters.items():
        record = controller.snapshot.fleets.get(fleet)
        if manifest is None or record is None or manifest.entry.fleet not in (None, fleet):
            continue
        entry = _in_force(controller, fleet, key, manifest)
        cost = meter.costs(record, {key: (digest, manifest)}).get(key)
        yield _Measured(fleet=fleet, record=record, meter=meter, key=key, entry=entry, cost=cost)


def _in_force(controller: Controller, fleet: str, key: Key, manifest: Manifest) -> Entry:
    """The settings that a version is executed with: versions on one server have one configuration."""
    together = {key.version: manifest}
    for replica in controller.snapshot.replicas.values():
        if replica.fleet == fleet and key in replica.copies:
            for other, copy in replica.copies.items():
                if other.model == key.model and (found := controller.snapshot.manifests.get(copy.digest)) is not None:
                    together[copy.version] = found
    return combined(together)


def _too_tight(key: Key, record: FleetRecord, cost: Cost | None, items: float) -> Iterator[Reason]:
    latency_ms = record.shape.goal.latency_ms
    if latency_ms is None or cost is None:
        return
    takes_ms = (cost.fixed_s + cost.each_s * items) * 1e3
    if takes_ms > latency_ms:
        text = (
            f"executing a request for {key} takes {takes_ms:.3g} ms, as measured of late, more than the "
            f"`latency_ms: {latency_ms:g}` of fleet {record.shape.name}: more replicas hardly help"
        )
        yield Reason(code="GOAL_TOO_TIGHT", text=text)


def _left_to_the_queue_ms(case: _Measured) -> float:
    if case.goal.queue_ms is not None:
        return case.goal.queue_ms
    if case.goal.latency_ms is None:
        return math.inf
    alone_ms = case.cost.of(1) * 1e3 if case.cost is not None else 0.0
    return max(case.goal.latency_ms - alone_ms, 0.0)


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.3g}"


def _told(goal: Goal) -> str | None:
    if goal.queue_ms is not None:
        return f"`queue_ms: {goal.queue_ms:g}`"
    return f"`latency_ms: {goal.latency_ms:g}`" if goal.latency_ms is not None else None
