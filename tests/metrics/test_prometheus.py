"""Counters through a real Prometheus, which scrapes real pages that the test writes; and through one that lies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from controlplane.core.load import Load
from controlplane.core.models import FleetRecord, FleetShape
from controlplane.core.names import Key
from controlplane.metrics.counters import Counters, parse_counters
from controlplane.metrics.loads import LoadMeter
from controlplane.metrics.prometheus import PrometheusSource
from controlplane.metrics.readings import Interval
from controlplane.metrics.scrape import Scraper, read_pages
from controlplane.metrics.series import Series, readings_of
from controlplane.metrics.source import Source
from tests.prometheus import Page, Prometheus, prometheus
from tests.waiting import until

M1, M2 = Key("m", 1), Key("m", 2)


def page(**versions: float) -> str:
    """A page on which version v1, v2, … has answered so many requests, half of each on one of two GPUs."""
    lines = []
    for name, count in versions.items():
        labels = f'model="m",version="{name[1:]}"'
        lines += [
            f"nv_inference_request_success{{{labels}}} {count}",
            f'nv_inference_exec_count{{{labels},gpu_uuid="GPU-a"}} {count / 2}',
            f'nv_inference_exec_count{{{labels},gpu_uuid="GPU-b"}} {count / 2}',
            f"nv_inference_compute_input_duration_us{{{labels}}} {count * 10}",
            f"nv_inference_compute_infer_duration_us{{{labels}}} {count * 100}",
            f"nv_inference_pending_request_count{{{labels}}} 3",
        ]
    return "\n".join([*lines, 'nv_gpu_utilization{gpu_uuid="GPU-a"} 0.5', ""])


def counted(count: float) -> Counters:
    return Counters(success=count, executions=count, compute_us=count * 110, pending=3)


class Reader:
    """Reads a source as the controller does, for one replica."""

    def __init__(self, source: Source, name: str, target: Page) -> None:
        self.source = source
        self.name = name
        self.target = target
        self._loop = asyncio.new_event_loop()

    def read(self) -> Interval | None:
        self._loop.run_until_complete(self.source.scrape({self.name: self.target.url}))
        return self.source.intervals.get(self.name)

    def until(self, condition: Callable[[Interval], bool], what: str = "") -> Interval:
        def look() -> Interval | None:
            found = self.read()
            return found if found is not None and condition(found) else None

        found = until(look, what=what)
        assert found is not None
        return found

    def until_problem(self, text: str) -> None:
        until(lambda: (self.read(), text in self.source.problem)[1], what=f"{text!r} is not said")

    def close(self) -> None:
        self._loop.close()


@dataclass
class World:
    """A Prometheus with replicas enough for each test to have one of its own: new targets take seconds."""

    prometheus: Prometheus
    replicas: dict[str, Page]
    moved: dict[str, Page]
    """By replica: a page at another address that is scraped for it, too; silent (503) at first."""
    stray: Page
    """One that carries no label `replica`."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with prometheus(tmp_path_factory.mktemp("prometheus")) as made:
        replicas = {f"cpu-{number}": Page(page(v1=10)) for number in range(8)}
        moved = {name: Page(None) for name in replicas}
        stray = Page(page(v1=1000))
        targets = {each: {"fleet": "cpu", "replica": name} for name, each in [*replicas.items(), *moved.items()]}
        made.scrape({**targets, stray: {"fleet": "cpu"}})
        until(lambda: made.value("count(up)") == len(targets) + 2, what="not all are scraped")
        yield World(made, dict(replicas), moved, stray)
        for each in (*replicas.values(), *moved.values(), stray):
            each.close()


@pytest.fixture
def reader(world: World) -> Iterator[Reader]:
    """A replica of the test's own, with 10 requests answered, scraped already."""
    name, target = world.replicas.popitem()
    made = Reader(PrometheusSource(lambda: world.prometheus.url), name, target)
    made.until(lambda each: True, "nothing was scraped")
    yield made
    made.close()


