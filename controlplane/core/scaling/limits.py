"""Between which numbers of replicas a fleet may move now: what its deployment says, its schedule, somebody's hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from controlplane.core.models import FleetRecord, FleetShape, ManualScale, Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From `least` to `most` replicas. `why` says in a sentence who says so. `is_cut`: by what others have, too."""

    least: int
    most: int
    why: str
    is_cut: bool = False


def by_hand(record: FleetRecord, now: float) -> ManualScale | None:
    """The size that somebody has set and that holds now (seconds since 1970)."""
    manual = record.manual
    return manual if manual is not None and (manual.until is None or manual.until.timestamp() > now) else None


def limits_of(record: FleetRecord, now: float) -> Limits:
    """What holds now (seconds since 1970): a manual setting before the schedule, the schedule before the deployment."""
    shape, manual = record.shape, by_hand(record, now)
    if manual is not None:
        until = f" until {manual.until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if manual.until is not None else ""
        why = f"{manual.actor} has set it to {manual.replicas}{until}{': ' + manual.reason if manual.reason else ''}"
        return Limits(least=manual.replicas, most=manual.replicas, why=why)
    scheduled = by_schedule(shape, now)
    least, most = scheduled or (shape.min_replicas, shape.max_replicas)
    who = "its schedule" if scheduled else "the deployment"
    return Limits(least=least, most=most, why=f"{who} asks for {least}" + (f" to {most}" if most != least else ""))


def by_schedule(shape: FleetShape, now: float) -> tuple[int, int] | None:
    """The least and the greatest size by the windows of its schedule that are open now; None if none is."""
    least, most, found = shape.min_replicas, shape.max_replicas, False
    for window in shape.schedule:
        if is_open(window, now):
            least = window.min_replicas if window.min_replicas is not None else least
            most = window.max_replicas if window.max_replicas is not None else most
            found = True
    return (least, max(least, most)) if found else None


def sizes(shape: FleetShape, record: FleetRecord | None, now: float) -> dict[str, Any]:
    """What a fleet's users are told of its limits, as plain data."""
    manual = by_hand(record, now) if record is not None else None
    return {
        "min_replicas": shape.min_replicas,
        "max_replicas": shape.max_replicas,
        "by_schedule": by_schedule(shape, now),
        "by_hand": manual.replicas if manual is not None else None,
    }


def is_open(window: Window, now: float) -> bool:
    """Whether a window of the week is open. One that ends before it begins goes over midnight, on the days on which it
    begins."""
    at = datetime.fromtimestamp(now, ZoneInfo(window.timezone))
    minute = at.hour * 60 + at.minute
    begins, ends = window.begins_min, window.ends_min
    if begins < ends:
        return at.weekday() in window.days and begins <= minute < ends
    today = at.weekday() in window.days and minute >= begins
    yesterday = (at.weekday() - 1) % 7 in window.days and minute < ends
    return today or yesterday
