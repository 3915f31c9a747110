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
DEARER = 1.5
"""Large batches are dearer where an item takes so many times as long: less can come from a machine that is busy just
when batches are large."""
BUSY = 0.7
"""Instances that compute for this share of the time are close to what they can do."""
NEARLY_FULL = 0.8
NEARLY_ALL = 0.8
"""Where so much of the executions is of one size, that is how many clients there are."""
SURE = 50.0
"""A size was executed so often that one slow execution does not decide."""
SOME = 20.0
"""A size among others was executed so often that it counts."""
WORTH = 0.1
"""A delay that is a smaller part of an execution is not worth a change."""
SHOWN = 4
FRESH_S = 120.0
"""What was executed longer ago is told with its age, where that is known."""
LONGEST_DELAY = 0.5
"""A batch is never waited for longer than this part of what the goal leaves to the queue."""
SINGLE = 1.1
"""Items of a request, in the mean: with more, batches are as large as clients make them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """What was measured of one version: executions by batch size (faded), their `cost` (None: too few to tell), the
    share of the time that its instances computed, `duty` (None: not known), which share of what its copies could do in
    full batches was asked of them, `used` (None: not known), and how many `items` a request brings. `limit_ms` is what
    the goal leaves to the queue; `age_s`: how long ago the last executions were."""

    executions: Collection[Executions]
    cost: Cost | None
    duty: float | None
    limit_ms: float
    used: float | None = None
    items: float = 1.0
    age_s: float = 0.0


def explain(entry: Entry, measured: Batching) -> tuple[Reason, ...]:
    """In sentences: which batches there were and what they cost, and what should be changed, if anything."""
    # Of what has faded to less than one execution nothing can be said, if there is anything else.
    told = [each for each in measured.executions if each.count >= 1] or [
        each for each in measured.executions if each.count
    ]
    if not told or measured.cost is None:
        return (Reason(code="BATCHING", text="too little has been executed to say whether batching helps"),)
    case = _Case(entry, measured, measured.cost, tuple(sorted(told, key=lambda each: -each.count)))
    return (_what_it_is(case), next(advice for rule in _RULES if (advice := rule(case)) is not None))


@dataclass(frozen=True)
class _Case:
    """What was measured; `told` begins with the commonest batch size."""

    entry: Entry
    measured: Batching
    cost: Cost
    told: tuple[Executions, ...]

    @cached_property
    def executions(self) -> float:
        return sum(each.count for each in self.told)

    @cached_property
    def mean(self) -> float:
        return sum(each.size * each.count for each in self.told) / self.executions

    @property
    def largest(self) -> int:
        return max(self.entry.max_batch_size, 1)

    @cached_property
    def full(self) -> int:
        return full_batch(self.entry)

    @property
    def batching(self) -> DynamicBatching:
        return self.entry.dynamic_batching or DynamicBatching()

    @property
    def alike(self) -> bool:
        """Batches of one size do not tell what others would cost."""
        return len(self.told) == 1

    @property
    def single(self) -> bool:
        """Whether requests bring one item each, so that the server makes the batches."""
        return self.measured.items <= SINGLE

    @property
    def busy(self) -> bool:
        return self.measured.duty is not None and self.measured.duty >= BUSY

    @property
    def load(self) -> str:
        if self.measured.duty is None:
            return "how much of the time its instances compute is not known"
        return f"its instances compute {min(self.measured.duty, 1.0):.0%} of the time"

    def item_s(self, size: int) -> float:
        """How long an item takes in batches of this size: as measured, or as the others let expect."""
        seen = next((each for each in self.told if each.size == size and each.count >= SURE), None)
        return _item_s(seen) if seen is not None else self.cost.of(size) / size

    def gain(self, size: int, *, than: int = 1) -> float:
        """How many times as much batches of `size` do as those of another size."""
        return self.item_s(than) / self.item_s(size)


def _what_it_is(case: _Case) -> Reason:
    sizes = ", ".join(f"{each.size} ({each.count / case.executions:.0%})" for each in case.told[:SHOWN])
    text = (
        f"{case.entry.name} is executed in batches of {case.mean:.1f} items on average, most often {sizes}; an "
        f"execution takes {_ms(case.cost.fixed_s)} and {_ms(case.cost.each_s)} for each item"
    )
    if case.alike:
        text += ", as far as batches of one size can tell"
    elif case.full > 1:
        text += f", so full batches of {case.full} do {case.gain(case.full):.1f} times what single items do"
    if case.measured.age_s > FRESH_S:
        text += f" (nothing since {case.measured.age_s / 60:.0f} min ago)"
    return Reason(code="BATCHING", text=text)


def _nothing_to_judge(case: _Case) -> Reason | None:
    """Sequences are batched by slots, ensembles by their steps, and what answers several times has no durations."""
    if case.entry.sequence_batching is None and case.entry.backend != "ensemble" and not case.entry.decoupled:
        return None
    return _as_it_is(case)


def _not_batched(case: _Case) -> Reason | None:
    if case.entry.dynamic_batching is not None:
        return None
    if not case.busy:
        return _as_it_is(case)
    how = "`dynamic_batching: {}`"
    how = how if case.largest > 1 else f"`max_batch_size` and {how}, if it takes batches,"
    text = f"it is not batched, and {case.load}: try {how} and look again, or more `instances` or replicas"
    return Reason(code="TRY_BATCHING", text=text)


def _best_size(case: _Case) -> Reason | None:
    """Where an item takes longer in all larger batches (padded shapes, what a cache can hold)."""
    sure = [each for each in case.told if each.count >= SURE and each.size > 1]
    best = min(sure, key=_item_s, default=None)
    if best is None or not case.single or case.item_s(1) <= _item_s(best):
        return None
    above = [each for each in case.told if each.size > best.size and each.count >= SOME]
    least_s = min(map(_item_s, above), default=0.0)
    if sum(each.count for each in above) < SURE or least_s < DEARER * _item_s(best):
        return None
    change = [] if case.batching.preferred_batch_size == (best.size,) else [f"`preferred_batch_size: [{best.size}]`"]
    change += ["`max_queue_delay_us: 0` (with a delay, one more comes in)"] if case.batching.max_queue_delay_us else []
    if not change:
        return None
    text = (
        f"in batches of {best.size} an item takes {_ms(_item_s(best))}, in larger ones at least {_ms(least_s)}: try "
        f"{' and '.join(change)}, which keeps them at {best.size}"
    )
    return Reason(code="PREFERRED_SIZE", text=text)


def _no_gain(case: _Case) -> Reason | None:
    if case.alike or max(case.gain(case.full), case.gain(case.largest)) >= HELPS:
        return None
    if case.batching.max_queue_delay_us:
        text = f"batching hardly helps it: set {_no_delay(case)}, waiting for a batch only adds to the latency"
        return Reason(code="NO_DELAY", text=text)
    if case.busy:
        text = f"batching hardly helps it, and {case.load}: more `instances` or replicas would"
        return Reason(code="MORE_INSTANCES", text=text)
    return _as_it_is(case)


def _waits_in_vain(case: _Case) -> Reason | None:
    """Where nearly all batches are of one size and wait the whole delay for more that never come."""
    usual, batching = case.told[0], case.batching
    if not case.single or not _is_usual(case) or usual.size >= case.full or usual.size in batching.preferred_batch_size:
        return None
    delay_s = batching.max_queue_delay_us / 1e6
    if delay_s < WORTH * usual.total_s / usual.count:
        return None
    share = usual.count / case.executions
    waits = f"{share:.0%} of its batches are of {usual.size}, and each waits {_ms(delay_s)} for more"
    if usual.size == 1:
        return Reason(code="NO_DELAY", text=f"{waits}: {_no_delay(case)} would save that")
    sizes = _sizes({usual.size, *(batching.preferred_batch_size or (case.largest,))})
    text = f"{waits}: `preferred_batch_size: {sizes}` would send them when they are complete"
    return Reason(code="PREFERRED_SIZE", text=text)


def _not_busy(case: _Case) -> Reason | None:
    return None if case.busy else _as_it_is(case)


def _held_back(case: _Case) -> Reason | None:
    """Where what is preferred keeps batches small. What larger ones would cost nobody has seen."""
    preferred = case.batching.preferred_batch_size
    if case.full == case.largest or case.mean < NEARLY_FULL * case.full or not case.single:
        return None
    if not case.alike and case.gain(case.largest, than=case.full) < HELPS:
        return None
    how = (
        f"`preferred_batch_size: {_sizes({*preferred, case.largest})}`"
        if case.batching.max_queue_delay_us
        else "without"
    )
    text = (
        f"{case.load}, and `preferred_batch_size: {_sizes(preferred)}` keeps its batches at {case.full}: unless that "
        f"was set because larger ones take longer for each item, try {how}, so that they can be of {case.largest}"
    )
    return Reason(code="TRY_LARGER_BATCHES", text=text)


def _larger(case: _Case) -> Reason | None:
    if case.full < case.largest or case.mean < NEARLY_FULL * case.largest:
        return None
    also = ", and the largest preferred size with it" if case.batching.preferred_batch_size else ""
    text = (
        f"its batches are nearly full, and {case.load}: raise `max_batch_size` above {case.largest}{also}, if its "
        "memory allows"
    )
    return Reason(code="LARGER_BATCHES", text=text)


def _longer_delay(case: _Case) -> Reason | None:
    if case.full < case.largest or _is_usual(case) or not case.single:
        return None  # kept small on purpose, or there are no more clients that could be waited for
    delay_us = min(case.cost.fixed_s * 1e6, case.measured.limit_ms * 1e3 * LONGEST_DELAY)
    if delay_us < 1 or delay_us <= 2 * case.batching.max_queue_delay_us:
        return None
    text = (
        f"{case.load} with small batches: `max_queue_delay_us: {delay_us:.0f}` would make them larger, for a delay no "
        "longer than what an execution takes in any case"
    )
    return Reason(code="LONGER_DELAY", text=text)


def _has_room(case: _Case) -> Reason | None:
    """Where instances are always busy with small batches, which grow when more is asked."""
    used = case.measured.used
    if used is None or used >= BUSY:
        return None
    text = f"{_KEEP}: {case.load}, with small batches; larger ones, when more is asked, leave room: {used:.0%} is used"
    return Reason(code="KEEP_BATCHING", text=text)


def _more_replicas(case: _Case) -> Reason:
    text = f"no other batching is known to do better, and {case.load}: add `instances` or replicas"
    return Reason(code="MORE_INSTANCES", text=text)


_RULES = (
    _nothing_to_judge,
    _not_batched,
    _best_size,
    _no_gain,
    _waits_in_vain,
    _not_busy,
    _held_back,
    _larger,
    _longer_delay,
    _has_room,
    _more_replicas,
)
"""The first that has something to say is what is advised."""


_KEEP = "nothing about its batching has to change"


def _as_it_is(case: _Case) -> Reason:
    if case.measured.duty is None:
        return Reason(code="BATCHING_UNKNOWN", text=f"nothing is advised about its batching: {case.load}")
    return Reason(code="KEEP_BATCHING", text=f"{_KEEP}: {case.load}")


def _is_usual(case: _Case) -> bool:
    """Whether nearly all batches are of the commonest size."""
    return case.told[0].count >= max(SURE, NEARLY_ALL * case.executions)


def _no_delay(case: _Case) -> str:
    # Without a delay the smallest preferred size is all that is ever sent.
    also = " without `preferred_batch_size`" if case.batching.preferred_batch_size else ""
    return f"`max_queue_delay_us: 0`{also}"


def _item_s(executions: Executions) -> float:
    """Seconds that a batch of this size takes for each of its items."""
    return executions.total_s / (executions.size * executions.count)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _sizes(sizes: Collection[int]) -> str:
    return f"[{', '.join(map(str, sorted(sizes)))}]"