def test_counters_are_as_on_the_page_with_the_time_of_the_scrape(reader: Reader) -> None:
    first = reader.read()
    assert first is not None and first.after == {M1: counted(10)}
    reader.target.text = page(v1=30, v2=4)
    interval = reader.until(lambda each: M2 in each.after)
    assert interval.after == {M1: counted(30), M2: counted(4)}
    assert first.at < interval.at < time.time() + 1 and interval.window_s > 0
    assert interval.counted(M1).success == 20 and interval.counted(M2).success == 4


def test_both_sources_read_the_same(reader: Reader) -> None:
    direct = Reader(Scraper(), reader.name, reader.target)
    scraped, asked = direct.read(), reader.read()
    assert scraped is not None and asked is not None and scraped.after == asked.after
    direct.close()


def test_who_ends_keeps_an_interval_that_grows_old(world: World, reader: Reader) -> None:
    reader.target.close()
    until(lambda: world.prometheus.value(f'up{{replica="{reader.name}",instance="{reader.target.address}"}}') == 0)
    last = reader.read()
    assert last is not None and last.after == {M1: counted(10)}
    assert reader.read() is last and not reader.source.problem


def test_a_counter_that_goes_back_counts_from_its_new_start(reader: Reader) -> None:
    reader.target.text = page(v1=7)
    interval = reader.until(lambda each: each.after[M1].success == 7)
    assert interval.counted(M1).success == 7


def test_a_version_that_vanishes_from_the_page_is_gone_and_comes_back_from_zero(reader: Reader) -> None:
    reader.target.text = page(v1=12, v2=4)
    reader.until(lambda each: M2 in each.after)
    reader.target.text = page(v1=14)
    interval = reader.until(lambda each: each.after[M1].success == 14)
    assert set(interval.after) == {M1}, "Prometheus still knows the last samples of version 2, which are old"
    reader.target.text = page(v1=14, v2=1)
    assert reader.until(lambda each: M2 in each.after).counted(M2).success == 1


def test_a_server_without_models_is_read_too(reader: Reader) -> None:
    reader.target.text = page()
    gone = reader.until(lambda each: not each.after)
    later = reader.until(lambda each: each.at > gone.at)
    assert not later.after and not later.before
    reader.target.text = page(v1=2)
    assert reader.until(lambda each: M1 in each.after).counted(M1).success == 2


def test_a_replica_that_comes_back_at_another_address_is_not_counted_twice(world: World, reader: Reader) -> None:
    reader.target = world.moved[reader.name]
    reader.target.text = page(v1=3)
    interval = reader.until(lambda each: each.after[M1].success != 10)
    assert interval.after == {M1: counted(3)} and interval.counted(M1).success == 3


def test_who_is_not_asked_for_is_forgotten_and_series_without_a_replica_are_nobodys(
    world: World, reader: Reader
) -> None:
    assert world.prometheus.value('nv_inference_request_success{replica=""}') == 1000
    last = reader.read()
    assert last is not None and last.after == {M1: counted(10)}
    assert set(reader.source.intervals) == {reader.name}
    asyncio.run(reader.source.scrape({}))
    assert not reader.source.intervals


def test_away_slow_and_back_again(tmp_path: Path) -> None:
    with prometheus(tmp_path / "prometheus") as own:
        target = Page(page(v1=10))
        own.scrape({target: {"fleet": "cpu", "replica": "r"}})
        source = PrometheusSource(lambda: own.url, timeout_s=0.3)
        reader = Reader(source, "r", target)
        reader.until(lambda each: True)

        own.pause()
        reader.until_problem("no answer")
        last = reader.read()
        assert last is not None and reader.read() is last
        paused_at = last.at
        own.go_on()
        reader.until(lambda each: each.at > paused_at and not source.problem)

        own.kill()
        reader.until_problem("no connection")
        last = reader.read()
        assert last is not None and last.after == {M1: counted(10)}
        target.text = page(v1=25)
        own.start()
        seen_at = [last.at]  # what was scraped just before the end is read now at the earliest

        def answered_more(each: Interval) -> bool:
            if each.after[M1].success == 10:
                seen_at.append(each.at)
            return each.after[M1].success == 25

        interval = reader.until(answered_more)
        assert interval.counted(M1).success == 15 and interval.window_s == interval.at - seen_at[-1]
        target.close()
        reader.close()


