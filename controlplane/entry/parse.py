"""Plain data to an `Entry`, with every mistake named by its field, its line and the way out."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from controlplane.core.entry import Entry, is_name
from controlplane.core.errors import ControlPlaneError, InvalidEntry, InvalidInput
from controlplane.entry.document import Document, Path, read_document
from controlplane.entry.wording import TRITON_NAMES, normal

_ENTRIES = TypeAdapter(Entry)

NAME_RULE = "use letters, digits, `_`, `-` and `.`, starting with a letter or digit, 128 at most, without `..` or `/`"


def parse_entry(text: str | bytes, source: str = "model.yaml") -> Entry:
    """The complete entry that YAML or JSON text holds.

    Raises InvalidInput for broken text, InvalidEntry with all findings.
    """
    return to_entry(read_document(text, source))


def to_entry(document: Document) -> Entry:
    """The entry that a document states in full. Raises InvalidEntry with all findings."""
    name = document.data.get("name")
    problems: list[ControlPlaneError] = []
    if isinstance(name, str) and not is_name(name):
        problems.append(_bad_name(name, "name"))
    try:
        entry = _ENTRIES.validate_python(normal(document.data))
    except ValidationError as error:
        problems += [_problem(details, document.lines) for details in error.errors(include_url=False)]
        raise InvalidEntry(document.source, tuple(problems)) from error
    names = [(f"ensemble[{index}].model_name", step.model_name) for index, step in enumerate(entry.ensemble)]
    names += [("fleet", entry.fleet)] if entry.fleet is not None else []
    problems += [_bad_name(text, field) for field, text in names if not is_name(text)]
    if problems:
        raise InvalidEntry(document.source, tuple(problems))
    return entry


def to_data(entry: Entry) -> dict[str, Any]:
    """An entry as plain data, without what is absent or as by default: what a person would have written."""
    data: dict[str, Any] = _ENTRIES.dump_python(entry, mode="json", exclude_defaults=True)
    return data


def check_name(name: str, field: str = "name") -> None:
    """Raises InvalidInput for what can't name a model, an alias or a fleet."""
    if not is_name(name):
        raise _bad_name(name, field)


def _bad_name(name: str, field: str) -> ControlPlaneError:
    return InvalidInput(f"{name!r} can't be a name", field=field, remedy=NAME_RULE)


def _problem(details: Any, lines: Mapping[Path, int]) -> ControlPlaneError:
    path: Path = tuple(part for part in details["loc"] if part != "[key]")
    what, remedy = _words(details, path)
    return InvalidInput(f"{what}{at_line(path, lines)}", field=path_text(path), remedy=remedy)


def path_text(path: Path) -> str:
    """A path as people write it: `inputs[0].dims`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def at_line(path: Path, lines: Mapping[Path, int]) -> str:
    """The line of a value, or of the nearest thing around it that was written."""
    while path and path not in lines:
        path = path[:-1]
    return f" (line {lines[path]})" if path in lines and path else ""


def _words(details: Any, path: Path) -> tuple[str, str | None]:
    kind, given = details["type"], details.get("input")
    match kind:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return "there is no such field", _instead(path)
        case "missing":
            return "is missing", "state it"
        case "literal_error":
            expected = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            spelled = {each.upper(): each for each in expected.split(", ")}
            close = difflib.get_close_matches(str(given).upper(), spelled, 1, 0.4)
            remedy = f"did you mean {spelled[close[0]]}?" if close else "use one of them"
            return f"{_shown(given)} is none of: {expected}", remedy
        case "int_type" | "int_parsing" | "int_from_float" if path and path[-1] == "memory_bytes":
            return f"{_shown(given)} is no size", "write bytes, or a number with a unit, such as 512Mi or 2G"
        case "dataclass_type" | "dataclass_exact_type":
            return f"{_shown(given)} is not a mapping of fields", f"fields here: {', '.join(_fields(path))}"
        case "tuple_type" | "mapping_type" | "dict_type":
            wanted = "a list" if kind == "tuple_type" else "a mapping"
            return f"{_shown(given)} is not {wanted}", f"write {wanted}"
    text = details["msg"].removeprefix("Input should be ").removeprefix("Input ")
    return f"{_shown(given)} should be {text}", None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _instead(path: Path) -> str:
    name, there = str(path[-1]), _fields(path[:-1])
    if TRITON_NAMES.get(name) in there:
        return f"it is called `{TRITON_NAMES[name]}` here"
    close = difflib.get_close_matches(name, there, 1)
    return f"did you mean `{close[0]}`?" if close else f"fields here: {', '.join(there)}"


def _fields(path: Path) -> tuple[str, ...]:
    """The fields that there are at `path`."""
    kind: Any = Entry
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
