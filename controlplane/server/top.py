"""What `ctl top` shows: fleets with their next decision, and models with how their requests fare, as plain data."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from controlplane.core.fleets import copy_bytes
from controlplane.core.messages import IN_MEMORY
from controlplane.core.names import Key
from controlplane.core.scaling.capacity import instances_of
from controlplane.core.scaling.limits import sizes
from controlplane.core.snapshot import ReplicaView, Snapshot
from controlplane.metrics.signals import Signals, signals

if TYPE_CHECKING:
    from controlplane.server.controller import Controller


def top(controller: Controller, now: float) -> dict[str, Any]:
    """Every fleet and every version that is loaded somewhere or waited for."""
    return {
        "fleets": [_fleet(controller, name, now) for name in sorted(controller.memory.shapes)],
        "models": _models(controller, now),
    }


def _fleet(controller: Controller, name: str, now: float) -> dict[str, Any]:
    memory, load = controller.memory, controller.memory.loads.get(name)
    decision = memory.last_plan.decisions.get(name)
    there = [each for each in controller.snapshot.replicas.values() if each.fleet == name]
    stopping = memory.last_plan.stopping
    record = controller.snapshot.fleets.get(name)
    return {
        "name": name,
        **sizes(memory.shapes[name], record, now),
        "replicas": len(there),
        "ready": sum(each.report is not None and each.report.server == "ready" for each in there),
        "stopping": sum(each.name in stopping for each in there),
        "desired": decision.desired if decision else None,
        "reason": decision.reason.text if decision else None,
        "next_desired": decision.next_desired if decision else None,
        "next_in_s": _rounded(decision.next_at - now if decision and decision.next_at is not None else None),
        "demand": _rounded(load.demand if load else None),
        "backlog_s": _rounded(load.backlog_s if load else None),
        "rate_per_s": _rounded(load.rate_per_s if load else None),
        "waiting": _rounded(load.waiting if load else None),
        "held": load.held if load else None,
        "met": _rounded(load.met if load else None),
        "measured_s_ago": _rounded(now - load.at if load else None),
        "memory_bytes": sum(_counted_bytes(controller.snapshot, each) for each in there),
        "capacity_bytes": memory.shapes[name].memory_bytes * len(there),
    }


def _models(controller: Controller, now: float) -> list[dict[str, Any]]:
    snapshot = controller.snapshot
    measured: dict[Key, list[Signals]] = defaultdict(list)
    copies: dict[Key, int] = defaultdict(int)
    memory_bytes: dict[Key, int] = {}
    for name, replica in snapshot.replicas.items():
        interval = controller.measuring.scraper.intervals.get(name)
        record = snapshot.fleets.get(replica.fleet)
        for key, copy in replica.copies.items():
            copies[key] += copy.state == "ready"
            manifest = snapshot.manifest(key)
            # Of a server that was there before its agent nothing was measured: then it is what it took another time.
            known = record.measured_bytes.get(copy.digest, 0) if record is not None else 0
            memory_bytes[key] = max(memory_bytes.get(key, 0), copy.memory_bytes or known)
            if interval is not None and key in interval.after and manifest is not None and record is not None:
                cost = record.costs.get(snapshot.digest(key) or "")
                found = signals(interval, key, instances=instances_of(manifest.entry, record.capabilities), cost=cost)
                if found is not None:
                    measured[key].append(found)
    held, failing = controller.memory.held(now), controller.memory.failing(now)
    told = bool(controller.memory.live_gateways(now))
    return [
        {
            "model": key.model,
            "version": key.version,
            "copies": copies.get(key, 0),
            "memory_bytes": memory_bytes.get(key) or None,
            "held": held.get(key, 0),
            "errors_per_s": _rounded(failing.get(key, 0.0) if told else None),
            **_together(measured.get(key, []), now),
        }
        for key in sorted({*copies, *held, *failing})
    ]


def _counted_bytes(snapshot: Snapshot, replica: ReplicaView) -> int:
    """The memory of what a replica has loaded, as placement counts it."""
    record, taken = snapshot.fleets.get(replica.fleet), 0
    for copy in replica.copies.values():
        manifest = snapshot.manifests.get(copy.digest)
        if record is not None and manifest is not None and copy.state in IN_MEMORY:
            taken += copy_bytes(manifest, copy.digest, record)
    return taken


def _together(parts: list[Signals], now: float) -> dict[str, Any]:
    """One version on all its replicas: rates add up, times are means over requests, duty cycles over replicas."""
    requests = sum(each.requests_per_s for each in parts)

    def mean(name: str) -> float | None:
        told = [
            (getattr(each, name), each.requests_per_s - each.failures_per_s)
            for each in parts
            if getattr(each, name) is not None
        ]
        weight = sum(rate for _, rate in told)
        return sum(value * rate for value, rate in told) / weight if weight else None

    duty = [each.duty_cycle for each in parts if each.duty_cycle is not None]
    return {
        "requests_per_s": _rounded(requests if parts else None),
        "queue_ms": _rounded(mean("queue_ms")),
        "latency_ms": _rounded(mean("latency_ms")),
        "in_flight": _rounded(sum(each.in_flight for each in parts) if parts else None),
        "waiting": _rounded(sum(each.waiting for each in parts) if parts else None),
        "batch_size": _rounded(mean("batch_size")),
        "duty_cycle": _rounded(sum(duty) / len(parts) if duty else None),
        "measured_s_ago": _rounded(now - min(each.at for each in parts) if parts else None),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
