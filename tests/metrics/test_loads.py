"""From counters to a fleet's load."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from controlplane.core.entry import InstanceGroup
from controlplane.core.models import Cost, FleetRecord, FleetShape, Goal, History, Manifest
from controlplane.core.names import Key
from controlplane.core.routes import Pace
from controlplane.core.scaling.capacity import MOST_USED, Executions
from controlplane.metrics.batches import Batches, BatchMeter, parse_batches, since
from controlplane.metrics.counters import Counters
from controlplane.metrics.loads import LoadMeter
from controlplane.metrics.readings import Interval
from tests.core.world import manifest

M = Key("m", 1)
NOW = 1_000_000.0
COSTS = {"d": Cost(fixed_s=0.0, each_s=0.1, executions=100)}
RECORD = FleetRecord(shape=FleetShape(name="cpu", goal=Goal(queue_ms=1e6)), costs=COSTS)
"""A goal so lax that a copy may do all that it can: 10 requests a second."""


MADE = {M: ("d", manifest("m"))}


def interval(after: Counters, before: Counters | None = None, *, at: float = NOW, window_s: float = 2.0) -> Interval:
    return Interval(at=at, window_s=window_s, before={M: before} if before else {}, after={M: after})


def measure(
    meter: LoadMeter,
    *,
    record: FleetRecord = RECORD,
    made: Mapping[Key, tuple[str, Manifest]] = MADE,
    held: int = 0,
    refused: Mapping[Key, float] | None = None,
    now: float = NOW,
    **intervals: Any,
) -> Any:
    return meter.measure(
        record,
        {name: each for name, each in intervals.items() if each is not None},
        manifests=made,
        serving=frozenset(intervals),
        held={M: held} if held else {},
        refused=refused,
        now=now,
    )


def test_demand_is_what_arrives_of_all_replicas_in_replicas() -> None:
    one = interval(Counters(success=30), Counters(success=10))
    two = interval(Counters(success=10, pending=10), Counters(success=10))
    load = measure(LoadMeter(step_s=2.0), a=one, b=two)
    assert load.rate_per_s == 15, "what was answered, and by how many more wait now"
    assert load.demand == pytest.approx(1.5 / MOST_USED, rel=0.01)
    assert load.waiting == 10
    assert load.backlog_s == pytest.approx(1.0)
    assert load.complete


def test_what_fails_was_asked_for_all_the_same() -> None:
    """Else a fleet whose model raises for every request would shrink, and go to zero, while it is asked."""
    failing, well = (interval(each, Counters()) for each in (Counters(failures=20), Counters(success=20)))
    load = measure(LoadMeter(step_s=2.0), a=failing)
    assert (load.rate_per_s, load.demand) == (10, measure(LoadMeter(step_s=2.0), a=well).demand)
    assert load.asked and load.use == {M: 20}
    assert (load.answered, load.met) == (0, None), "a goal is for what was served"
    record = replace(RECORD, costs={})
    meter = LoadMeter(step_s=2.0)
    measure(meter, record=record, a=failing)
    assert meter.is_curious([failing]), "what it costs can be known"


def test_what_fails_quickly_is_not_taken_for_more_than_a_copy_can_do() -> None:
    """400 a second fail at once, of a model that takes 0.1 s for what it can answer: that keeps no 40 replicas busy."""
    meter = LoadMeter(step_s=2.0)
    storm = interval(Counters(success=2, failures=800), Counters())
    load = measure(meter, a=storm)
    assert load.rate_per_s == 10 and load.demand == pytest.approx(1 / MOST_USED, rel=0.01)
    assert meter.is_curious([storm]), "they may take another time"
    assert not meter.is_curious([interval(Counters(success=20, failures=4), Counters())])


def test_what_was_given_up_in_a_queue_counts_as_much_as_what_was_refused() -> None:
    """Clients that don't wait for long ask again at once, and count each time."""
    given_up = interval(Counters(success=4, not_run=400), Counters())
    one, other = (
        measure(LoadMeter(step_s=2.0), a=given_up),
        measure(LoadMeter(step_s=2.0), a=interval(Counters(success=4)), refused={M: 200.0}),
    )
    assert one.rate_per_s == other.rate_per_s == 4 and one.demand == other.demand


