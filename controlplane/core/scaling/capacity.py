"""What one copy of a model can do: what an execution costs, by the size of its batch, and how many requests a second
that makes within a time in the queue.

An execution of a batch of b items takes about ``fixed + b · each`` of an instance's time; that is why batching helps,
and how much. It is fitted to what the server measured (Triton counts executions and their time by batch size).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.core.entry import DynamicBatching, Entry, QueuePolicy
from controlplane.core.models import Capabilities, Cost, Goal

MOST_USED = 0.95
"""No copy is planned for more than this share of what it can do: beyond it, a queue that has formed hardly shrinks."""
STEPS = 40
"""Halvings in the search for a rate: far below a thousandth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Executions:
    """How often batches of one size were computed, and how long that took altogether, in seconds."""

    size: int
    count: float
    total_s: float


def fit(measured: Iterable[Executions]) -> Cost | None:
    """Least squares over the mean times of the batch sizes, weighted by their counts. None: nothing was measured.

    Neither part can be negative. Where one size only was seen, nothing is taken to be fixed: batching has to show that
    it helps. A size of which not even one execution is left counts only beside its likes: however little it weighs, it
    would decide about the slope all the same.
    """
    told = [each for each in measured if each.count > 0]
    whole = [each for each in told if each.count >= 1]
    seen = [(each.size, each.count, each.total_s / each.count) for each in whole or told]
    weight = sum(count for _, count, _ in seen)
    if not weight:
        return None
    mean_size = sum(size * count for size, count, _ in seen) / weight
    mean_s = sum(time_s * count for _, count, time_s in seen) / weight
    spread = sum(count * (size - mean_size) ** 2 for size, count, _ in seen)
    both = sum(count * (size - mean_size) * (time_s - mean_s) for size, count, time_s in seen)
    each_s = max(both / spread, 0.0) if spread else mean_s / mean_size
    if each_s * mean_size >= mean_s:
        return Cost(fixed_s=0.0, each_s=mean_s / mean_size, executions=weight)
    return Cost(fixed_s=mean_s - each_s * mean_size, each_s=each_s, executions=weight)


def saturated_per_s(cost: Cost, *, max_batch: float, instances: float) -> float:
    """Requests a second when every instance is always busy with full batches."""
    return instances * max_batch / max(cost.of(max_batch), 1e-9)


def gathered(rate_per_s: float, cost: Cost, *, max_batch: float, instances: float) -> float:
    """The size of the batches at a steady rate."""
    free = instances - rate_per_s * cost.each_s
    size = rate_per_s * cost.fixed_s / free if free > 0 else max_batch
    return min(max(size, 1.0), max_batch)


def queue_s(rate_per_s: float, cost: Cost, *, max_batch: float, instances: float) -> float:
    """The mean time in the queue at a steady rate.

    While an instance computes, the next batch gathers: at this rate one of b = rate · time(b) / instances. What arrives
    waits for half an execution of one of the instances, if all of them are busy; and longer the closer the rate is to
    what is possible at all, as in a queue with random arrivals and constant service (Sakasegawa's approximation of
    M/D/c; it is exact for one instance).
    """
    used = rate_per_s / saturated_per_s(cost, max_batch=max_batch, instances=instances)
    if used >= 1:
        return float("inf")
    size = gathered(rate_per_s, cost, max_batch=max_batch, instances=instances)
    busy = min(rate_per_s * cost.of(size) / (size * instances), 1.0)
    all_busy = math.sqrt(2 * (instances + 1)) - 1
    waiting: float = max(used**all_busy / (1 - used), busy**all_busy)
    return cost.of(size) / 2 / instances * waiting


def within_per_s(cost: Cost, limit_s: float, *, max_batch: float, instances: float) -> float:
    """The highest rate at which the mean time in the queue stays within `limit_s`."""
    low, high = 0.0, MOST_USED * saturated_per_s(cost, max_batch=max_batch, instances=instances)
    for _ in range(STEPS):
        middle = (low + high) / 2
        if queue_s(middle, cost, max_batch=max_batch, instances=instances) <= limit_s:
            low = middle
        else:
            high = middle
    return low


def all_it_can(cost: Cost, entry: Entry, instances: int, *, items: float = 1.0) -> float:
    """Requests a second that one copy does when it is always busy. Each brings so many `items`, in the mean."""
    each, most = _of_requests(cost, entry, items)
    return saturated_per_s(each, max_batch=most, instances=instances)


def at_once(rate_per_s: float, cost: Cost, entry: Entry, instances: int, *, items: float = 1.0) -> float:
    """How many requests one copy executes at the same time in the mean, at a steady rate."""
    each, most = _of_requests(cost, entry, items)
    return rate_per_s * each.of(gathered(rate_per_s, each, max_batch=most, instances=instances))


def per_s(cost: Cost, goal: Goal, entry: Entry, instances: int, *, copies: int = 1, items: float = 1.0) -> float:
    """Requests a second that each of `copies` can take within the goal; for a goal of requests in flight, all that it
    can do. The more copies there are, the more each can, since a request goes to one that has little to do; but not as
    much as if all had one queue, so only the square root of their number counts.

    A goal for the whole latency leaves to the queue what one execution does not take; one that no execution can meet
    is taken as a tenth of an execution, or nothing would ever be enough.
    """
    each, most = _of_requests(cost, entry, items)
    if goal.queue_ms is not None:
        limit_s = goal.queue_ms / 1e3
    elif goal.latency_ms is not None:
        limit_s = max(goal.latency_ms / 1e3 - each.of(1), each.of(1) / 10)
    else:
        return all_it_can(cost, entry, instances, items=items)
    shared = math.sqrt(copies)
    return within_per_s(each, limit_s, max_batch=most, instances=instances * shared) / shared


def _of_requests(cost: Cost, entry: Entry, items: float) -> tuple[Cost, float]:
    """What a request costs that brings so many items, and how many of these a full batch holds. Triton counts items,
    and executes the smallest batch that holds a whole request."""
    return dataclasses.replace(cost, each_s=cost.each_s * items), max(full_batch(entry) / items, 1.0)


def full_batch(entry: Entry) -> int:
    """The size of the batches where there is always enough to do, of requests that bring one item.

    Where Triton prepares the next batch while one is executed, the smallest of several preferred sizes is taken as soon
    as it is there (triton-inference-server/server#3116); with a delay the largest decides, and one more comes in. It
    prepares none where requests have priorities or may wait for a limited time only, and looks at all that waits.
    Measured on 2.51, with the rate limiter that every server here has: `tests/render/test_batch_sizes.py`.
    """
    batching, largest = entry.dynamic_batching, max(entry.max_batch_size, 1)
    if batching is None:
        return 1
    preferred, waits = batching.preferred_batch_size, batching.max_queue_delay_us > 0
    if not preferred:
        return largest
    if _is_prepared(batching):
        return min(max(preferred) + 1, largest) if waits else min(preferred)
    return largest if waits else max(preferred)


def _is_prepared(batching: DynamicBatching) -> bool:
    policy = batching.default_queue_policy or QueuePolicy()
    limited = policy.default_timeout_us or policy.allow_timeout_override or policy.max_queue_size
    return not (batching.priority_levels or limited)


def instances_of(entry: Entry, capabilities: Capabilities | None) -> int:
    """How many instances of a model one replica runs."""
    gpus = capabilities.gpus if capabilities else 0

    def devices(kind: str, named: int) -> int:
        return named or (max(gpus, 1) if kind in ("GPU", "AUTO") else 1)

    return sum(each.count * devices(each.kind, len(each.gpus)) for each in entry.instances if not each.passive) or 1
