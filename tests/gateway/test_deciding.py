"""What the Python side decides by: resolving, sequences, envelopes, settings. Pure, by tables."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from tritonclient.grpc import service_pb2

from controlplane.core.errors import InvalidInput, NotFound, Overloaded, Unavailable
from controlplane.core.messages import Demand
from controlplane.core.routes import Endpoint, Route, RouteTable, Target
from gateway import wire
from gateway.forwarding import Forwarding
from gateway.holding import Holding
from gateway.http_side import HttpSide, TooLarge, sequence_mark
from gateway.replicas import ERRORS_IN_ROW, Replicas
from gateway.resolving import Resolved, by_rendezvous, resolve, share
from gateway.sequences import Seat, SequenceMark, Sequences
from gateway.settings import Settings, read_settings, write_settings


def endpoint(name: str, *, draining: bool = False) -> Endpoint:
    return Endpoint(replica=name, host="127.0.0.1", grpc_port=1, http_port=2, draining=draining)


A, B = endpoint("a"), endpoint("b")
TABLE = RouteTable(
    endpoints={"a": A, "b": B},
    pools={"one": ("a",), "both": ("a", "b")},
    routes={
        "m": Route(
            model="m",
            targets=(
                Target(version=1, pool="both", weight_percent=90),
                Target(version=2, pool="one", weight_percent=10),
            ),
            pinned={1: "both", 3: None},
            reasons={3: "it is being downloaded"},
        ),
        "young": Route(model="young", pinned={1: "one"}),
    },
)


@pytest.mark.parametrize(
    ("model", "wish", "draw", "version", "members"),
    [
        ("m", "", 0.0, 1, (A, B)),
        ("m", "", 89.9, 1, (A, B)),
        ("m", "", 90.0, 2, (A,)),
        ("m", "1", 99.0, 1, (A, B)),
        ("m", "2", 0.0, 2, (A,)),
        ("m", "3", 0.0, 3, ()),
        ("young", "1", 0.0, 1, (A,)),
    ],
)
def test_resolve(model: str, wish: str, draw: float, version: int, members: tuple[Endpoint, ...]) -> None:
    found = resolve(TABLE, model, wish, draw)
    assert (found.version, found.members) == (version, members)
    assert found.reason == ("it is being downloaded" if version == 3 else "")


@pytest.mark.parametrize(("model", "wish"), [("x", ""), ("m", "4"), ("m", "01"), ("m", "-1"), ("young", ""), ("", "")])
def test_resolve_refuses(model: str, wish: str) -> None:
    with pytest.raises(NotFound):
        resolve(TABLE, model, wish, 0.0)


@given(st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=6, unique=True), st.text(max_size=5), st.data())
def test_rendezvous_moves_only_what_it_must(names: list[str], key: str, data: st.DataObject) -> None:
    members = [endpoint(name) for name in names]
    gone = data.draw(st.sampled_from(names))
    before = by_rendezvous(members, key)[0].replica
    after = by_rendezvous([each for each in members if each.replica != gone], key)[0].replica
    assert before in {after, gone}
    assert by_rendezvous(list(reversed(members)), key)[0].replica == before


@given(st.text(max_size=20))
def test_a_share_is_a_percentage_that_stays(key: str) -> None:
    assert 0 <= share(key) < 100
    assert share(key) == share(key)


def resolved(*members: Endpoint) -> Resolved:
    return Resolved(model="m", version=1, members=members, sequences=True, sequence_idle_s=10.0)


def test_a_sequence_keeps_its_seat_until_its_end_or_its_time() -> None:
    sequences, go_on = Sequences(limit=10), SequenceMark(key="7")
    seat = Seat(replica="a", version=1, until=10.0)
    sequences.keep("m", SequenceMark(key="7", start=True), seat)
    assert sequences.seat("m", go_on, now=9.9) == seat
    assert sequences.seat("other", go_on, now=0.0) is None
    assert sequences.seat("m", SequenceMark(key="7", start=True), now=0.0) is None  # it begins anew
    assert sequences.seat("m", go_on, now=10.0) is None
    sequences.forget_idle(now=10.0)
    assert len(sequences) == 0
    sequences.keep("m", go_on, seat)
    sequences.keep("m", SequenceMark(key="7", end=True), seat)
    assert len(sequences) == 0


def test_the_table_of_sequences_is_bounded() -> None:
    sequences = Sequences(limit=3)
    for number in range(5):
        sequences.keep("m", SequenceMark(key=str(number)), Seat(replica="a", version=1, until=9.0))
    assert len(sequences) == 3
    assert sequences.seat("m", SequenceMark(key="1"), now=0.0) is None
    assert sequences.seat("m", SequenceMark(key="4"), now=0.0) is not None


def test_a_draining_replica_gets_no_new_sequence() -> None:
    sequences, members = Sequences(limit=10), (endpoint("a", draining=True), B)
    for number in range(20):
        assert sequences.choose(resolved(*members), SequenceMark(key=str(number), start=True)) == "b"
    goes_on = {sequences.choose(resolved(*members), SequenceMark(key=str(number))) for number in range(20)}
    assert goes_on == {"a", "b"}  # one that goes on is looked for where it may be
    assert sequences.choose(resolved(members[0]), SequenceMark(key="1", start=True)) is None


async def test_replicas_that_fail_are_put_away_but_never_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gateway.replicas.time.monotonic", lambda: now)
    replicas, c = Replicas(Settings()), endpoint("c")

    def fail(each: Endpoint, times: int = ERRORS_IN_ROW) -> None:
        for _ in range(times):
            replicas.heard(each, failed=True)

    fail(A, ERRORS_IN_ROW - 1)
    replicas.heard(A, failed=False)
    fail(A, ERRORS_IN_ROW - 1)
    assert replicas.well((A, B)) == (A, B)
    fail(A, 1)
    assert replicas.well((A, B)) == (B,)
    assert replicas.well((A,)) == (A,)
    fail(B)
    assert replicas.well((A, B, c)) == (A, B, c)
    now += 2.0
    assert replicas.well((A, B)) == (A, B)
    fail(A)
    now += 2.0
    assert replicas.well((A, B)) == (B,)  # longer each time
    replicas.heard(B, failed=False)
    await replicas.forget_others((B,))
    assert replicas.well((A, B)) == (A, B)  # another one by that name
    await replicas.close()


async def test_a_channel_that_is_taken_up_again_outlives_the_end_of_the_one_before() -> None:
    replicas = Replicas(Settings())
    before, other = replicas.channel(A), replicas.channel(B)
    leaving = [asyncio.ensure_future(replicas.forget_others(())) for _ in range(2)]
    while replicas.channel(A) is before:  # noqa: ASYNC110 - until the first has taken it out
        await asyncio.sleep(0)
    again = replicas.channel(A)
    await replicas.forget_others((A,))
    await asyncio.gather(*leaving)
    assert replicas.channel(A) is again and replicas.channel(B) is not other
    await replicas.close()


def request(**parameters: Any) -> service_pb2.ModelInferRequest:
    message = service_pb2.ModelInferRequest(model_name="m", model_version="2", id="r")
    message.inputs.add(name="IN", datatype="FP32", shape=[1])
    message.raw_input_contents.append(b"\0" * 1000)
    for name, value in parameters.items():
        kind = {int: "int64_param", str: "string_param", bool: "bool_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


@pytest.mark.parametrize(
    ("parameters", "mark"),
    [
        ({}, SequenceMark()),
        ({"sequence_id": 7, "sequence_start": True}, SequenceMark(key="7", start=True)),
        ({"sequence_id": "s", "sequence_start": False, "sequence_end": True}, SequenceMark(key="s", end=True)),
        ({"sequence_id": 0, "sequence_start": True}, SequenceMark(start=True)),
        ({"priority": 3}, SequenceMark()),
    ],
)
def test_envelopes(parameters: dict[str, Any], mark: SequenceMark) -> None:
    data = request(**parameters).SerializeToString()
    assert wire.read(data) == wire.Envelope(model="m", version="2", id="r", sequence=mark)
    again = service_pb2.ModelInferRequest.FromString(wire.forced(data, "m", 5))
    assert again.model_version == "5"
    assert again.raw_input_contents == request().raw_input_contents


@given(st.binary(max_size=200))
def test_any_bytes_are_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    try:
        envelope = wire.read(data)
    except InvalidInput:
        return
    try:
        whole = service_pb2.ModelInferRequest.FromString(data)
    except Exception:  # noqa: BLE001 - something in a field that is not looked at: the server will say so
        return
    assert (envelope.model, envelope.version) == (whole.model_name, whole.model_version)
    forced = service_pb2.ModelInferRequest.FromString(wire.forced(data, "m", 9))
    assert (forced.model_name, forced.model_version) == ("m", "9")


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05m", b"\x0b", b"\xff" * 12, b"\x50\x01" * 70_000])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        wire.read(data)


LIMIT = 10_000
TEXT = json.dumps({"parameters": {"sequence_id": "s", "sequence_start": True}}).encode()


@pytest.mark.parametrize(
    ("headers", "body", "rest", "mark"),
    [
        ({}, TEXT, "/infer", SequenceMark(key="s", start=True)),
        (
            {"inference-header-content-length": str(len(TEXT))},
            TEXT + b"\0\1",
            "/infer",
            SequenceMark(key="s", start=True),
        ),
        ({"content-encoding": "gzip"}, gzip.compress(TEXT, mtime=0), "/infer", SequenceMark(key="s", start=True)),
        ({"content-encoding": "deflate"}, zlib.compress(TEXT), "/infer", SequenceMark(key="s", start=True)),
        ({}, b'{"parameters": {"sequence_id": [7]}}', "/infer", SequenceMark()),
        ({}, b'{"sequence_id": 5, "sequence_end": true}', "/generate", SequenceMark(key="5", end=True)),
        ({}, b"{}", "/infer", SequenceMark()),
    ],
)
def test_marks_of_http_requests(headers: dict[str, str], body: bytes, rest: str, mark: SequenceMark) -> None:
    assert sequence_mark(headers, body, rest, LIMIT) == mark


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"{"),
        ({"content-encoding": "gzip"}, b"x"),
        ({"content-encoding": "gzip"}, gzip.compress(TEXT, mtime=0)[:-9]),
        ({"inference-header-content-length": "x"}, b"{}"),
        ({"inference-header-content-length": "-1"}, b"{}x"),
        ({"inference-header-content-length": "9" * 5000}, b"{}"),
        ({}, b"\xff"),
        ({}, b'{"id": "\xff"}'),
        ({}, b'{"parameters": {"sequence_id": "\\ud800"}}'),
        ({}, b"[1]"),
        ({}, b'"text"'),
        ({}, b"null"),
        ({}, b"[" * 100_000),
        ({}, b'{"a":' * 100_000),
        ({}, b'{"parameters": 5}'),
        ({}, b'{"parameters": {"sequence_id": ' + b"9" * 10_000 + b"}}"),
    ],
)
def test_http_requests_that_are_no_json(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(InvalidInput):
        sequence_mark(headers, body, "/infer", LIMIT)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_http_requests_are_not_unpacked_beyond_the_limit(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    headers = {"content-encoding": encoding}
    assert sequence_mark(headers, pack(b"{}".ljust(LIMIT)), "/infer", LIMIT) == SequenceMark()
    with pytest.raises(TooLarge, match="10000 bytes"):
        sequence_mark(headers, pack(b"{}".ljust(LIMIT + 1)), "/infer", LIMIT)


async def test_held_requests_are_bounded_and_poke_once() -> None:
    pokes: list[int] = []
    holding = Holding(Settings(held_per_model=2, cold_wait_s=60), TABLE, lambda: pokes.append(1))
    held = [asyncio.ensure_future(holding.route("m", "3", size_bytes=1, remaining_s=None)) for _ in range(2)]
    await asyncio.sleep(0)
    assert holding.demand == (Demand(model="m", version=3, waiting=2),)
    with pytest.raises(Overloaded, match="too many"):
        await holding.route("m", "3", size_bytes=1, remaining_s=None)
    holding.update(RouteTable(endpoints={"a": A}, pools={"p": ("a",)}, routes={"m": Route(model="m", pinned={3: "p"})}))
    assert [each.members for each in await asyncio.gather(*held)] == [(A,), (A,)]
    assert not holding.demand
    assert (holding.waiting, len(pokes)) == (0, 1)


@pytest.mark.parametrize(("wait_s", "remaining_s"), [(0.01, None), (60.0, 0.02), (60.0, -1.0)])
async def test_the_wait_ends_with_the_reason(wait_s: float, remaining_s: float | None) -> None:
    holding = Holding(Settings(cold_wait_s=wait_s), TABLE, lambda: None)
    with pytest.raises(Unavailable, match="it is being downloaded"):
        await holding.route("m", "3", size_bytes=1, remaining_s=remaining_s)
    assert holding.waiting == 0


async def test_tables_that_lead_nowhere_do_not_prolong_the_wait() -> None:
    holding = Holding(Settings(cold_wait_s=0.1), TABLE, lambda: None)
    held = asyncio.ensure_future(holding.route("m", "3", size_bytes=1, remaining_s=None))
    async with asyncio.timeout(30):
        while not held.done():
            holding.update(TABLE)
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match=r"version 3 was not loaded within 0\.1 s: it is being downloaded"):
        await held


async def test_a_model_that_is_taken_away_ends_the_wait() -> None:
    holding = Holding(Settings(), TABLE, lambda: None)
    held = asyncio.ensure_future(holding.route("m", "3", size_bytes=1, remaining_s=None))
    await asyncio.sleep(0)
    holding.update(RouteTable())
    with pytest.raises(NotFound):
        await held


def cold(*models: str, high: tuple[str, ...] = ()) -> RouteTable:
    """These models are known and loaded nowhere; those in `high` are of high priority."""
    routes = {name: Route(model=name, pinned={1: None}) for name in models}
    routes |= {name: Route(model=name, pinned={1: None}, priority="high") for name in high}
    return RouteTable(routes=routes)


class Held:
    """Requests that are held, by model."""

    def __init__(self, table: RouteTable, **settings: int) -> None:
        self.holding = Holding(Settings(**settings), table, lambda: None)  # type: ignore[arg-type]
        self.tasks: list[tuple[str, asyncio.Task[Resolved]]] = []

    async def ask(self, model: str, count: int = 1, size_bytes: int = 1) -> None:
        for _ in range(count):
            job = self.holding.route(model, "1", size_bytes=size_bytes, remaining_s=None)
            self.tasks.append((model, asyncio.ensure_future(job)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    def waiting(self) -> dict[str, int]:
        return {each.model: each.waiting for each in self.holding.demand}

    async def refused(self) -> list[str]:
        """Whose requests were refused, in the order in which they came."""
        over = [(model, task) for model, task in self.tasks if task.done()]
        assert all(isinstance(task.exception(), Overloaded) for _, task in over)
        return [model for model, _ in over]

    async def end(self) -> None:
        for _, task in self.tasks:
            task.cancel()
        await asyncio.gather(*(task for _, task in self.tasks), return_exceptions=True)
        assert (self.holding.waiting, self.holding.waiting_bytes, self.holding.demand) == (0, 0, ())


async def test_a_flood_for_one_model_keeps_nobody_elses_request_out() -> None:
    held = Held(cold("flood", "a", "b"), held_total=6)
    await held.ask("flood", 9)
    assert held.waiting() == {"flood": 6}
    await held.ask("a")
    await held.ask("b", 2)
    assert held.waiting() == {"a": 1, "b": 2, "flood": 3}
    assert [task.done() for _, task in held.tasks[:6]] == [False] * 3 + [True] * 3  # the latest go, the first stay
    await held.ask("a", 9)
    await held.ask("b", 9)
    assert held.waiting() == {"a": 2, "b": 2, "flood": 2}
    await held.end()


async def test_a_flood_of_bytes_keeps_nobody_elses_request_out() -> None:
    held = Held(cold("flood", "a"), held_bytes=100)
    await held.ask("flood", 12, size_bytes=10)
    assert held.holding.waiting_bytes == 100
    await held.ask("a", size_bytes=45)
    assert (held.waiting(), held.holding.waiting_bytes) == ({"a": 1, "flood": 5}, 95)
    await held.ask("a", size_bytes=45)  # it has its share
    await held.ask("a", size_bytes=101)
    assert held.waiting() == {"a": 1, "flood": 5}
    await held.end()


async def test_high_priority_is_refused_last() -> None:
    held = Held(cold("normal", high=("high",)), held_total=4)
    await held.ask("high", 2)
    await held.ask("normal", 4)
    assert held.waiting() == {"high": 2, "normal": 2}
    await held.ask("high", 3)
    assert held.waiting() == {"high": 4}
    await held.ask("normal", 2)
    assert held.waiting() == {"high": 4}
    assert sorted(await held.refused()) == ["high"] + ["normal"] * 6
    await held.end()


async def test_room_that_was_taken_away_is_taken_once() -> None:
    held = Held(cold("flood", "a"), held_total=2)
    await held.ask("flood", 2)
    await held.ask("a")
    last = held.tasks[1][1]
    with pytest.raises(Overloaded, match="flood has the most of them"):
        await last
    assert held.holding.waiting == 2
    await held.end()


async def test_when_to_ask_again_follows_the_last_start() -> None:
    held = Held(cold("a", "b"), held_per_model=1)
    with pytest.raises(Overloaded) as first:
        await asyncio.gather(*(held.holding.route("a", "1", size_bytes=1, remaining_s=None) for _ in range(2)))
    assert first.value.retry_after_s == 10  # no start has been seen yet
    await held.ask("a")
    served = RouteTable(endpoints={"a": A}, pools={"p": ("a",)}, routes={"a": Route(model="a", pinned={1: "p"})})
    held.holding.update(replace(served, routes={**cold("b").routes, **served.routes}))
    await held.ask("b", 2)
    error = held.tasks[-1][1].exception()
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 1  # that one took no time
    await held.end()


async def test_what_no_wait_will_bring_is_refused_at_once_also_while_it_is_waited_for() -> None:
    waiting = Route(model="m", pinned={1: None}, reasons={1: "it loads"})
    holding = Holding(Settings(), RouteTable(routes={"m": waiting}), lambda: None)
    asked = asyncio.create_task(holding.route("m", "1", size_bytes=1, remaining_s=None))
    while not holding.waiting:  # noqa: ASYNC110 - until it has begun
        await asyncio.sleep(0)
    refused = replace(waiting, reasons={1: "it is quarantined"}, refused=(1,))
    holding.update(RouteTable(routes={"m": refused}))
    with pytest.raises(Unavailable, match="can't be loaded: it is quarantined"):
        await asked
    with pytest.raises(Unavailable, match="can't be loaded: it is quarantined"):
        await holding.route("m", "1", size_bytes=1, remaining_s=None)
    assert not holding.waiting and not holding.demand


async def test_held_bytes_are_bounded() -> None:
    holding = Holding(Settings(held_bytes=10), TABLE, lambda: None)
    with pytest.raises(Overloaded, match="more than 10 bytes"):
        await holding.route("m", "3", size_bytes=11, remaining_s=None)


async def test_bodies_that_come_slowly_are_bounded_before_they_wait() -> None:
    settings, size, more, waiting = Settings(held_bytes=4000), 1000, asyncio.Event(), asyncio.Semaphore(0)
    holding, replicas = Holding(settings, TABLE, lambda: None), Replicas(settings)
    side = HttpSide(Forwarding(settings, holding, replicas, Sequences(10)), settings)

    async def status(parts: int) -> int:
        """Of the answer to so many parts of a body (which is no JSON), the end of which comes with `more`."""
        left = parts

        async def receive() -> Any:
            nonlocal left
            if left:
                left -= 1
                return {"type": "http.request", "body": b"x" * size, "more_body": True}
            waiting.release()
            await more.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        where = {"path": "/v2/models/nobody/infer", "query_string": b"", "headers": []}
        return (await side.answer(Request({"type": "http", "method": "POST", **where}, receive))).status_code

    alone = asyncio.create_task(status(6))
    await waiting.acquire()  # it is within bounds, however large
    more.set()
    assert await alone == 400
    more.clear()
    several = [asyncio.create_task(status(2)) for _ in range(10)]
    refused = [await each for each in asyncio.as_completed(several[2:])]
    assert refused == [429] * 8
    more.set()
    assert [await each for each in several[:2]] == [400, 400]
    assert await status(4) == 400, "nothing of the others is left"
    await replicas.close()


def test_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == Settings()
    write_settings(tmp_path, Settings(grpc_port=9001))
    assert read_settings(tmp_path).grpc_port == 9001


@pytest.mark.parametrize("text", ['{"grcp_port": 1}', '{"grpc_port": 70000}', '{"threads": -1}', "{"])
def test_wrong_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"settings\.json"):
        read_settings(tmp_path)
