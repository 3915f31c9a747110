"""What is said of a model's batching."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.core.entry import DynamicBatching, Entry, SequenceBatching
from controlplane.core.models import Cost
from controlplane.core.scaling.batching import Batching, explain
from controlplane.core.scaling.capacity import Executions, fit

UNBATCHED: dict[str, Any] = {"dynamic_batching": None}
HELPS, HARDLY = Cost(fixed_s=0.020, each_s=0.001), Cost(fixed_s=0.0001, each_s=0.010)


def entry(size: int = 16, delay_us: int = 0, preferred: tuple[int, ...] = (), **more: Any) -> Entry:
    batching = DynamicBatching(max_queue_delay_us=delay_us, preferred_batch_size=preferred)
    fields: dict[str, Any] = {"dynamic_batching": batching} | more
    return Entry(name="m", backend="python", max_batch_size=size, **fields)


def measured(cost: Cost, duty: float | None, *sizes: int) -> Batching:
    executions = [Executions(size=size, count=100, total_s=100 * cost.of(size)) for size in sizes]
    return Batching(executions=executions, cost=fit(executions), duty=duty, limit_ms=100)


@pytest.mark.parametrize(
    ("of", "what", "code", "said"),
    [
        pytest.param(entry(), measured(HELPS, 0.9, 1, 2), "LONGER_DELAY", "delay_us: 20000", id="small batches"),
        pytest.param(entry(), measured(HELPS, 0.9, 14, 16), "LARGER_BATCHES", "above 16", id="full batches"),
        pytest.param(entry(), measured(HELPS, 0.2, 1, 2), "KEEP_BATCHING", "20%", id="little to do"),
        pytest.param(entry(), measured(HELPS, None, 1, 2), "KEEP_BATCHING", "low", id="load not known"),
        pytest.param(entry(delay_us=30_000), measured(HELPS, 0.9, 1, 2), "MORE_INSTANCES", "replicas", id="waits"),
        pytest.param(entry(delay_us=500), measured(HARDLY, 0.2, 1, 2), "NO_DELAY", "delay_us: 0", id="no gain"),
        pytest.param(entry(), measured(HARDLY, 0.9, 1, 2), "MORE_INSTANCES", "instances", id="no gain, and busy"),
        pytest.param(
            entry(**UNBATCHED),
            measured(HELPS, 0.9, 1),
            "TRY_BATCHING",
            "dynamic_batching: {}",
            id="not batched",
        ),
        pytest.param(
            entry(size=0, **UNBATCHED),
            measured(HELPS, 0.9, 1),
            "TRY_BATCHING",
            "max_batch_size",
            id="no batches",
        ),
        pytest.param(
            entry(**UNBATCHED, sequence_batching=SequenceBatching()),
            measured(HELPS, 0.9, 1),
            "KEEP_BATCHING",
            "",
            id="sequences",
        ),
    ],
)
def test_advice(of: Entry, what: Batching, code: str, said: str) -> None:
    first, advice = explain(of, what)
    assert first.code == "BATCHING" and "ms for each request" in first.text
    assert advice.code == code and said in advice.text


def padded(*sizes: int) -> Batching:
    """Up to 4 take 10 ms, and all above 40 ms."""
    executions = [Executions(size=size, count=100, total_s=1.0 if size <= 4 else 4.0) for size in sizes]
    return Batching(executions=executions, cost=fit(executions), duty=0.3, limit_ms=100)


@pytest.mark.parametrize(
    ("of", "what", "code", "said"),
    [
        pytest.param(entry(delay_us=50_000), measured(HELPS, 0.3, 4), "PREFERRED_SIZE", "[4, 16]", id="few clients"),
        pytest.param(entry(delay_us=50_000), measured(HELPS, 0.9, 4), "PREFERRED_SIZE", "50 ms", id="few, and busy"),
        pytest.param(entry(delay_us=50_000), measured(HELPS, 0.3, 1), "NO_DELAY", "delay_us: 0", id="one client"),
        pytest.param(entry(delay_us=2_000), measured(HELPS, 0.3, 4), "KEEP_BATCHING", "", id="hardly any delay"),
        pytest.param(entry(delay_us=50_000), measured(HELPS, 0.3, 3, 4), "KEEP_BATCHING", "", id="several sizes"),
        pytest.param(entry(delay_us=50_000), measured(HELPS, 0.3, 16), "KEEP_BATCHING", "", id="as large as can be"),
        pytest.param(entry(16, 50_000, (4, 16)), measured(HELPS, 0.3, 4), "KEEP_BATCHING", "", id="preferred already"),
        pytest.param(entry(), padded(1, 4, 9), "PREFERRED_SIZE", "set `preferred_batch_size: [4]`, which", id="padded"),
        pytest.param(entry(delay_us=500), padded(1, 4, 9), "PREFERRED_SIZE", "`max_queue_delay_us: 0`", id="and waits"),
        pytest.param(
            entry(16, 500, (4,)), padded(4, 5), "PREFERRED_SIZE", "set `max_queue_delay_us: 0`", id="one more"
        ),
        pytest.param(entry(16, 0, (4,)), padded(1, 4, 9), "KEEP_BATCHING", "", id="padded, and kept"),
        pytest.param(entry(16, 0, (4,)), measured(HELPS, 0.9, 4), "PREFERRED_SIZE", "without it", id="held back"),
        pytest.param(entry(16, 0, (4,)), measured(HELPS, 0.9, 3, 4), "PREFERRED_SIZE", "2.7 times", id="by how much"),
        pytest.param(entry(16, 500, (4,)), measured(HELPS, 0.9, 4, 5), "PREFERRED_SIZE", "[4, 16]", id="and one more"),
        pytest.param(entry(16, 0, (4,)), measured(HELPS, 0.3, 4), "KEEP_BATCHING", "", id="held back, and idle"),
        pytest.param(entry(16, 0, (4,)), measured(HELPS, 0.9, 1, 2), "LONGER_DELAY", "", id="not held back"),
    ],
)
def test_preferred_sizes(of: Entry, what: Batching, code: str, said: str) -> None:
    advice = explain(of, what)[1]
    assert advice.code == code and said in advice.text, advice.text


def test_a_size_that_was_hardly_seen_is_not_believed() -> None:
    seldom = [Executions(size=4, count=5, total_s=0.05), Executions(size=9, count=100, total_s=4.0)]
    assert explain(entry(), Batching(executions=seldom, cost=fit(seldom), duty=0.3, limit_ms=100))[1].code != (
        "PREFERRED_SIZE"
    )


def test_what_it_rests_on_is_said() -> None:
    text = explain(entry(), measured(HELPS, 0.9, 1, 2, 4))[0].text
    assert "batches of 2.3 on average" in text and "20.00 ms and 1.00 ms" in text
    assert "full batches of 16 do 9.3 times" in text


def test_too_little_says_nothing() -> None:
    (reason,) = explain(entry(), Batching(executions=(), cost=None, duty=None, limit_ms=100))
    assert "too little" in reason.text
