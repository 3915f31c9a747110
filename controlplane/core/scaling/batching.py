"""Whether batching helps a model, and which of its settings should be another: said with what it rests on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from controlplane.core.entry import DynamicBatching, Entry
from controlplane.core.models import Cost
from controlplane.core.names import Reason
from controlplane.core.scaling.capacity import Executions, full_batch

HELPS = 1.2
"""Batching is worth it where full batches do so many times what single requests do."""
BUSY = 0.7
"""Instances that compute for this share of the time are close to what they can do."""
NEARLY_FULL = 0.8
SAME = 0.8
"""Where so much of the batches is of one size, that size is no chance."""
ENOUGH = 20.0
"""Executions of which a size is believed."""
WORTH = 0.1
"""A delay that is a smaller part of an execution is not worth a change."""
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
    sizes = sorted((each for each in measured.executions if each.count > 0), key=lambda each: -each.count)
    if not sizes or measured.cost is None:
        return (Reason(code="BATCHING", text="too little has been executed to say whether batching helps"),)
    case = _Case(entry, measured, measured.cost, tuple(sizes))
    return (_what_it_is(case), next(advice for rule in _RULES if (advice := rule(case)) is not None))


@dataclass(frozen=True)
class _Case:
    """What was measured, the commonest batch size first."""

    entry: Entry
    measured: Batching
    cost: Cost
    sizes: tuple[Executions, ...]

    @cached_property
    def executions(self) -> float:
        return sum(each.count for each in self.sizes)

    @cached_property
    def mean(self) -> float:
        return sum(each.size * each.count for each in self.sizes) / self.executions

    @property
    def largest(self) -> int:
        return max(self.entry.max_batch_size, 1)

    @property
    def alike(self) -> bool:
        """Batches of one size do not tell what others would cost."""
        return len(self.sizes) == 1

    @property
    def busy(self) -> bool:
        return self.measured.duty is not None and self.measured.duty >= BUSY

    @property
    def load(self) -> str:
        if self.measured.duty is None:
            return "its load is low"
        return f"its instances compute {min(self.measured.duty, 1.0):.0%} of the time"

    @property
    def batching(self) -> DynamicBatching:
        return self.entry.dynamic_batching or DynamicBatching()

    def gain(self, size: int, *, than: int = 1) -> float:
        """How many times as much batches of `size` do as those of another size."""
        return (size / self.cost.of(size)) / (than / self.cost.of(than))


def _what_it_is(case: _Case) -> Reason:
    sizes = ", ".join(f"{each.size} ({each.count / case.executions:.0%})" for each in case.sizes[:SHOWN])
    text = (
        f"{case.entry.name} is executed in batches of {case.mean:.1f} on average, most often {sizes}; an execution "
        f"takes {case.cost.fixed_s * 1e3:.2f} ms and {case.cost.each_s * 1e3:.2f} ms for each request"
    )
    if case.alike:
        text += ", as far as batches of one size can tell"
    elif case.largest > 1:
        text += f", so full batches of {case.largest} do {case.gain(case.largest):.1f} times what single requests do"
    return Reason(code="BATCHING", text=text)


def _not_batched(case: _Case) -> Reason | None:
    if case.entry.sequence_batching is not None or case.entry.backend == "ensemble":
        return _as_it_is(case)
    if case.entry.dynamic_batching is not None:
        return None
    if not case.busy:
        return _as_it_is(case)
    how = "`dynamic_batching: {}`"
    how = how if case.largest > 1 else f"`max_batch_size` and {how}, if it takes batches,"
    text = f"it is not batched, and {case.load}: try {how} and look again, or more `instances` or replicas"
    return Reason(code="TRY_BATCHING", text=text)


def _best_size(case: _Case) -> Reason | None:
    """Where larger batches take longer for each request (padded shapes, what a cache can hold), keep to the best."""
    best = min((each for each in case.sizes if each.count >= ENOUGH), key=_each_s, default=None)
    if best is None or best.size == 1:
        return None
    above = [each for each in case.sizes if each.size > best.size]
    if sum(each.count for each in above) < ENOUGH:
        return None
    above_s = sum(each.total_s for each in above) / sum(each.size * each.count for each in above)
    if above_s < HELPS * _each_s(best):
        return None
    preferred, waits = case.batching.preferred_batch_size == (best.size,), case.batching.max_queue_delay_us > 0
    if preferred and not waits:
        return None  # those were from before, or of requests that bring several items
    change = [] if preferred else [f"`preferred_batch_size: [{best.size}]`"]
    change += ["`max_queue_delay_us: 0` (with a delay, one more comes in)"] if waits else []
    text = (
        f"batches of {best.size} take {_each_s(best) * 1e3:.2f} ms for each request, and larger ones "
        f"{above_s * 1e3:.2f} ms: set {' and '.join(change)}, which keeps them at {best.size}"
    )
    return Reason(code="PREFERRED_SIZE", text=text)


def _complete(case: _Case) -> Reason | None:
    """Where nearly all batches are of one size and wait the whole delay for more that never come: so many clients there
    are."""
    usual, batching = case.sizes[0], case.batching
    if usual.count < max(ENOUGH, SAME * case.executions):
        return None
    if usual.size >= full_batch(case.entry) or usual.size in batching.preferred_batch_size:
        return None
    delay_s = batching.max_queue_delay_us / 1e6
    if delay_s < WORTH * usual.total_s / usual.count:
        return None
    share = usual.count / case.executions
    waits = f"{share:.0%} of its batches are of {usual.size}, and each waits {delay_s * 1e3:g} ms for more"
    if usual.size == 1:
        return Reason(code="NO_DELAY", text=f"{waits}: `max_queue_delay_us: 0` would save that")
    text = f"{waits}: `preferred_batch_size: [{usual.size}, {case.largest}]` would send them when they are complete"
    return Reason(code="PREFERRED_SIZE", text=text)


def _no_gain(case: _Case) -> Reason | None:
    if case.alike or case.gain(case.largest) >= HELPS:
        return None
    if case.batching.max_queue_delay_us:
        text = "batching hardly helps it: set `max_queue_delay_us: 0`, waiting for a batch only adds to the latency"
        return Reason(code="NO_DELAY", text=text)
    if case.busy:
        text = f"batching hardly helps it, and {case.load}: more `instances` or replicas would"
        return Reason(code="MORE_INSTANCES", text=text)
    return _as_it_is(case)


def _not_busy(case: _Case) -> Reason | None:
    return None if case.busy else _as_it_is(case)


def _held_back(case: _Case) -> Reason | None:
    """Where what is preferred keeps the batches smaller than they should be."""
    full = full_batch(case.entry)
    if full == case.largest or case.mean < NEARLY_FULL * full:
        return None
    if not case.alike and case.gain(case.largest, than=full) < HELPS:
        return None
    sizes = ", ".join(str(size) for size in case.batching.preferred_batch_size)
    how = "without it"
    if case.batching.max_queue_delay_us:
        how = f"with `preferred_batch_size: [{sizes}, {case.largest}]`"
    text = (
        f"{case.load}, and `preferred_batch_size: [{sizes}]` keeps its batches at {case.mean:.1f}: {how} they can be "
        f"of {case.largest}"
    )
    if not case.alike:
        text += f", which do {case.gain(case.largest, than=full):.1f} times as much"
    return Reason(code="PREFERRED_SIZE", text=text)


def _larger(case: _Case) -> Reason | None:
    if case.mean < NEARLY_FULL * case.largest:
        return None
    text = (
        f"its batches are nearly full, and {case.load}: raise `max_batch_size` above {case.largest}, if its memory "
        "allows"
    )
    return Reason(code="LARGER_BATCHES", text=text)


def _longer_delay(case: _Case) -> Reason | None:
    delay_us = min(case.cost.fixed_s * 1e6, case.measured.limit_ms * 1e3 * LONGEST_DELAY)
    if delay_us < 1 or delay_us <= 2 * case.batching.max_queue_delay_us:
        return None
    text = (
        f"{case.load} with small batches: `max_queue_delay_us: {delay_us:.0f}` would make them larger, for a delay no "
        "longer than what an execution takes anyway"
    )
    return Reason(code="LONGER_DELAY", text=text)


def _more_replicas(case: _Case) -> Reason:
    return Reason(code="MORE_INSTANCES", text=f"its batching is as good as it gets, and {case.load}: add replicas")


_RULES = (
    _not_batched,
    _best_size,
    _complete,
    _no_gain,
    _not_busy,
    _held_back,
    _larger,
    _longer_delay,
    _more_replicas,
)
"""The first that has something to say is what is advised."""


def _as_it_is(case: _Case) -> Reason:
    return Reason(code="KEEP_BATCHING", text=f"nothing about its batching has to change: {case.load}")


def _each_s(executions: Executions) -> float:
    """Seconds that a batch of this size takes for each of its requests."""
    return executions.total_s / (executions.size * executions.count)
