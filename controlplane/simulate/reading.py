"""Reads traces: CSV with `timestamp`, and if there `model` and `work`; Azure's and Mooncake's public layouts."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from controlplane.core.errors import InvalidInput
from controlplane.simulate.columns import Column, numbers, shown, times
from controlplane.simulate.traces import UNNAMED, Codes, Floats, Singles, Trace, trace_of

ROWS = 50_000
"""So many rows are parsed at once: a file is never in memory as text."""
AZURE = ("timestamp", "contexttokens", "generatedtokens")
MOONCAKE = ("timestamp", "input_length", "output_length")
PLAIN = ("timestamp", "model", "work")
NEEDED = (
    "a CSV needs a column `timestamp` (ISO 8601 or seconds), and may have `model` and `work` (seconds); the layouts of "
    f"Azure ({','.join(AZURE)}) and Mooncake (JSON lines: {','.join(MOONCAKE)}) are known, too"
)
COMPRESSED = (b"\x1f\x8b", b"(\xb5/\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
"""What files of gzip, zstd, bzip2, xz and zip begin with."""
MOST_WORK_S = 86_400.0
"""More work in one request is a number of another unit, most often milliseconds."""

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

    def of_tokens(self, prompt: Floats, answer: Floats) -> Floats:
        """Seconds for requests of so many tokens."""
        with np.errstate(over="ignore"):  # what is too much is refused with its line
            return prompt / self.prefill_per_s + answer / self.decode_per_s


@dataclass(slots=True)
class _Columns:
    """What has been read so far of the file `name`."""

    name: str
    at: list[Floats] = field(default_factory=list)
    work_s: list[Singles] = field(default_factory=list)
    model: list[Codes] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def add(self, lines: Sequence[int], at: Floats, work_s: Floats, models: Iterable[str] | None = None) -> None:
        """Take some rows. Raises InvalidInput for more work than a request can be."""
        wrong = work_s > MOST_WORK_S
        if wrong.any():
            index = int(np.argmax(wrong))
            what = f"the request in line {lines[index]} of {self.name} is {work_s[index]:g} s of it, more than a day"
            raise InvalidInput(what, field="work", remedy=f"give {MOST_WORK_S:g} s at most; is it of another unit?")
        self.at.append(at)
        self.work_s.append(work_s.astype(np.float32))
        self.count += len(at)
        if models is not None:
            codes = self.codes
            self.model.append(np.array([codes.setdefault(each, len(codes)) for each in models], np.int32))

    def trace(self, *, dated: bool, notes: Sequence[str], ignored: Sequence[str]) -> Trace:
        """All of it; `notes` before what is odd about it."""
        if not self.count:
            raise InvalidInput(f"{self.name} holds no request", remedy="give a trace with a line for each request")
        model = np.concatenate(self.model) if self.model else None
        made = trace_of(
            self.name, _joined(self.at), _joined(self.work_s), model, tuple(self.codes) or UNNAMED, dated=dated
        )
        unused = [f"columns not used: {shown(', '.join(ignored))}"] if ignored else []
        return replace(made, notes=(*notes, *unused, *made.notes))


def _joined(parts: list[Array]) -> Array:
    whole: Array = np.concatenate(parts)
    parts.clear()
    return whole


def read_trace(path: Path, service: Service, told: Progress = lambda count: None) -> Trace:
    """The trace in a file, or in what comes through a pipe. Raises InvalidInput, naming line and column, for what is
    none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            number, first = next(((each, line) for each, line in enumerate(file, 1) if line.strip()), (0, ""))
            if not first:
                raise InvalidInput(f"{path} is empty", field="--trace", remedy=NEEDED)
            read = _read_json_lines if first.lstrip().startswith("{") else _read_csv
            return read(itertools.chain([first], file), number, path.name, service, told)
    except OSError as error:
        what = f"{path} can't be read: {error.strerror or error}"
        raise InvalidInput(what, field="--trace", remedy="name an existing file") from error
    except UnicodeDecodeError as error:
        if bytes(error.object).startswith(COMPRESSED):
            raise InvalidInput(f"{path} is compressed", field="--trace", remedy="unpack it first") from error
        raise InvalidInput(f"{_undecodable(path)} is no text in UTF-8", field="--trace", remedy=NEEDED) from error


def _undecodable(path: Path) -> str:
    """Where a file is no text: its first such line, if it can be read again."""
    if path.is_file():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return f"line {number} of {path}"
    return str(path)