def test_requests_that_bring_several_items_need_more() -> None:
    """A request of five items takes five times as long as one, where nothing is fixed."""
    one, five = (interval(Counters(success=20, inferences=20 * items, executions=20)) for items in (1, 5))
    single, several = measure(LoadMeter(step_s=2.0), a=one), measure(LoadMeter(step_s=2.0), a=five)
    assert several.rate_per_s == single.rate_per_s
    assert several.demand == pytest.approx(5 * single.demand, rel=0.01)
    waiting = interval(Counters(success=20, inferences=100, executions=20, pending=10))
    assert measure(LoadMeter(step_s=2.0), a=waiting).backlog_s == pytest.approx(5.0)


def test_how_many_requests_a_replica_executes_at_once() -> None:
    asked = interval(Counters(success=20), Counters(success=10))
    assert measure(LoadMeter(step_s=2.0), a=asked).at_once == 1.0, "it has one instance"
    four = manifest("m", instances=(InstanceGroup(kind="CPU", count=4),))
    load = measure(LoadMeter(step_s=2.0), made={M: ("d", four)}, a=asked)
    assert load.at_once == pytest.approx(4 * MOST_USED, rel=0.01)
    assert measure(LoadMeter(step_s=2.0), a=interval(Counters())).at_once == 1.0, "nothing is asked"


def test_requests_at_the_gateways_wait_too() -> None:
    load = measure(LoadMeter(step_s=2.0), held=20)
    assert (load.held, load.demand) == (20, 0)
    assert load.backlog_s == pytest.approx(2.0)
    assert load.asked


def test_a_model_whose_cost_is_not_known_is_asked_for_all_the_same() -> None:
    record = replace(RECORD, costs={})
    load = measure(LoadMeter(step_s=2.0), record=record, a=interval(Counters(pending=3)))
    assert load.demand == 0 and load.asked


def test_many_that_are_asked_too_seldom_to_know_their_cost_are_a_load_together() -> None:
    """Each of 200 models was asked once, in two seconds, and computed for 50 ms; a replica has one instance of each."""
    keys = [Key(f"m{number}", 1) for number in range(200)]
    once = Counters(success=1, executions=1, inferences=1, compute_us=50_000, request_us=60_000)
    batched = replace(once, success=4, inferences=4, compute_us=4 * 50_000)  # a batch's time counts for each of it
    made = {key: (key.model, manifest(key.model)) for key in keys}
    for counted in (once, batched):
        asked = Interval(at=NOW, window_s=2.0, before={}, after=dict.fromkeys(keys, counted))
        load = measure(LoadMeter(step_s=2.0), record=replace(RECORD, costs={}), made=made, a=asked)
        assert load.demand == pytest.approx(200 * 0.05 / 2.0 / MOST_USED)


def test_a_goal_of_requests_in_flight() -> None:
    record = replace(RECORD, shape=replace(RECORD.shape, goal=Goal(in_flight=4)))
    load = measure(LoadMeter(step_s=2.0), record=record, a=interval(Counters(success=8, request_us=16e6)))
    assert load.demand == pytest.approx(2.0), "8 in flight"
    assert load.at_once == 4
    assert load.met is None


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        pytest.param(Goal(queue_ms=50), 0.25, id="time in the queue"),
        pytest.param(Goal(latency_ms=120), 0.25, id="latency"),
        pytest.param(Goal(latency_ms=500), 1.0, id="both within"),
    ],
)
def test_the_share_that_met_the_goal(goal: Goal, met: float) -> None:
    record = replace(RECORD, shape=replace(RECORD.shape, goal=goal))
    quick = interval(Counters(success=10, queue_us=10 * 5e3, request_us=10 * 100e3))
    slow = interval(Counters(success=30, queue_us=30 * 90e3, request_us=30 * 200e3))
    assert measure(LoadMeter(step_s=2.0), record=record, a=quick, b=slow).met == met


def test_what_was_read_once_counts_once_and_silence_makes_the_load_old() -> None:
    meter = LoadMeter(step_s=2.0)
    first = measure(meter, a=interval(Counters(success=20)))
    again = measure(meter, a=interval(Counters(success=20)), now=NOW + 2)
    assert again is first
    other = measure(meter, a=interval(Counters(success=20)), b=interval(Counters(success=4), at=NOW + 6), now=NOW + 6)
    assert other.at == NOW + 6 and other.rate_per_s == 2
    assert not other.complete, "a serves, and has not told for long"


