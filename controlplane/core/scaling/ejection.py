"""Slow replicas get no requests for a while, then some again, as a trial."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from controlplane.core.load import Ejection, Load, Scaler
from controlplane.core.names import Reason
from controlplane.core.scaling.decision import STALE_STEPS

EJECTED_S = 60.0
"""So long the first time, twice as long each further time. Longer than a judgement of slowness holds, so that who comes
back is judged anew."""
EJECTED_MOST_S = 600.0
FORGOTTEN_S = 600.0
"""Who has been well for so long since is ejected for `EJECTED_S` again."""


def eject(scaler: Scaler, load: Load | None, replicas: Collection[str], now: float) -> Scaler:
    """Judge a fleet's replicas by a load that is new enough: no data is not slow."""
    fresh = load is not None and now - load.at <= STALE_STEPS * load.step_s
    slow = load.slow if load is not None and fresh else {}
    if not (slow or scaler.ejections):
        return scaler
    return replace(scaler, ejections=ejections(scaler.ejections, slow, replicas, now))


def ejections(
    before: Mapping[str, Ejection], slow: Mapping[str, float], replicas: Collection[str], now: float
) -> Mapping[str, Ejection]:
    """The ejections of a fleet's replicas, those that are over and not forgotten among them. `slow`: how many times as
    long as the others those take that are slow.

    Without requests nothing is measured, so whether one is still slow can't be known: it is out for a fixed time and
    then gets requests like the others. Found slow again, it is out for twice as long: so it is seldom tried, and never
    given up. Most are replaced before that.
    """
    found = {}
    for name in sorted((before.keys() | slow.keys()) & set(replicas)):
        known = before.get(name)
        if known is not None and now < known.until:
            found[name] = known
        elif name in slow:
            times = known.times + 1 if known is not None else 1
            lasts_s = min(EJECTED_S * 2 ** min(times - 1, 30), EJECTED_MOST_S)
            found[name] = Ejection(until=now + lasts_s, times=times, ratio=slow[name])
        elif known is not None and now - known.until <= FORGOTTEN_S:
            found[name] = known
    return found


def ejected(ejections_: Mapping[str, Ejection], now: float) -> Mapping[str, tuple[float, Reason]]:
    """Those that are out now: how many times as long they take, and the reason."""
    found = {}
    for name, each in ejections_.items():
        if now < each.until:
            text = (
                f"{name} takes {each.ratio:.1f} times as long as the others, which get the requests for what they have "
                f"ready, too; it is tried again in {math.ceil((each.until - now) / 60)} min"
            )
            found[name] = (each.ratio, Reason(code="EJECTED", text=text))
    return found
