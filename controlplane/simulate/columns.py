"""Columns of text as arrays; what is no number or time is refused with its line and column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from controlplane.core.errors import InvalidInput
from controlplane.simulate.traces import Floats

MOST_S = 1e11
"""Seconds since 1970 beyond which a timestamp must be of another unit (the year 5138)."""
SHOWN = 60
"""So many characters of what a file holds are shown in an error."""

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Some rows of a column: its texts, the line of each in the file `name`, and its heading."""

    texts: Sequence[str]
    lines: Sequence[int]
    name: str
    heading: str

    def parsed(self, parse: Callable[[str], float], wanted: str) -> Floats:
        """Each text as a finite number, float64[rows]. Raises InvalidInput, which says what is `wanted`."""
        try:
            values = np.fromiter(map(parse, self.texts), np.float64, len(self.texts))
        except ValueError:
            wrong = next(index for index, text in enumerate(self.texts) if not _parses(parse, text))
            raise self._problem(wrong, wanted) from None
        self.refuse(~np.isfinite(values), wanted)
        return values

    def refuse(self, wrong: Flags, wanted: str) -> None:
        """Raise InvalidInput for the first row that is wrong, if there is one."""
        if wrong.any():
            raise self._problem(int(np.argmax(wrong)), wanted)

    def _problem(self, index: int, wanted: str) -> InvalidInput:
        what = f"{shown(repr(self.texts[index]))} in line {self.lines[index]} of {self.name} can't be used"
        return InvalidInput(what, field=self.heading, remedy=f"give {wanted}")


def shown(text: str) -> str:
    """A text, or its beginning where it is long; what can't be printed as '?'."""
    printed = "".join(each if each.isprintable() else "?" for each in text[:SHOWN])
    return printed if len(text) <= SHOWN else f"{printed}…"


def numbers(column: Column) -> Floats:
    """Numbers of 0 or more, float64[rows]. Raises InvalidInput."""
    wanted = "a number of 0 or more, such as 0.25"
    values = column.parsed(float, wanted)
    column.refuse(values < 0, wanted)
    return values


def times(column: Column, *, dated: bool | None) -> tuple[Floats, bool]:
    """Seconds, float64[rows], and whether they are since 1970 (ISO 8601; UTC where no zone is said).

    `dated` tells of which kind the rows before were; None: these are the first. Raises InvalidInput.
    """
    if dated is None:
        dated = not _parses(float, column.texts[0])
    if dated:
        return column.parsed(_iso, "a time such as 2026-05-01T12:00:00.250Z"), True
    values = column.parsed(float, "seconds, or in every line a time of ISO 8601")
    column.refuse(np.abs(values) > MOST_S, "seconds (milliseconds are divided by 1000)")
    return values, False


def _iso(text: str) -> float:
    at = datetime.fromisoformat(text.strip())
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _parses(parse: Callable[[str], float], text: str) -> bool:
    try:
        return math.isfinite(parse(text))
    except ValueError:
        return False