def test_an_empty_fleet_has_a_fresh_load_of_nothing() -> None:
    load = measure(LoadMeter(step_s=2.0))
    assert load.at == NOW and load.complete and not load.asked


def test_what_is_missing_is_not_remembered_as_nothing() -> None:
    meter = LoadMeter(step_s=2.0)
    asked = interval(Counters(success=30), Counters(success=10))
    whole = measure(meter, a=asked, b=asked)
    for step in (2.0, 4.0):
        later = interval(Counters(success=50), Counters(success=30), at=NOW + 4.0 + step)
        part = measure(meter, a=later, b=asked, now=NOW + 4.0 + step)
    assert not part.complete and part.demand == pytest.approx(whole.demand / 2)
    assert part.features == pytest.approx(whole.features), "the past has no gap"


def test_counters_that_go_back_count_what_they_count_now() -> None:
    load = measure(LoadMeter(step_s=2.0), a=interval(Counters(success=4), Counters(success=900)))
    assert load.rate_per_s == 2


def test_starts_are_known_from_measurement() -> None:
    meter = LoadMeter(step_s=2.0)
    assert not measure(meter).started
    assert measure(meter, record=replace(RECORD, start_s=33.0), now=NOW + 2).start_s == 33.0
    meter.starts.extend((4.0, 5.0, 60.0))
    load = measure(meter, now=NOW + 4)
    assert load.started and load.start_s == 5.0


PAGE = """{"model_stats":[{"name":"m","version":"1","last_inference":1,"inference_count":10,"execution_count":4,
"inference_stats":{"success":{"count":10,"ns":9}},"batch_stats":[
{"batch_size":1,"compute_input":{"count":2,"ns":1000},"compute_infer":{"count":2,"ns":18000},
"compute_output":{"count":2,"ns":1000}},
{"batch_size":4,"compute_input":{"count":2,"ns":0},"compute_infer":{"count":2,"ns":80000},
"compute_output":{"count":2,"ns":0}}],"memory_usage":[]},
{"name":"e","version":"1","batch_stats":[]}]}"""


def test_a_page_of_statistics_becomes_batches() -> None:
    page = parse_batches(PAGE)
    assert page[M][1] == Executions(size=1, count=2, total_s=2e-5)
    assert page[M][4].total_s == 8e-5
    assert page[Key("e", 1)] == {}
    with pytest.raises(ValueError, match="model_stats"):
        parse_batches("{}")


def pages(*counts: int) -> Iterator[Mapping[str, Mapping[Key, Batches]]]:
    """A server's page after so many more executions, again and again, each of a second."""
    for count in itertools.accumulate(counts):
        yield {"a": {M: {1: Executions(size=1, count=count, total_s=float(count))}}}


def test_batches_of_all_servers_add_up() -> None:
    meter = BatchMeter()
    meter.take({"a": parse_batches(PAGE), "b": parse_batches(PAGE)}, NOW)
    assert (meter.totals[M][1].count, meter.totals[M][4].count) == (4, 4)
    meter.forget_others(())
    assert not meter.totals


def test_the_past_fades_but_for_the_last_executions() -> None:
    meter = BatchMeter()
    for turn, page in enumerate(pages(100, 100, 0)):
        meter.take(page, NOW + turn)
        assert meter.executed_at == ({M: NOW + 1} if turn else {}), "the first page does not tell when that was"
    assert meter.totals[M][1].count == pytest.approx(100 * 0.9 + 100), "nothing new: nothing is forgotten"
    seldom = BatchMeter()
    for page in pages(*[1] * 200):
        seldom.take(page, NOW)
    assert 50 <= seldom.totals[M][1].count <= 60, "what is asked seldom is known all the same"


def test_a_version_that_was_loaded_anew_counts_from_zero() -> None:
    before = {1: Executions(size=1, count=9, total_s=9.0), 2: Executions(size=2, count=1, total_s=1.0)}
    after = {1: Executions(size=1, count=2, total_s=2.0)}
    assert since(after, before) == after
    assert since({**before, 1: Executions(size=1, count=10, total_s=10.0)}, before)[1].count == 1


