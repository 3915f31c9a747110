"""What pydantic refuses, in words for people: the field, its line, and the way out."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from controlplane.core.errors import ControlPlaneError, InvalidInput
from controlplane.entry.document import Path
from controlplane.entry.wording import TRITON_NAMES


def problem_of(details: Any, lines: Mapping[Path, int], root: type) -> ControlPlaneError:
    """One of pydantic's findings (`ValidationError.errors()`) about a document of which `root` is the dataclass."""
    path: Path = tuple(part for part in details["loc"] if part != "[key]")
    what, remedy = _words(details, path, root)
    return InvalidInput(f"{what}{at_line(path, lines)}", field=path_text(path), remedy=remedy)


def path_text(path: Path) -> str:
    """A path as people write it: `inputs[0].dims`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def at_line(path: Path, lines: Mapping[Path, int]) -> str:
    """The line of a value, or of the nearest thing around it that was written."""
    while path and path not in lines:
        path = path[:-1]
    return f" (line {lines[path]})" if path in lines and path else ""


def _words(details: Any, path: Path, root: type) -> tuple[str, str | None]:
    kind, given = details["type"], details.get("input")
    match kind:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return "there is no such field", _instead(path, root)
        case "missing":
            return "is missing", "state it"
        case "literal_error":
            expected = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            spelled = {each.upper(): each for each in expected.split(", ")}
            said = str(given).upper()
            close = [each for each in spelled if said and each.startswith(said)] or difflib.get_close_matches(
                said, spelled, 1
            )
            remedy = f"did you mean {spelled[close[0]]}?" if close else "use one of them"
            return f"{_shown(given)} is none of: {expected}", remedy
        case "int_type" | "int_parsing" | "int_from_float" if path and str(path[-1]).endswith("_bytes"):
            return f"{_shown(given)} is no size", "write bytes, or a number with a unit, such as 512Mi or 2G"
        case "float_type" | "float_parsing" | "int_type" | "int_parsing" if unit := _unit(path):
            return f"{_shown(given)} is no number of {unit}", f"write {unit} without a unit, such as 300"
        case "less_than" if path and path[-1] == "share" and isinstance(given, int | float):
            part = f"for {given:g} % write {given / 100:g}" if 1 < given < 100 else "such as 0.99"
            return f"{_shown(given)} is not below 1", f"it is a part of 1: {part}"
        case "dataclass_type" | "dataclass_exact_type":
            return f"{_shown(given)} is not a mapping of fields", f"fields here: {', '.join(_fields(path, root))}"
        case "tuple_type" | "mapping_type" | "dict_type":
            wanted = "a list" if kind == "tuple_type" else "a mapping"
            return f"{_shown(given)} is not {wanted}", f"write {wanted}"
    text = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("Input ")
    return f"{_shown(given)} should be {text}", None


def _unit(path: Path) -> str | None:
    """What the numbers of a field are of, as its name says: `idle_s` is seconds."""
    name = str(path[-1]) if path else ""
    return next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), None)


_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_us": "microseconds"}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _instead(path: Path, root: type) -> str:
    name, there = str(path[-1]), _fields(path[:-1], root)
    if TRITON_NAMES.get(name) in there:
        return f"it is called `{TRITON_NAMES[name]}` here"
    close = difflib.get_close_matches(name, there, 1)
    return f"did you mean `{close[0]}`?" if close else f"fields here: {', '.join(there)}"


def _fields(path: Path, root: type) -> tuple[str, ...]:
    """The fields that there are at `path`."""
    kind: Any = root
    for part in path:
        kind = _below(kind, part)
    kind = _plain(kind)
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _below(kind: Any, part: str | int) -> Any:
    kind = _plain(kind)
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind).get(str(part))
    match typing.get_args(kind):
        case (item, other) if other is ...:
            return item
        case (*_, value):
            return value
    return None


def _plain(kind: Any) -> Any:
    """`X` of `X | None`."""
    if isinstance(kind, types.UnionType):
        return next(each for each in typing.get_args(kind) if each is not type(None))
    return kind