def test_one_that_scrapes_every_five_seconds_is_fresh_for_as_long_as_it_takes(tmp_path: Path) -> None:
    with prometheus(tmp_path / "prometheus", interval_s=5) as own:
        target = Page(page(v1=10))
        own.scrape({target: {"fleet": "cpu", "replica": "r"}})
        reader, meter = Reader(PrometheusSource(lambda: own.url), "r", target), LoadMeter(step_s=2.0)

        def load() -> Load:
            return meter.measure(
                FleetRecord(shape=FleetShape(name="cpu")),
                reader.source.intervals,
                manifests={},
                serving=frozenset({"r"}),
                held={},
                now=time.time(),
            )

        seen = reader.until(lambda each: each.window_s > 0, "two scrapes")
        scraped_at = [at for at in own.times('up{replica="r"}') if at <= seen.at]
        assert seen.every_s == pytest.approx(min(after - before for before, after in pairwise(scraped_at)))
        assert load().complete
        until(lambda: time.time() - seen.at > 2 * meter.step_s, what="it does not grow old")
        meter.load = None  # judged anew, when the reading is older than what is read every two seconds may be
        assert load().complete or time.time() - seen.at > 2 * seen.every_s
        target.close()
        reader.close()


# What no healthy Prometheus says.


@pytest.fixture
def liar() -> Iterator[Reader]:
    """A source that asks a page of the test's own."""
    lying = Page()
    made = Reader(PrometheusSource(lambda: f"http://{lying.address}", timeout_s=5), "r", lying)
    yield made
    lying.close()
    made.close()


def answer(*values: tuple[float, str], **labels: str) -> str:
    metric = {"__name__": "nv_inference_request_success", "model": "m", "version": "1", "replica": "r", **labels}
    result = [{"metric": metric, "values": list(values)}]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "can't be understood", id="nothing"),
        pytest.param("<html>", "can't be understood", id="no JSON"),
        pytest.param("{}", "can't be understood", id="another JSON"),
        pytest.param('{"data": {"result": [{"metric": {}, "value": [1, "2"]}]}}', "can't be understood", id="a vector"),
        pytest.param('{"data":' * 100_000, "can't be understood", id="JSON without an end"),
        pytest.param('{"data": {"result": null}}', "can't be understood", id="null"),
        pytest.param(answer((2e9, "many")), "can't be understood", id="a value that is no number"),
    ],
)
def test_an_answer_that_is_none_changes_nothing(liar: Reader, text: str, said: str) -> None:
    liar.target.text = answer((time.time(), "5"))
    first = liar.read()
    assert first is not None and not liar.source.problem
    liar.target.text = text
    assert liar.read() is first
    assert said in liar.source.problem


def test_an_empty_answer_and_one_without_numbers_change_nothing(liar: Reader) -> None:
    liar.target.text = answer((time.time(), "5"))
    first = liar.read()
    liar.target.text = '{"data": {"result": []}}'
    assert liar.read() is first and not liar.source.problem