@pytest.mark.parametrize(
    ("executions", "each_s", "known"),
    [
        pytest.param(3, 0.5, False, id="the first ones after a load"),
        pytest.param(20, 0.01, True, id="many"),
        pytest.param(3, 5.0, True, id="few, but long"),
    ],
)
def test_what_an_execution_costs_is_known_from_enough_of_them(executions: int, each_s: float, known: bool) -> None:
    meter = LoadMeter(step_s=2.0)
    meter.batches.take({"a": {M: {1: Executions(size=1, count=executions, total_s=executions * each_s)}}}, NOW)
    told = interval(Counters(success=4))
    load = measure(meter, record=replace(RECORD, costs={}), a=told)
    assert (load.demand > 0, bool(load.costs), meter.is_curious([told])) == (known, known, not known)
    assert not meter.is_curious([interval(Counters())]), "nothing was asked"
    recorded = measure(meter, a=interval(Counters(success=4), at=NOW + 2), now=NOW + 2)
    assert recorded.demand > 0, "what is on record is known anyway"


def test_replicas_that_compute_slower_than_others_are_told() -> None:
    meter, read = LoadMeter(step_s=2.0), Counters(success=1)

    def pages(count: int) -> dict[str, dict[Key, dict[int, Executions]]]:
        """What the servers have executed so far."""
        return {
            name: {M: {1: Executions(size=1, count=count, total_s=count * mean_s)}}
            for name, mean_s in (("a", 0.01), ("b", 0.05))
        }

    for turn in range(5):
        now = NOW + 10 * turn
        meter.batches.take(pages(20 * (turn + 1)), now)
        load = measure(meter, a=interval(read, at=now), b=interval(read, at=now), now=now)
        assert ("b" in load.slow) == (turn >= 3), "for half a minute"
    assert load.slow == {"b": pytest.approx(5)}


def test_what_a_controller_before_has_written_down_is_known_and_written_on() -> None:
    slot = int(NOW // 300)
    meter, yesterday = LoadMeter(step_s=2.0), History(first=slot - 288, most=(3.0, 4.0))
    load = measure(meter)
    assert load.seasons == {} and load.history is None
    load = measure(meter, record=replace(RECORD, history=yesterday))
    assert load.seasons["yesterday"] == 3.0
    for step in range(1, 400):  # more than two slots, and a start ahead
        load = measure(meter, record=replace(RECORD, history=yesterday), now=NOW + 2 * step)
    assert load.history.first == slot - 288
    assert load.history.most[:2] == (3.0, 4.0)
    assert set(load.history.most[2:288]) == {None}
    assert load.history.last > slot and load.history.most[288:] == (0.0,) * (load.history.last - slot + 1)


def test_what_gateways_refuse_arrives_too_but_who_asks_again_and_again_counts_once() -> None:
    asked = interval(Counters(success=20))
    plain = measure(LoadMeter(step_s=2.0), a=asked)
    more = [measure(LoadMeter(step_s=2.0), refused={M: per_s}, a=asked) for per_s in (5.0, 1000.0)]
    assert [load.rate_per_s for load in (plain, *more)] == [10, 15, 20]
    assert [load.demand / plain.demand for load in more] == [pytest.approx(1.5), pytest.approx(2.0)]
    assert measure(LoadMeter(step_s=2.0), refused={Key("other", 1): 5.0}, a=asked).rate_per_s == 10


def test_what_is_crowded_is_not_known_until_all_were_read_once() -> None:
    meter, crowded = LoadMeter(step_s=2.0), {M: Pace(per_s=10, at_once=1)}

    def read(turn: int, **others: Any) -> Any:
        before, after = (Counters(success=20 * (turn + each), pending=100) for each in (0, 1))
        return measure(meter, a=interval(after, before, at=NOW + 2 * turn), now=NOW + 2 * turn, **others)

    assert read(0, b=interval(Counters(), window_s=0.0)).crowded is None
    assert read(1).crowded == crowded
    assert read(2, b=interval(Counters(), window_s=0.0)).crowded == crowded
