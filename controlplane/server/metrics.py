"""The controller's own Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from controlplane.core.fleets import leaked_bytes
from controlplane.core.plan import Plan
from controlplane.core.scaling.capacity import instances_of
from controlplane.core.snapshot import Snapshot


class Metrics:
    """What is counted, on a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._cycles = Histogram(
            "ctl_controller_cycle_seconds", "Time of one observe, plan, act cycle", registry=self._registry
        )
        self._actions = Counter(
            "ctl_controller_actions", "Actions that plans asked for", ["kind"], registry=self._registry
        )
        self._epoch = Gauge("ctl_controller_epoch", "This controller's epoch", registry=self._registry)
        self._settled = Gauge(
            "ctl_controller_settled", "1 when everybody known has been heard", registry=self._registry
        )
        self._models = Gauge("ctl_models", "Models in the registry", registry=self._registry)
        self._replicas = Gauge(
            "ctl_replicas", "Replicas by fleet and server state", ["fleet", "server"], registry=self._registry
        )
        self._leaked = Gauge(
            "ctl_leaked_bytes",
            "Memory that did not come back when models were unloaded, by fleet",
            ["fleet"],
            registry=self._registry,
        )
        self._copies = Gauge(
            "ctl_copies", "Loaded versions by fleet and state", ["fleet", "state"], registry=self._registry
        )
        self._instances = Gauge(
            "ctl_instances",
            "Instances that one copy of a version has",
            ["fleet", "model", "version"],
            registry=self._registry,
        )
        self._desired = Gauge(
            "ctl_fleet_desired_replicas", "Replicas that a fleet shall have", ["fleet"], registry=self._registry
        )
        self._demand = Gauge(
            "ctl_fleet_busy_replicas", "Replicas that what arrives keeps busy", ["fleet"], registry=self._registry
        )
        self._backlog = Gauge(
            "ctl_fleet_backlog_seconds",
            "Work that waits, in seconds of one replica",
            ["fleet"],
            registry=self._registry,
        )
        self._held = Gauge(
            "ctl_fleet_held_requests",
            "Requests that wait at gateways for a replica",
            ["fleet"],
            registry=self._registry,
        )
        self._moves = Counter(
            "ctl_placement_moves",
            "Versions that were put on a replica, or that began to leave one",
            ["what"],
            registry=self._registry,
        )
        self._leaving = Gauge("ctl_leaving", "Versions on their way out of a replica", registry=self._registry)

    def cycle(self, snapshot: Snapshot, plan: Plan, duration_s: float) -> None:
        """Count one cycle."""
        self._cycles.observe(duration_s)
        for action in plan.actions:
            self._actions.labels(kind=type(action).__name__).inc()
        self._epoch.set(snapshot.epoch)
        self._settled.set(snapshot.settled)
        self._models.set(len(snapshot.models))
        self._leaving.set(len(plan.leaving))
        for fleet, decision in plan.decisions.items():
            self._desired.labels(fleet).set(decision.desired)
        for fleet, load in snapshot.loads.items():
            self._demand.labels(fleet).set(load.demand)
            self._backlog.labels(fleet).set(load.backlog_s)
            self._held.labels(fleet).set(load.held)
        self._moves.labels("placed").inc(plan.placed)
        self._moves.labels("left").inc(len(plan.leaving.keys() - snapshot.leaving.keys()))
        replicas: dict[tuple[str, str], int] = {}
        copies: dict[tuple[str, str], int] = {}
        instances: dict[tuple[str, str, str], int] = {}
        leaked: dict[tuple[str], int] = {}
        for replica in snapshot.replicas.values():
            server = replica.report.server if replica.report else "unknown"
            replicas[replica.fleet, server] = replicas.get((replica.fleet, server), 0) + 1
            record = snapshot.fleets.get(replica.fleet)
            if record is not None:
                leaked[(replica.fleet,)] = leaked.get((replica.fleet,), 0) + leaked_bytes(replica)
            for key, copy in replica.copies.items():
                copies[replica.fleet, copy.state] = copies.get((replica.fleet, copy.state), 0) + 1
                manifest = snapshot.manifest(key)
                if manifest is not None and record is not None:
                    named = (replica.fleet, key.model, str(key.version))
                    instances[named] = instances_of(manifest.entry, record.capabilities)
        _set(self._replicas, replicas.items())
        _set(self._leaked, leaked.items())
        _set(self._copies, copies.items())
        _set(self._instances, instances.items())

    def expose(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _set(gauge: Gauge, counts: Iterable[tuple[tuple[str, ...], int]]) -> None:
    gauge.clear()
    for labels, count in counts:
        gauge.labels(*labels).set(count)
