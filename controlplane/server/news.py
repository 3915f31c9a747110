"""What is new in a plan: for the logs, and for whoever looks at the fleets where they run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import structlog

from controlplane.core.errors import ControlPlaneError
from controlplane.core.fleets import fleet_of
from controlplane.core.names import Key, Reason
from controlplane.core.plan import Plan
from controlplane.core.snapshot import Snapshot
from controlplane.fleet.protocol import FleetBackend, News

log = structlog.get_logger(__name__)

ALARMS: Final = frozenset(
    {
        "CLASH",
        "EJECTED",
        "FAILED",
        "FLAPPING",
        "INVALID",
        "LEAKING",
        "LOAD_FAILED",
        "MISSING",
        "NOT_TRUSTED",
        "NO_METRICS",
        "NO_ROOM",
        "QUARANTINED",
        "SLOW",
        "START_FAILS",
        "TOO_LARGE",
    }
)
"""Codes of reasons which somebody may have to do something about."""


def tell(before: Plan, made: Plan, snapshot: Snapshot, backend: FleetBackend) -> None:
    """Log what is new, and have the backend show what its users should see."""
    for subject, reason in _new_reasons(before, made):
        log.info(reason.text, code=reason.code, **_named(subject))
        news = _news(subject, reason, snapshot)
        if news is not None:
            backend.tell(news)
    for fleet, decision in made.decisions.items():
        known = before.decisions.get(fleet)
        if known is None or known.desired != decision.desired:
            log.info("a fleet's size", fleet=fleet, desired=decision.desired, reason=decision.reason.text)
        if known is not None and known.desired != decision.desired:
            text = f"{known.desired} → {decision.desired} replicas: {decision.reason.text}"
            backend.tell(News(fleet=fleet, code="SCALING", text=text))


def _new_reasons(before: Plan, made: Plan) -> Iterator[tuple[str, Reason]]:
    """A reason whose figures have changed, and nothing else, is none."""
    for subject, reasons in made.reasons.items():
        known = {reason.code for reason in before.reasons.get(subject, ())}
        for reason in reasons:
            if reason.code not in known:
                yield subject, reason


def _news(subject: str, reason: Reason, snapshot: Snapshot) -> News | None:
    kind, _, name = subject.partition("/")
    alarm = reason.code in ALARMS
    if kind == "replica" and name in snapshot.replicas:
        fleet = snapshot.replicas[name].fleet
        return News(fleet=fleet, replica=name, code=reason.code, text=reason.text, warning=alarm)
    if kind == "fleet" and alarm:
        return News(fleet=name, code=reason.code, text=reason.text, warning=True)
    if kind == "version" and alarm and (of := _fleet(name, snapshot)) is not None:
        return News(fleet=of, code=reason.code, text=reason.text, warning=True)
    return None


def _fleet(mention: str, snapshot: Snapshot) -> str | None:
    """The fleet of a version; None where it has none: then there is nowhere to show anything."""
    model, _, version = mention.rpartition("@")
    manifest = snapshot.manifest(Key(model, int(version)))
    try:
        return fleet_of(manifest.entry, snapshot.fleets) if manifest is not None else None
    except ControlPlaneError:
        return None


def _named(subject: str) -> dict[str, object]:
    """What a plan's reason is about, in the fields that all logs share."""
    kind, _, name = subject.partition("/")
    if kind != "version":
        return {kind: name}
    model, _, version = name.rpartition("@")
    return {"model": model, "version": int(version)}