def _read_csv(text: Iterator[str], number: int, name: str, service: Service, told: Progress) -> Trace:
    """Read CSV whose first line is the file's line `number`."""
    heading = next(text)
    rows = _Rows(itertools.chain([heading], text), max(",;\t", key=heading.count), number, name)
    found = rows.heading
    by_name = {each.lower(): index for index, each in enumerate(found)}
    if "timestamp" not in by_name:
        raise InvalidInput(f"{name} has the columns {shown(', '.join(found))}", field="timestamp", remedy=NEEDED)
    is_tokens = set(AZURE) <= by_name.keys() and "work" not in by_name
    used = (*PLAIN, *(AZURE if is_tokens else ()))
    for index, each in enumerate(found):
        if each.lower() in used and by_name[each.lower()] != index:
            what = f"line {number} of {name} names this column twice"
            raise InvalidInput(what, field=each, remedy="give each column a name of its own")
    columns, dated = _Columns(name), False
    for lines, chunk in rows.blocks():

        def column(wanted: str, lines: Sequence[int] = lines, chunk: Sequence[Sequence[str]] = chunk) -> Column:
            index = by_name[wanted]
            return Column(texts=chunk[index], lines=lines, name=name, heading=found[index])

        at, dated = times(column("timestamp"), dated=dated if columns.count else None)
        if is_tokens:
            prompt, answer = (numbers(column(each)) for each in AZURE[1:])
            work_s = service.of_tokens(prompt, answer)
        elif "work" in by_name:
            work_s = numbers(column("work"))
        else:
            work_s = np.full(len(at), service.work_s)
        columns.add(lines, at, work_s, column("model").texts if "model" in by_name else None)
        told(columns.count)
    notes = []
    if is_tokens:
        notes.append(_of_tokens(service))
    elif "work" not in by_name:
        notes.append(f"the trace says nothing of work: each request is taken to be {service.work_s:g} s of it")
    return columns.trace(dated=dated, notes=notes, ignored=[each for each in found if each.lower() not in used])


class _Rows:
    """The rows of a CSV, whose heading is the file's line `number`. Raises InvalidInput for what is no CSV."""

    def __init__(self, text: Iterator[str], delimiter: str, number: int, name: str) -> None:
        self._rows = csv.reader(text, delimiter=delimiter)
        self._before, self._name = number - 1, name
        self.heading = [each.strip() for each in self._taken(1)[0]]

    @property
    def _line(self) -> int:
        """On which line of the file the last row ended."""
        return self._before + self._rows.line_num

    def _taken(self, count: int) -> list[list[str]]:
        try:
            return list(itertools.islice(self._rows, count))
        except csv.Error as error:
            what = f"line {self._line} of {self._name} is no CSV: {error}"
            raise InvalidInput(what, field="--trace", remedy=NEEDED) from error

    def blocks(self) -> Iterator[tuple[Sequence[int], Sequence[Sequence[str]]]]:
        """Blocks of rows, by column, with the number of the line on which each ends. Empty lines are no rows."""
        width, before = len(self.heading), self._line
        while rows := self._taken(ROWS):
            lines: Sequence[int] = range(before + 1, before + 1 + len(rows))
            if self._line != lines[-1]:  # some values in quotes go over several lines
                ends = itertools.accumulate((1 + sum(each.count("\n") for each in row) for row in rows), initial=before)
                lines = list(ends)[1:]
            before = self._line
            if set(map(len, rows)) != {width}:
                kept = [(number, row) for number, row in zip(lines, rows, strict=True) if row]
                wrong = next(((number, row) for number, row in kept if len(row) != width), None)
                if wrong is not None:
                    what = f"{self._name} has {len(wrong[1])} values in line {wrong[0]} and {width} columns"
                    raise InvalidInput(what, field="--trace", remedy="give each line a value for each column")
                lines, rows = [number for number, _ in kept], [row for _, row in kept]
            if rows:
                yield lines, list(zip(*rows, strict=True))


def _read_json_lines(text: Iterator[str], number: int, name: str, service: Service, told: Progress) -> Trace:
    """Read JSON lines, the first of which is the file's line `number`."""
    columns, ignored = _Columns(name), dict[str, None]()
    numbered = ((each, line) for each, line in enumerate(text, number) if line.strip())
    while block := list(itertools.islice(numbered, ROWS // 5)):
        records = [_record(line, each, name) for each, line in block]
        table = np.array([[record[each] for each in MOONCAKE] for record in records], np.float64)
        ignored.update(dict.fromkeys(each for record in records for each in record if each not in MOONCAKE))
        columns.add([each for each, _ in block], table[:, 0] / 1e3, service.of_tokens(table[:, 1], table[:, 2]))
        told(columns.count)
    return columns.trace(dated=False, notes=[_of_tokens(service)], ignored=list(ignored))


def _record(text: str, line: int, name: str) -> Mapping[str, float]:
    """A request of Mooncake's layout; what else its line holds is not looked at."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise InvalidInput(f"line {line} of {name} is no JSON: {why}", field="--trace", remedy=NEEDED) from error
    if not isinstance(record, dict):
        raise InvalidInput(f"line {line} of {name} is no JSON object", field="--trace", remedy=NEEDED)
    missing = [each for each in MOONCAKE if each not in record]
    if missing:
        what = f"line {line} of {name} has {shown(', '.join(record))}, and no {', '.join(missing)}"
        raise InvalidInput(what, field="--trace", remedy=NEEDED)
    for each in MOONCAKE:
        value = record[each]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            what = f"{shown(repr(value))} in line {line} of {name} is no number from 0 to 10¹⁵"
            raise InvalidInput(what, field=each, remedy="milliseconds and tokens are plain numbers")
    return record


def _of_tokens(service: Service) -> str:
    return f"work from tokens: prompts at {service.prefill_per_s:g}/s, answers at {service.decode_per_s:g}/s"
