"""Whether batching helps a model, and which of its settings should be another: said with what it rests on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from controlplane.core.entry import Entry
from controlplane.core.models import Cost
from controlplane.core.names import Reason
from controlplane.core.scaling.capacity import Executions

HELPS = 1.2
"""Batching is worth it where full batches do so many times what single requests do."""
BUSY = 0.7
"""Instances that compute for this share of the time are close to what they can do."""
NEARLY_FULL = 0.8
SHOWN = 4
LONGEST_DELAY = 0.5
"""A batch is never waited for longer than this part of what the goal leaves to the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """What was measured of one version: executions by batch size (faded), their `cost` (None: too few to tell), and the
    share of the time that its instances computed, `duty` (None: not known). `limit_ms` is what the goal leaves to the
    queue."""

    executions: Collection[Executions]
    cost: Cost | None
    duty: float | None
    limit_ms: float


def explain(entry: Entry, measured: Batching) -> tuple[Reason, ...]:
    """In sentences: which batches there were and what they cost, and what should be changed, if anything."""
    told = sorted((each for each in measured.executions if each.count > 0), key=lambda each: -each.count)
    cost = measured.cost
    if not told or cost is None:
        return (Reason(code="BATCHING", text="too little has been executed to say whether batching helps"),)
    count = sum(each.count for each in told)
    mean = sum(each.size * each.count for each in told) / count
    sizes = ", ".join(f"{each.size} ({each.count / count:.0%})" for each in told[:SHOWN])
    largest = max(entry.max_batch_size, 1)
    text = (
        f"{entry.name} is executed in batches of {mean:.1f} on average, most often {sizes}; "
        f"an execution takes {cost.fixed_s * 1e3:.2f} ms and {cost.each_s * 1e3:.2f} ms for each request"
    )
    if len(told) == 1:
        text += ", as far as batches of one size can tell"
    elif largest > 1:
        text += f", so full batches of {largest} do {_gain(cost, largest):.1f} times what single requests do"
    return (Reason(code="BATCHING", text=text), _advice(entry, measured, cost, mean=mean, alike=len(told) == 1))


def _gain(cost: Cost, size: int) -> float:
    return size * cost.of(1) / cost.of(size)


def _advice(entry: Entry, measured: Batching, cost: Cost, *, mean: float, alike: bool) -> Reason:
    busy = measured.duty is not None and measured.duty >= BUSY
    load = f"its instances compute {measured.duty:.0%} of the time" if measured.duty is not None else "its load is low"
    batching, largest = entry.dynamic_batching, max(entry.max_batch_size, 1)
    keep = Reason(code="KEEP_BATCHING", text=f"nothing about its batching has to change: {load}")
    if entry.sequence_batching is not None or entry.backend == "ensemble":
        return keep
    if batching is None:
        if not busy:
            return keep
        how = "`dynamic_batching: {}`"
        how = how if largest > 1 else f"`max_batch_size` and {how}, if it takes batches,"
        text = f"it is not batched, and {load}: try {how} and look again, or more `instances` or replicas"
        return Reason(code="TRY_BATCHING", text=text)
    if not alike and _gain(cost, largest) < HELPS:
        if batching.max_queue_delay_us:
            text = "batching hardly helps it: set `max_queue_delay_us: 0`, waiting for a batch only adds to the latency"
            return Reason(code="NO_DELAY", text=text)
        if busy:
            text = f"batching hardly helps it, and {load}: more `instances` or replicas would"
            return Reason(code="MORE_INSTANCES", text=text)
        return keep
    if not busy:
        return keep
    if mean >= NEARLY_FULL * largest:
        text = f"its batches are nearly full, and {load}: raise `max_batch_size` above {largest}, if its memory allows"
        return Reason(code="LARGER_BATCHES", text=text)
    delay_us = min(cost.fixed_s * 1e6, measured.limit_ms * 1e3 * LONGEST_DELAY)
    if delay_us > 2 * batching.max_queue_delay_us and delay_us >= 1:
        text = (
            f"{load} with small batches: `max_queue_delay_us: {delay_us:.0f}` would make them larger, for a delay no "
            "longer than what an execution takes anyway"
        )
        return Reason(code="LONGER_DELAY", text=text)
    return Reason(code="MORE_INSTANCES", text=f"its batching is as good as it gets, and {load}: add replicas")
