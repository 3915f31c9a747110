"""What is said of a model's batching."""

from __future__ import annotations

from dataclasses import replace
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


def test_what_was_executed_long_ago_is_told_with_its_age() -> None:
    what = measured(HELPS, None, 1, 2)
    assert "nothing since" not in explain(entry(), replace(what, age_s=100.0))[0].text
    assert explain(entry(), replace(what, age_s=3600.0))[0].text.endswith("(nothing since 60 min ago)")


@pytest.mark.parametrize(
    ("of", "what", "code", "said"),
    [
        pytest.param(entry(), measured(HELPS, 0.9, 1, 2), "LONGER_DELAY", "delay_us: 20000", id="small batches"),
        pytest.param(entry(), measured(HELPS, 0.9, 14, 16), "LARGER_BATCHES", "above 16", id="full batches"),
        pytest.param(entry(), measured(HELPS, 0.2, 1, 2), "KEEP_BATCHING", "20%", id="little to do"),
        pytest.param(entry(), measured(HELPS, None, 1, 2), "BATCHING_UNKNOWN", "not known", id="load not known"),
        pytest.param(entry(delay_us=30_000), measured(HELPS, 0.9, 1, 2), "MORE_INSTANCES", "replicas", id="waits"),
        pytest.param(
            entry(delay_us=30_000), replace(measured(HELPS, 0.9, 1, 2), used=0.2), "KEEP_BATCHING", "20%", id="has room"
        ),
        pytest.param(
            entry(delay_us=30_000), replace(measured(HELPS, 0.9, 1, 2), used=0.8), "MORE_INSTANCES", "90%", id="used up"
        ),
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
    assert first.code == "BATCHING" and "ms for each item" in first.text
    assert advice.code == code and said in advice.text


def padded(*sizes: int) -> Batching:
    """Up to 4 take 10 ms, and all above 80 ms."""
    executions = [Executions(size=size, count=100, total_s=1.0 if size <= 4 else 8.0) for size in sizes]
    return Batching(executions=executions, cost=fit(executions), duty=0.3, limit_ms=100)


WAITS, FOUR, FOUR_WAITING = entry(delay_us=50_000), entry(16, 0, (4,)), entry(16, 500, (4,))
SEVERAL_ITEMS = replace(measured(HELPS, 0.9, 4), items=4.0)


@pytest.mark.parametrize(
    ("of", "what", "code", "said"),
    [
        pytest.param(WAITS, measured(HELPS, 0.3, 4), "PREFERRED_SIZE", "[4, 16]", id="few clients"),
        pytest.param(WAITS, measured(HELPS, 0.9, 4), "PREFERRED_SIZE", "50 ms", id="few, and busy"),
        pytest.param(entry(16, 50_000, (8,)), measured(HELPS, 0.3, 4), "PREFERRED_SIZE", "[4, 8]", id="8 was chosen"),
        pytest.param(WAITS, measured(HELPS, 0.3, 1), "NO_DELAY", "`max_queue_delay_us: 0` would", id="one client"),
        pytest.param(entry(16, 50_000, (2, 16)), measured(HELPS, 0.3, 1), "NO_DELAY", "without", id="and preferred"),
        pytest.param(entry(delay_us=2_000), measured(HELPS, 0.3, 4), "KEEP_BATCHING", "", id="hardly any delay"),
        pytest.param(WAITS, measured(HELPS, 0.3, 3, 4), "KEEP_BATCHING", "", id="several sizes"),
        pytest.param(WAITS, measured(HELPS, 0.3, 16), "KEEP_BATCHING", "", id="as large as can be"),
        pytest.param(WAITS, measured(HARDLY, 0.3, 3, 4), "NO_DELAY", "hardly", id="no gain, and waits"),
        pytest.param(WAITS, SEVERAL_ITEMS, "MORE_INSTANCES", "", id="clients make the batches"),
        pytest.param(entry(16, 50_000, (4, 16)), measured(HELPS, 0.3, 4), "KEEP_BATCHING", "", id="preferred"),
        pytest.param(entry(), padded(1, 4, 16), "PREFERRED_SIZE", "`preferred_batch_size: [4]`, which", id="padded"),
        pytest.param(entry(), padded(1, 4, 9), "PREFERRED_SIZE", "[4]", id="padded, and never full"),
        pytest.param(entry(), measured(HELPS, 0.3, 4, 9, 16), "KEEP_BATCHING", "", id="not padded"),
        pytest.param(entry(delay_us=500), padded(1, 4, 16), "PREFERRED_SIZE", "`max_queue_delay_us: 0`", id="waits"),
        pytest.param(FOUR_WAITING, padded(4, 5), "PREFERRED_SIZE", "try `max_queue_delay_us: 0`", id="one more"),
        pytest.param(entry(), replace(padded(4, 16), items=4.0), "KEEP_BATCHING", "", id="padded by clients"),
        pytest.param(FOUR, measured(HELPS, 0.9, 4), "TRY_LARGER_BATCHES", "unless that was set", id="held back"),
        pytest.param(FOUR, measured(HELPS, 0.9, 3, 4), "TRY_LARGER_BATCHES", "try without", id="and seen"),
        pytest.param(FOUR_WAITING, measured(HELPS, 0.9, 4, 5), "TRY_LARGER_BATCHES", "[4, 16]", id="and one more"),
        pytest.param(FOUR, measured(HELPS, 0.3, 4), "KEEP_BATCHING", "", id="held back, and idle"),
        pytest.param(FOUR, measured(HELPS, 0.9, 1, 2), "MORE_INSTANCES", "", id="not held back, and not to wait"),
        pytest.param(entry(16, 0, (16,)), measured(HELPS, 0.9, 16), "LARGER_BATCHES", "with it", id="full, preferred"),
        pytest.param(entry(), measured(HELPS, 0.9, 4), "MORE_INSTANCES", "", id="no more clients to wait for"),
        pytest.param(entry(decoupled=True, **UNBATCHED), measured(HELPS, 0.9, 1), "KEEP_BATCHING", "", id="decoupled"),
    ],
)
def test_preferred_sizes(of: Entry, what: Batching, code: str, said: str) -> None:
    advice = explain(of, what)[1]
    assert advice.code == code and said in advice.text, advice.text


@pytest.mark.parametrize("duty", [0.3, 0.98])
@pytest.mark.parametrize("sizes", [(4,), (1, 4), (2, 3, 4)], ids=str)
def test_what_was_followed_is_not_taken_back(sizes: tuple[int, ...], duty: float) -> None:
    """Larger batches are dearer, and nobody has seen that of this version; so nothing is said as if it were known."""
    assert explain(entry(), padded(1, 4, 16))[1].code == "PREFERRED_SIZE"
    after = explain(FOUR, replace(padded(*sizes), duty=duty))
    assert after[1].code in ("KEEP_BATCHING", "MORE_INSTANCES", "TRY_LARGER_BATCHES")
    assert "of 16 do" not in after[0].text, "of what was never executed nothing is told"


@pytest.mark.parametrize(
    "executions",
    [
        pytest.param([Executions(size=4, count=9, total_s=0.09), Executions(size=16, count=99, total_s=9)], id="few"),
        pytest.param(
            [Executions(size=4, count=99, total_s=1), Executions(size=16, count=60, total_s=3.2)], id="a stall"
        ),
        pytest.param(
            [Executions(size=4, count=600, total_s=9)]
            + [Executions(size=size, count=5, total_s=1.3) for size in range(5, 17)],
            id="the first of each size",
        ),
    ],
)
def test_noise_is_no_reason(executions: list[Executions]) -> None:
    what = Batching(executions=executions, cost=fit(executions), duty=0.3, limit_ms=100)
    assert explain(entry(), what)[1].code == "KEEP_BATCHING"


def test_a_size_that_is_worse_than_single_items_is_not_the_best() -> None:
    executions = [Executions(size=size, count=100, total_s=100 * s) for size, s in ((1, 0.010), (2, 0.024), (8, 0.16))]
    what = Batching(executions=executions, cost=fit(executions), duty=0.9, limit_ms=100)
    assert explain(entry(), what)[1].code == "MORE_INSTANCES"


def test_what_is_preferred_is_not_what_batching_could_do() -> None:
    of, what = entry(16, 0, (1, 8)), measured(HELPS, 0.9, 1)
    assert explain(of, what)[1].code == "TRY_LARGER_BATCHES"
    more = replace(what, executions=[*what.executions, Executions(size=4, count=60, total_s=60 * HELPS.of(4))])
    assert explain(of, replace(more, cost=fit(more.executions)))[1].code != "MORE_INSTANCES"


def test_a_size_that_has_faded_away_tells_nothing() -> None:
    executions = [Executions(size=8, count=600, total_s=12), Executions(size=1, count=0.001, total_s=0.0003)]
    text = explain(entry(), Batching(executions=executions, cost=fit(executions), duty=0.3, limit_ms=100))[0].text
    assert "1 (0%)" not in text and "as far as batches of one size can tell" in text


def test_what_it_rests_on_is_said() -> None:
    text = explain(entry(), measured(HELPS, 0.9, 1, 2, 4))[0].text
    assert "batches of 2.3 items on average" in text and "20 ms and 1 ms" in text
    assert "full batches of 16 do 9.3 times" in text


def test_too_little_says_nothing() -> None:
    (reason,) = explain(entry(), Batching(executions=(), cost=None, duty=None, limit_ms=100))
    assert "too little" in reason.text
