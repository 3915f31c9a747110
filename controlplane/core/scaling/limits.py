"""Between which numbers of replicas a fleet may move now: what its deployment says, its schedule, somebody's hand."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from controlplane.core.models import FleetRecord, ManualScale, Window
from controlplane.core.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From `least` to `most` replicas. `why` says in a sentence who says so."""

    least: int
    most: int
    why: str


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
    least, most = shape.min_replicas, shape.max_replicas
    why = f"the deployment asks for {least}" + (f" to {most}" if most != least else "")
    for window in shape.schedule:
        if is_open(window, now):
            least = window.min_replicas if window.min_replicas is not None else least
            most = window.max_replicas if window.max_replicas is not None else most
            why = f"its schedule asks for {least}" + (f" to {most}" if most != least else "")
    return Limits(least=least, most=max(least, most), why=why)


@dataclass(slots=True)
class Budget:
    """What all fleets together may still grow by: replicas, and GPUs (None: without end)."""

    replicas: int | None = None
    gpus: int | None = None

    def allows(self, limits: Limits, present: int, gpus: int) -> Limits:
        """The limits of a fleet of `present` replicas with `gpus` GPUs each, as far as what is left goes. What a fleet
        has is not taken away for it."""
        left = [] if self.replicas is None else [(self.replicas, "replicas")]
        if self.gpus is not None and gpus:
            left.append((self.gpus // gpus, "GPUs"))
        more, of = min(left, default=(MANY, ""))
        most = present + max(more, 0)
        if most >= limits.most:
            return limits
        why = f"{limits.why}, and the budget of {of} leaves {max(more, 0)} more"
        return Limits(least=min(limits.least, max(most, present)), most=max(most, 0), why=why)

    def has_room(self, gpus: int) -> bool:
        """Whether one more replica, with so many GPUs, may come."""
        return (self.replicas is None or self.replicas >= 1) and (self.gpus is None or self.gpus >= gpus)

    def take(self, replicas: int, gpus: int) -> None:
        """So many more replicas, with `gpus` GPUs each (negative: fewer, which leave in their own time)."""
        if replicas > 0:
            self.replicas = None if self.replicas is None else self.replicas - replicas
            self.gpus = None if self.gpus is None else self.gpus - replicas * gpus


MANY = 1 << 30


def budget_of(snapshot: Snapshot) -> Budget:
    """What the fleets together may still grow by."""
    settings, fleets = snapshot.settings, snapshot.fleets
    gpus = sum(fleets[each.fleet].shape.gpus for each in snapshot.replicas.values() if each.fleet in fleets)
    return Budget(
        replicas=None if settings.max_replicas is None else settings.max_replicas - len(snapshot.replicas),
        gpus=None if settings.max_gpus is None else settings.max_gpus - gpus,
    )


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
