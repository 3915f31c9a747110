"""Reads traces: CSV with `timestamp`, and if there `model` and `work`; Azure's and Mooncake's public layouts."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np

from controlplane.core.errors import InvalidInput
from controlplane.simulate.columns import Column, numbers, times
from controlplane.simulate.traces import Codes, Floats, Singles, Trace, trace_of

ROWS = 50_000
"""So many rows are parsed at once: a file is never in memory as text."""
AZURE = ("timestamp", "contexttokens", "generatedtokens")
MOONCAKE = ("timestamp", "input_length", "output_length")
PLAIN = ("timestamp", "model", "work")
NEEDED = (
    "a CSV needs a column `timestamp` (ISO 8601 or seconds), and may have `model` and `work` (seconds); the layouts of "
    f"Azure ({','.join(AZURE)}) and Mooncake (JSON lines: {','.join(MOONCAKE)}) are known, too"
)

Array = TypeVar("Array", Floats, Singles)

Progress = Callable[[int], None]
"""Is told how many requests have been read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How long a request keeps a slot of a replica busy where the trace does not say so in seconds: `work_s`, or for
    tokens, those of the prompt at `prefill_per_s` and then those of the answer at `decode_per_s`."""

    work_s: float = 0.1
    prefill_per_s: float = 8000.0
    decode_per_s: float = 50.0

    def of_tokens(self, prompt: Floats, answer: Floats) -> Singles:
        """Seconds for requests of so many tokens."""
        return (prompt / self.prefill_per_s + answer / self.decode_per_s).astype(np.float32)


@dataclass(slots=True)
class _Columns:
    """What has been read so far."""

    at: list[Floats] = field(default_factory=list)
    work_s: list[Singles] = field(default_factory=list)
    model: list[Codes] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def add(self, at: Floats, work_s: Singles, models: Iterable[str] | None) -> None:
        self.at.append(at)
        self.work_s.append(work_s)
        self.count += len(at)
        if models is not None:
            codes = self.codes
            self.model.append(np.array([codes.setdefault(each, len(codes)) for each in models], np.int32))

    def trace(self, name: str, *, dated: bool) -> Trace:
        if not self.count:
            raise InvalidInput(f"{name} holds no request", remedy="give a trace with a line for each request")
        model = np.concatenate(self.model) if self.model else None
        return trace_of(
            name, _joined(self.at), _joined(self.work_s), model, tuple(self.codes) or ("model",), dated=dated
        )


def _joined(parts: list[Array]) -> Array:
    whole: Array = np.concatenate(parts)
    parts.clear()
    return whole


def read_trace(path: Path, service: Service, told: Progress = lambda count: None) -> Trace:
    """The trace in a file. Raises InvalidInput, naming line and column, for what is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            if not first:
                raise InvalidInput(f"{path} is empty", field="--trace", remedy=NEEDED)
            read = _read_json_lines if first.lstrip().startswith("{") else _read_csv
            return read(file, path.name, service, told)
    except OSError as error:
        what = f"{path} can't be read: {error.strerror}"
        raise InvalidInput(what, field="--trace", remedy="name an existing file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"{path} is no text in UTF-8: {error}", field="--trace", remedy=NEEDED) from error


def _read_csv(file: TextIO, name: str, service: Service, told: Progress) -> Trace:
    heading = next(line for line in file if line.strip())
    delimiter = max(",;\t", key=heading.count)
    found = [each.strip() for each in next(csv.reader([heading], delimiter=delimiter))]
    by_name = {each.lower(): index for index, each in enumerate(found)}
    if "timestamp" not in by_name:
        raise InvalidInput(f"{name} has the columns {', '.join(found)}", field="timestamp", remedy=NEEDED)
    columns, dated = _Columns(), False
    rows = csv.reader(file, delimiter=delimiter)
    is_tokens = set(AZURE) <= by_name.keys() and "work" not in by_name
    for lines, chunk in _chunks(rows, len(found), name):

        def column(wanted: str, lines: Sequence[int] = lines, chunk: Sequence[Sequence[str]] = chunk) -> Column:
            index = by_name[wanted]
            return Column(texts=chunk[index], lines=lines, name=name, heading=found[index])

        at, dated = times(column("timestamp"), dated=dated if columns.count else None)
        if is_tokens:
            prompt, answer = (numbers(column(each)) for each in AZURE[1:])
            work_s = service.of_tokens(prompt, answer)
        elif "work" in by_name:
            work_s = numbers(column("work")).astype(np.float32)
        else:
            work_s = np.full(len(at), service.work_s, np.float32)
        columns.add(at, work_s, column("model").texts if "model" in by_name else None)
        told(columns.count)
    trace = columns.trace(name, dated=dated)
    used = AZURE if is_tokens else PLAIN
    ignored = [each for each in found if each.lower() not in used]
    return _with_notes(trace, service, is_tokens=is_tokens, has_work="work" in by_name, ignored=ignored)


def _chunks(
    rows: Iterator[list[str]], width: int, name: str
) -> Iterator[tuple[Sequence[int], Sequence[Sequence[str]]]]:
    """Blocks of rows, by column, with the numbers of their lines. Empty lines are no rows."""
    line = 1
    while block := list(itertools.islice(rows, ROWS)):
        lines: Sequence[int] = range(line + 1, line + 1 + len(block))
        line += len(block)
        if set(map(len, block)) != {width}:
            kept = [(number, row) for number, row in zip(lines, block, strict=True) if row]
            wrong = next(((number, row) for number, row in kept if len(row) != width), None)
            if wrong is not None:
                what = f"{name} has {len(wrong[1])} values in line {wrong[0]} and {width} columns"
                raise InvalidInput(what, field="--trace", remedy="give each line a value for each column")
            lines, block = [number for number, _ in kept], [row for _, row in kept]
        if block:
            yield lines, list(zip(*block, strict=True))


def _read_json_lines(file: TextIO, name: str, service: Service, told: Progress) -> Trace:
    columns = _Columns()
    lines = ((number, text) for number, text in enumerate(file, 1) if text.strip())
    while block := list(itertools.islice(lines, ROWS // 5)):
        values = [_tokens(text, number, name) for number, text in block]
        table = np.array(values, np.float64)
        columns.add(table[:, 0] / 1e3, service.of_tokens(table[:, 1], table[:, 2]), None)
        told(columns.count)
    return _with_notes(columns.trace(name, dated=False), service, is_tokens=True, has_work=False, ignored=[])


def _tokens(text: str, line: int, name: str) -> tuple[float, float, float]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"line {line} of {name} is no JSON: {error}", field="--trace", remedy=NEEDED) from error
    missing = [each for each in MOONCAKE if each not in record]
    if missing:
        what = f"line {line} of {name} has {', '.join(map(str, record))}, and no {', '.join(missing)}"
        raise InvalidInput(what, field="--trace", remedy=NEEDED)
    for each in MOONCAKE:
        value = record[each]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            what = f"{value!r} in line {line} of {name} is no number of 0 or more"
            raise InvalidInput(what, field=each, remedy="milliseconds and tokens are plain numbers")
    return record["timestamp"], record["input_length"], record["output_length"]


def _with_notes(trace: Trace, service: Service, *, is_tokens: bool, has_work: bool, ignored: list[str]) -> Trace:
    notes = []
    if is_tokens:
        notes.append(f"work from tokens: prompts at {service.prefill_per_s:g}/s, answers at {service.decode_per_s:g}/s")
    elif not has_work:
        notes.append(f"the trace says nothing of work: each request is taken to be {service.work_s:g} s of it")
    if ignored:
        notes.append(f"columns not used: {', '.join(ignored)}")
    return replace(trace, notes=(*notes, *trace.notes))
