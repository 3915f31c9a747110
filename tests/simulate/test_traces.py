"""Traces: the layouts that are known, what is odd but can be used, and what is refused with its line and column."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from controlplane.core.errors import InvalidInput
from controlplane.simulate import reading
from controlplane.simulate.reading import Service, read_trace
from controlplane.simulate.traces import Trace, multiplied, only, trace_of

SERVICE = Service(work_s=0.5, prefill_per_s=1000.0, decode_per_s=10.0)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,2000,10\n2023-11-16 18:17:05,500,20\n"
MOONCAKE = (
    '{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]}\n'
    '{"timestamp": 2500, "input_length": 0, "output_length": 1, "hash_ids": []}\n'
)


def read(folder: Path, text: str, name: str = "trace.csv") -> Trace:
    path = folder / name
    path.write_text(text)
    return read_trace(path, SERVICE)


@pytest.mark.parametrize(
    ("text", "arrival_s", "work_s", "origin"),
    [
        ("timestamp\n10\n12.5\n", [0, 2.5], [0.5, 0.5], 0.0),
        ("timestamp,work\n0,0.25\n1,4\n", [0, 1], [0.25, 4], 0.0),
        ("\ufeffTimestamp;Work\r\n1;1\r\n2;2\r\n", [0, 1], [1, 2], 0.0),
        ("timestamp\twork\n\n0\t1\n\n3\t1\n", [0, 3], [1, 1], 0.0),
        ("work,timestamp\n1,1970-01-01T00:01:00Z\n1,1970-01-01 00:01:30.5\n", [0, 30.5], [1, 1], 60.0),
        ("timestamp\n1970-01-01T01:00:00+01:00\n1970-01-01T00:00:07+00:00\n", [0, 7], [0.5, 0.5], 0.0),
        (AZURE, [0, 1.02004], [3.0, 2.5], 1700158623.97996),
        (MOONCAKE, [0, 2.5], [1.5, 0.1], 0.0),
        ("timestamp\n5\n", [0], [0.5], 0.0),
        ("timestamp\n1767225601.5\n1767225600\n", [0, 1.5], [0.5, 0.5], 1767225600.0),
        ('timestamp,"a\nb"\n1,\n2,"x\ny"\n', [0, 1], [0.5, 0.5], 0.0),
    ],
)
def test_what_can_be_read(
    tmp_path: Path, text: str, arrival_s: list[float], work_s: list[float], origin: float
) -> None:
    trace = read(tmp_path, text)
    assert trace.arrival_s == pytest.approx(arrival_s, abs=1e-6)
    assert trace.work_s == pytest.approx(work_s)
    assert trace.origin == pytest.approx(origin, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("", "--trace", "is empty"),
        ("\n\n", "--trace", "is empty"),
        ("timestamp,work\n", None, "holds no request"),
        ("when,work\n1,1\n", "timestamp", "has the columns when, work"),
        ("0.5,1\n0.7,1\n", "timestamp", "has the columns 0.5, 1"),
        ("timestamp,work\n1,1\n2\n", "--trace", "has 1 values in line 3 and 2 columns"),
        ("timestamp,work\n1,1\n\n2,fast\n", "work", "'fast' in line 4"),
        ("\n\ntimestamp,work\n1,1\n2,fast\n", "work", "'fast' in line 5"),
        ('timestamp,model,work\n1,"a\nb",1\n\n2,c,fast\n', "work", "'fast' in line 5"),
        (f"timestamp,work\n1,{'x' * 200}\n", "work", f"'{'x' * 59}… in line 2"),
        (f"timestamp,work\n1,{'x' * 200_000}\n", "--trace", "line 2 of trace.csv is no CSV"),
        (f"\0\x1b{'x' * 200}\n1\n", "timestamp", f"has the columns ??{'x' * 58}…"),
        ("timestamp,work,Work\n1,1,1\n", "work", "line 1 of trace.csv names this column twice"),
        ("timestamp,work\n1,1\n2,86401\n", "work", "line 3 of trace.csv is 86401 s of it"),
        ("timestamp,work\n1,1e300\n", "work", "line 2 of trace.csv is 1e+300 s of it"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,5,1e308\n", "work", "line 2 of trace.csv is 1e+307 s of it"),
        ("timestamp,work\n1,-1\n", "work", "'-1' in line 2"),
        ("timestamp,work\n1,nan\n", "work", "'nan' in line 2"),
        ("timestamp\n1\ninf\n", "timestamp", "'inf' in line 3"),
        ("timestamp\nyesterday\n", "timestamp", "'yesterday' in line 2"),
        ("timestamp\n2026-05-01T12:00:00\n17\n", "timestamp", "'17' in line 3"),
        ("timestamp\n17\n2026-05-01T12:00:00\n", "timestamp", "'2026-05-01T12:00:00' in line 3"),
        ("timestamp\n1767225600\n1767225601\n0\n", "timestamp", "its longest hole is from 0 to 1767225600"),
        ("timestamp\n1767225600000\n", "timestamp", "'1767225600000' in line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,many,2\n", "ContextTokens", "'many' in line 2"),
        ('{"timestamp": 0, "tokens": 3}\n', "--trace", "has timestamp, tokens, and no input_length, output_length"),
        (MOONCAKE + "{\n", "--trace", "line 3 of trace.csv is no JSON"),
        (MOONCAKE + "\n{\n", "--trace", "line 4 of trace.csv is no JSON: Expecting property name"),
        ("\n" + MOONCAKE + "{" + '"a":[' * 100_000, "--trace", "line 4 of trace.csv is no JSON"),
        *((MOONCAKE + f"{each}\n", "--trace", "line 3 of trace.csv is no JSON object") for each in ("null", 3, '"a"')),
        (MOONCAKE + "[]\n", "--trace", "line 3 of trace.csv is no JSON object"),
        (MOONCAKE.replace('_length": 5', '_length": 1e14'), "work", "line 1 of trace.csv is 1e+13 s of it"),
        (MOONCAKE.replace("2500", '"2500"'), "timestamp", "'2500' in line 2"),
        (MOONCAKE.replace("2500", "-1"), "timestamp", "-1 in line 2"),
        (MOONCAKE.replace("2500", "NaN"), "timestamp", "nan in line 2"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, field: str | None, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, text)
    assert caught.value.field == field
    assert said in caught.value.what
    assert caught.value.remedy


def test_bytes_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"timestamp\n\xff\xfe\n")
    (tmp_path / "packed").write_bytes(gzip.compress(b"timestamp\n1\n"))
    for name, said in (
        ("bytes", "line 2 of .*bytes is no text in UTF-8"),
        ("none", "No such file"),
        (".", "directory"),
        ("packed", "compressed.*unpack it"),
    ):
        with pytest.raises(InvalidInput, match=said):
            read_trace(tmp_path / name, SERVICE)


def test_a_trace_comes_through_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("\ntimestamp\n1\n2\n",))
    writer.start()
    assert len(read_trace(path, SERVICE)) == 2
    writer.join()


def test_what_is_not_used_is_told(tmp_path: Path) -> None:
    azure = AZURE.replace("Tokens\n", "Tokens,model,colour\n").replace(",10\n", ",10,a,red\n")
    trace = read(tmp_path, azure.replace(",20\n", ",20,b,red\n"))
    assert trace.models == ("a", "b")
    assert trace.notes[1:] == ("columns not used: colour",)
    assert read(tmp_path, MOONCAKE).notes[1:] == ("columns not used: hash_ids",)


def test_what_is_odd_is_told(tmp_path: Path) -> None:
    rows = [*range(100), 98, *range(400, 500)]
    trace = read(tmp_path, "timestamp,colour\n" + "".join(f"{row},red\n" for row in rows))
    assert list(trace.arrival_s) == sorted(rows)
    assert trace.notes == (
        "the trace says nothing of work: each request is taken to be 0.5 s of it",
        "columns not used: colour",
        "1 request was earlier than the one above: sorted by time",
        "no request for 301 s, 99 s after the first: taken as no traffic",
    )


def test_blocks_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROWS", 3)
    trace = read(tmp_path, "timestamp,model\n" + "".join(f"{row},{'ab'[row % 2]}\n" for row in range(10)))
    assert list(trace.arrival_s) == list(range(10))
    assert list(trace.model) == [0, 1] * 5
    assert trace.models == ("a", "b")


def test_one_models_requests_alone(tmp_path: Path) -> None:
    trace = read(tmp_path, "timestamp,model\n1,a\n2,b\n4,a\n8,b\n")
    assert list(only(trace, "b").arrival_s) == [0, 6]
    with pytest.raises(InvalidInput, match="no request for 'c'"):
        only(trace, "c")


def test_a_part_of_a_trace_begins_when_its_first_request_came() -> None:
    at = 1_767_225_600 + np.arange(100.0)
    trace = trace_of("t", at, np.ones(100, np.float32), (np.arange(100) // 50).astype(np.int32), ("a", "b"))
    assert only(trace, "b").origin == trace.origin + 50
    few = multiplied(trace, 0.05)
    assert trace.origin <= few.origin
    assert few.arrival_s[0] == 0
    assert set(few.origin + few.arrival_s) <= set(at)
    assert few.notes == ("rate × 0.05: a random part of the requests",)


@pytest.mark.parametrize(("factor", "count"), [(1, 1000), (3, 3000), (2.5, 2500), (0.2, 200)])
def test_a_rate_is_multiplied(factor: float, count: int) -> None:
    trace = trace_of("t", np.arange(1000.0), np.arange(1000, dtype=np.float32))
    made = multiplied(trace, factor)
    assert len(made) == pytest.approx(count, rel=0.1)
    assert made.length_s <= 1000
    assert (np.diff(made.arrival_s) >= 0).all()
    assert made.work_s.sum() == pytest.approx(factor * trace.work_s.sum(), rel=0.15)
    assert np.array_equal(made.arrival_s, multiplied(trace, factor).arrival_s)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 1e9])
def test_rates_that_cant_be(factor: float) -> None:
    trace = trace_of("t", np.arange(10.0), np.ones(10, np.float32))
    with pytest.raises(InvalidInput, match="multiplied"):
        multiplied(trace, factor)


def test_more_requests_than_can_be_replayed() -> None:
    trace = trace_of("t", np.arange(20_000.0), np.ones(20_000, np.float32))
    with pytest.raises(InvalidInput, match="--rate-multiplier: 9999 times 20000 requests are more"):
        multiplied(trace, 9999)
