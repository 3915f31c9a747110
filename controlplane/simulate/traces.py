"""A trace: when requests came, and how much work each was. How one is made larger, shorter, or another model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controlplane.core.errors import InvalidInput

HOLE_S, HOLE_GAPS = 60.0, 50.0
"""A hole is a time without requests that is at least so long, and at least so many mean gaps."""
HOLES_TOLD = 3
MOST_DAYS = 31
"""A longer trace would take hours, and most often is one with a wrong timestamp in it."""
MOST_REQUESTS = 100_000_000
"""More, made by multiplying a rate, would not fit into the memory of most machines."""
UNNAMED = ("",)
"""The models of a trace that names none."""
LEAST_EPOCH_S = 1e9
"""Plain seconds from here on (September 2001) are seconds since 1970."""

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Codes = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order in which they came.

    `arrival_s`: seconds since the first, float64[requests], never falling. `work_s`: for how long each keeps one slot
    of a replica busy, float32[requests]. `model`: an index into `models` for each, int32[requests]. `origin`: when the
    first came (seconds since 1970; 0 where the trace says no date). `notes`: what a reader should know, in sentences.
    """

    name: str
    arrival_s: Floats
    work_s: Singles
    model: Codes
    models: tuple[str, ...] = UNNAMED
    origin: float = 0.0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def length_s(self) -> float:
        """From the first request to the last, in seconds."""
        return float(self.arrival_s[-1])


def trace_of(
    name: str,
    at: Floats,
    work_s: Singles,
    model: Codes | None = None,
    models: Sequence[str] = UNNAMED,
    *,
    dated: bool = False,
) -> Trace:
    """A trace of requests that came `at` these times (seconds, in any order), with notes on what was odd about them.

    `dated`: the times are seconds since 1970, as large numbers are without being called so. Raises InvalidInput where
    there is no request.
    """
    if not len(at):
        raise InvalidInput(f"{name} holds no request", remedy="give a trace with a line for each request")
    notes = []
    model = model if model is not None else np.zeros(len(at), np.int32)
    early = int(np.count_nonzero(np.diff(at) < 0))
    if early:
        order = np.argsort(at, kind="stable")
        at, work_s, model = at[order], work_s[order], model[order]
        were = "request was" if early == 1 else "requests were"
        notes.append(f"{early} {were} earlier than the one above: sorted by time")
    first = float(at[0])
    arrival_s = at - first
    if arrival_s[-1] > MOST_DAYS * 86_400:
        index = int(np.argmax(np.diff(at)))
        what = (
            f"{name} spans {arrival_s[-1] / 86_400:.0f} days, and its longest hole is from {at[index]:.0f} to "
            f"{at[index + 1]:.0f} (seconds{' since 1970' if dated else ''})"
        )
        remedy = f"leave out what is wrong, or give {MOST_DAYS} days at most"
        raise InvalidInput(what, field="timestamp", remedy=remedy)
    notes += _holes(arrival_s)
    origin = first if dated or first >= LEAST_EPOCH_S else 0.0
    return Trace(
        name=name,
        arrival_s=arrival_s,
        work_s=work_s,
        model=model,
        models=tuple(models),
        origin=origin,
        notes=tuple(notes),
    )


def _holes(arrival_s: Floats) -> list[str]:
    gaps = np.diff(arrival_s)
    if not len(gaps):
        return []
    found = np.flatnonzero(gaps >= max(HOLE_S, HOLE_GAPS * arrival_s[-1] / len(gaps)))
    told = [
        f"no request for {gaps[each]:.0f} s, {arrival_s[each]:.0f} s after the first: taken as no traffic"
        for each in found[:HOLES_TOLD]
    ]
    return [*told, f"{len(found) - HOLES_TOLD} more such holes"] if len(found) > HOLES_TOLD else told


def multiplied(trace: Trace, factor: float, seed: int = 1) -> Trace:
    """The trace at `factor` times its rate: copies of it, each moved by a random time and wrapped around at the end,
    laid over each other; for the rest of `factor`, a random part of one more copy.

    So every copy keeps its bursts, but not at the same moment: as from so many independent groups of users.
    """
    if not 0 < factor <= 10_000:
        what = f"a rate can't be multiplied by {factor:g}"
        raise InvalidInput(what, field="--rate-multiplier", remedy="give a number above 0, at most 10000")
    if factor * len(trace) > MOST_REQUESTS:
        what = f"{factor:g} times {len(trace)} requests are more than the {MOST_REQUESTS} that can be replayed"
        raise InvalidInput(what, field="--rate-multiplier", remedy="give a smaller one")
    if factor == 1:
        return trace
    random = np.random.default_rng(seed)
    length_s = trace.length_s + trace.length_s / max(len(trace) - 1, 1)
    at, taken = [], []
    for number in range(math.ceil(factor)):
        part = min(factor - number, 1.0)
        chosen = np.arange(len(trace)) if part == 1 else np.flatnonzero(random.random(len(trace)) < part)
        moved = random.uniform(0, length_s) if number else 0.0
        at.append((trace.arrival_s[chosen] + moved) % length_s if length_s else trace.arrival_s[chosen])
        taken.append(chosen)
    times, chosen = np.concatenate(at), np.concatenate(taken)
    if not len(times):
        what = f"{factor:g} times the rate of {trace.name} leaves no request"
        raise InvalidInput(what, field="--rate-multiplier", remedy="give a larger one")
    how = "a random part of the requests" if factor < 1 else "copies laid over each other, each moved by a random time"
    order = np.argsort(times, kind="stable")
    chosen = chosen[order]
    return replace(
        _from_first(trace, times[order]),
        work_s=trace.work_s[chosen],
        model=trace.model[chosen],
        notes=(*trace.notes, f"rate × {factor:g}: {how}"),
    )


def only(trace: Trace, model: str) -> Trace:
    """The requests for one model. Raises InvalidInput where there is none."""
    if model not in trace.models:
        if trace.models == UNNAMED:
            what = f"{trace.name} does not say which models its requests are for"
            raise InvalidInput(what, field="--model", remedy="leave it away")
        names = ", ".join(trace.models[:10]) + (", …" if len(trace.models) > 10 else "")
        raise InvalidInput(f"{trace.name} has no request for {model!r}", field="--model", remedy=f"one of {names}")
    chosen = trace.model == trace.models.index(model)
    arrival_s = trace.arrival_s[chosen]
    return replace(
        _from_first(trace, arrival_s),
        work_s=trace.work_s[chosen],
        model=np.zeros(len(arrival_s), np.int32),
        models=(model,),
    )


def _from_first(trace: Trace, arrival_s: Floats) -> Trace:
    """The trace with these arrivals, of which the first is its begin."""
    first = float(arrival_s[0])
    return replace(trace, arrival_s=arrival_s - first, origin=trace.origin + first if trace.origin else 0.0)