@contextmanager
def dripping() -> Iterator[tuple[str, list[socket.socket], threading.Event]]:
    """A server whose answers do not end: a byte now and then keeps each read of a socket within its time. Its address,
    who has asked, and what ends the answers."""
    stop, asked = threading.Event(), []

    def drip(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # who asks may go away
            while not stop.is_set():
                connection, _ = listener.accept()
                asked.append(connection)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                while not stop.wait(0.05):
                    connection.sendall(b" ")
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked, stop
        stop.set()
        thread.join(10)


def test_an_answer_without_an_end_holds_nobody_up() -> None:
    with dripping() as (url, asked, stop):
        reader = Reader(PrometheusSource(lambda: url, timeout_s=0.2), "r", Page())
        reader.until_problem("no whole answer")
        reader.read()
        assert len(asked) == 1, "one question at a time"
        stop.set()
        reader.until_problem("no answer in time")  # it has asked again
        reader.target.close()
        reader.close()


async def test_a_page_without_an_end_holds_no_other_up() -> None:
    good = Page(page(v1=10))
    with dripping() as (url, _, _):
        async with asyncio.timeout(30):
            found = await read_pages({"bad": url, "good": good.url}, parse_counters, timeout_s=5)
    assert {name: each for name, (_, each) in found.items()} == {"good": {M1: counted(10)}}
    good.close()


async def test_an_address_that_is_none_holds_no_other_up() -> None:
    good = Page(page(v1=10))
    found = await read_pages({"bad": "http://fd00::1:8002/metrics", "good": good.url}, parse_counters, timeout_s=5)
    assert found.keys() == {"good"}
    good.close()


def test_a_clock_ahead_is_not_believed(liar: Reader) -> None:
    liar.target.text = answer((time.time() + 600, "5"))
    assert liar.read() is None
    assert "s ahead" in liar.source.problem


def test_one_that_scrapes_too_seldom_is_told(liar: Reader) -> None:
    now = time.time()
    for _ in range(3):
        assert not liar.source.problem
        liar.target.text = answer((now - 100, "1"), (now - 10, "2"))
        liar.read()
    assert "too seldom" in liar.source.problem
    liar.target.text = answer((now - 4, "3"), (now - 2, "4"))
    liar.read()
    assert not liar.source.problem


def test_after_an_hour_away_the_interval_is_a_window_long_and_no_hour(liar: Reader) -> None:
    now = time.time()
    liar.target.text = answer((now - 3600, "5"))
    last = liar.read()
    liar.target.text = answer((now - 20, "1000"))
    assert liar.read() is last, "one reading alone tells nothing, not even zero"
    liar.target.text = answer((now - 20, "1000"), (now - 10, "1010"), (now - 1, "1020"))
    interval = liar.read()
    assert interval is not None and interval.window_s == pytest.approx(19)
    assert interval.counted(M1).success == 20


def test_the_first_reading_has_an_interval_already(liar: Reader) -> None:
    now = time.time()
    liar.target.text = answer((now - 20, "1000"), (now - 10, "3"), (now - 1, "9"))
    interval = liar.read()
    assert interval is not None and interval.counted(M1).success == 9, "the counter went back in between"


def test_before_prometheus_runs_there_is_nothing() -> None:
    source = PrometheusSource(lambda: None)
    asyncio.run(source.scrape({"r": "http://127.0.0.1:1/metrics"}))
    assert not source.intervals and "started" in source.problem


def series(at: float, value: float, **labels: str) -> Series:
    named = {"__name__": "nv_inference_request_success", "model": "m", "version": "1", "replica": "r", **labels}
    return Series(metric=named, values=[(at, value)])


def up(at: float, value: float, **labels: str) -> Series:
    return Series(metric={"__name__": "up", "replica": "r", **labels}, values=[(at, value)])


def test_who_was_never_scraped_well_was_not_read() -> None:
    assert readings_of([up(12, 0)], address="new:1") is None
    empty = readings_of([up(12, 1)], address="new:1")
    assert empty is not None and empty.at == 12 and not empty.latest


@pytest.mark.parametrize(
    ("found", "success"),
    [
        pytest.param(
            [series(10, 1, instance="new:1"), series(12, 9, instance="old:1")], 1, id="the address that was asked for"
        ),
        pytest.param(
            [series(10, 1, instance="a"), series(12, 9, instance="b")], 9, id="else who was scraped last: not both"
        ),
        pytest.param(
            [series(12, 9, job="x", instance="new:1"), series(10, 1, job="y", instance="new:1")], 9, id="two jobs"
        ),
        pytest.param(
            [series(12, 9, prometheus="a"), series(12, 9, prometheus="b")], 9, id="two Prometheuses' copies are one"
        ),
        pytest.param([series(12, 9, gpu_uuid="a"), series(12, 2, gpu_uuid="b")], 11, id="two GPUs add up"),
        pytest.param([series(12, 9), series(8, 5, version="2")], 9, id="what stopped has vanished"),
        pytest.param(
            [series(10, 1, instance="new:1"), up(12, 0, instance="new:1"), series(9, 8, instance="b")],
            8,
            id="a target whose scrapes fail is none",
        ),
        pytest.param([series(12, 9), series(12, 5, version="latest")], 9, id="a version that is none"),
    ],
)
def test_which_series_count(found: list[Series], success: float) -> None:
    readings = readings_of(found, address="new:1")
    assert readings is not None and readings.latest == {M1: Counters(success=success)}
