"""What `system.yaml` says of a fleet's size: a number of replicas or limits, what it is scaled for, and when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass as validated

from controlplane.core.errors import InvalidInput
from controlplane.core.models import Goal, Window

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST_REPLICAS = 1000
DEFAULT_QUEUE_MS = 100.0

Count = Annotated[int, Ge(0), Le(MOST_REPLICAS)]


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Limits:
    """From how many replicas to how many."""

    min: Count = 1
    max: Count


def _limits(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "max": value}
    if not isinstance(value, Mapping | Limits):
        raise ValueError("a whole number, or limits such as {min: 0, max: 4}")
    return value


def _text(value: object) -> object:
    """A time without quotes is a number in YAML (8:00 is 480): it is refused as no time, which says what to write."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


TimeOfDay = Annotated[str, BeforeValidator(_text)]


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WindowSettings:
    """When other limits hold: on these days (all, if none is named), from one time of the day to another."""

    days: tuple[str, ...] = DAYS
    begins: TimeOfDay
    ends: TimeOfDay
    timezone: str = "UTC"
    min: Count | None = None
    max: Count | None = None


@validated(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ScalingSettings:
    """What a fleet is scaled for. At most one of `queue_ms`, `latency_ms` and `in_flight`."""

    queue_ms: Annotated[float, Gt(0)] | None = None
    latency_ms: Annotated[float, Gt(0)] | None = None
    in_flight: Annotated[float, Gt(0)] | None = None
    share: Annotated[float, Ge(0.5), Lt(1)] = 0.99
    down_after_s: Annotated[float, Ge(0)] | None = None
    idle_s: Annotated[float, Ge(1)] = 300.0
    schedule: tuple[WindowSettings, ...] = ()

    def goal(self) -> Goal:
        """The goal; a time in the queue where none is given."""
        if self.latency_ms is None and self.in_flight is None:
            return Goal(queue_ms=self.queue_ms or DEFAULT_QUEUE_MS, share=self.share)
        return Goal(latency_ms=self.latency_ms, in_flight=self.in_flight, share=self.share)


def windows(settings: ScalingSettings) -> tuple[Window, ...]:
    """The schedule as the rest of the program knows it. See `problems` for what it can't be made of."""
    return tuple(
        Window(
            days=tuple(DAYS.index(day) for day in each.days),
            begins_min=_minute(each.begins) or 0,
            ends_min=_minute(each.ends) or 0,
            timezone=each.timezone,
            min_replicas=each.min,
            max_replicas=each.max,
        )
        for each in settings.schedule
    )


def problems(limits: Limits, settings: ScalingSettings, where: str) -> list[InvalidInput]:
    """What contradicts itself, or means nothing, in the fleet at `where`."""
    found = []
    if limits.min > limits.max:
        found.append(
            InvalidInput(
                f"at least {limits.min} and at most {limits.max} replicas can't be",
                field=f"{where}.replicas",
                remedy="let min be no more than max",
            )
        )
    goals = [name for name in ("queue_ms", "latency_ms", "in_flight") if getattr(settings, name) is not None]
    if len(goals) > 1:
        found.append(
            InvalidInput(
                f"{' and '.join(goals)} are given, and one alone can be the goal",
                field=f"{where}.scaling",
                remedy="keep the one that your users notice",
            )
        )
    for index, window in enumerate(settings.schedule):
        found += _window_problems(limits, window, f"{where}.scaling.schedule[{index}]")
    return found


def _window_problems(limits: Limits, window: WindowSettings, where: str) -> list[InvalidInput]:
    found = []
    wrong = [day for day in window.days if day not in DAYS]
    if wrong or not window.days:
        what = f"{wrong[0]!r} is no day" if wrong else "no day is named"
        found.append(InvalidInput(what, field=f"{where}.days", remedy=f"some of {', '.join(DAYS)}"))
    for name in ("begins", "ends"):
        text = getattr(window, name)
        if _minute(text) is None:
            remedy = 'write hours and minutes in quotes, such as "08:30"'
            found.append(InvalidInput(f"{text!r} is no time of the day", field=f"{where}.{name}", remedy=remedy))
    try:
        ZoneInfo(window.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        remedy = "a name of the tz database, such as Europe/Berlin"
        what = f"{window.timezone!r} is no time zone that this machine knows"
        found.append(InvalidInput(what, field=f"{where}.timezone", remedy=remedy))
    least = window.min if window.min is not None else limits.min
    most = window.max if window.max is not None else limits.max
    if least > most:
        what = f"at least {least} and at most {most} replicas can't be"
        both = window.min is not None and window.max is not None
        remedy = "let min be no more than max" if both else "give both min and max"
        found.append(InvalidInput(what, field=where, remedy=remedy))
    if window.min is None and window.max is None:
        found.append(InvalidInput("it changes nothing", field=where, remedy="give min, max or both"))
    return found


def _minute(text: str) -> int | None:
    """Minutes since midnight; 24:00 is allowed. None for what is no time."""
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if found is None:
        return None
    hours, minutes = int(found[1]), int(found[2])
    return hours * 60 + minutes if (hours < 24 and minutes < 60) or (hours, minutes) == (24, 0) else None


LimitsOrCount = Annotated[Limits, BeforeValidator(_limits)]
