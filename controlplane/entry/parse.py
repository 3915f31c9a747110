"""Plain data to an `Entry`, with every mistake named by its field, its line and the way out."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from controlplane.core.entry import Entry, is_name
from controlplane.core.errors import ControlPlaneError, InvalidEntry, InvalidInput
from controlplane.entry.document import Document
from controlplane.entry.problems import problem_of
from controlplane.entry.wording import as_fill, normal

_ENTRIES = TypeAdapter(Entry)

NAME_RULE = "use letters, digits, `_`, `-` and `.`, starting with a letter or digit, 128 at most, without `..` or `/`"


def to_entry(document: Document) -> Entry:
    """The entry that a document states in full. Raises InvalidEntry with all findings."""
    entry, problems = _read(document)
    if entry is None:
        raise InvalidEntry(document.source, tuple(problems))
    names = [(f"ensemble[{index}].model_name", step.model_name) for index, step in enumerate(entry.ensemble)]
    names += [("fleet", entry.fleet)] if entry.fleet is not None else []
    problems += [_bad_name(text, field) for field, text in names if not is_name(text)]
    if problems:
        raise InvalidEntry(document.source, tuple(problems))
    return entry


def check_stated(document: Document) -> None:
    """Check what a document states, whatever it leaves to be read from a file. Raises InvalidEntry."""
    _, problems = _read(document, absent_too=False)
    if problems:
        raise InvalidEntry(document.source, tuple(problems))


def _read(document: Document, *, absent_too: bool = True) -> tuple[Entry | None, list[ControlPlaneError]]:
    name = document.data.get("name")
    problems: list[ControlPlaneError] = []
    if isinstance(name, str) and not is_name(name):
        problems.append(_bad_name(name, "name"))
    try:
        return _ENTRIES.validate_python(normal(document.data)), problems
    except ValidationError as error:
        found = error.errors(include_url=False)
        return None, problems + [
            problem_of(each, document.lines, Entry) for each in found if absent_too or each["type"] != "missing"
        ]


def to_data(entry: Entry) -> dict[str, Any]:
    """An entry as plain data, without what is absent or as by default: what a person would have written."""
    data: dict[str, Any] = _ENTRIES.dump_python(entry, mode="json", exclude_defaults=True)
    for side in ("inputs", "outputs"):
        tensors = data.get("example", {}).get(side, {})
        tensors.update({name: as_fill(value) for name, value in tensors.items()})
    return data


def check_name(name: str, field: str = "name") -> None:
    """Raises InvalidInput for what can't name a model, an alias or a fleet."""
    if not is_name(name):
        raise _bad_name(name, field)


def _bad_name(name: str, field: str) -> ControlPlaneError:
    return InvalidInput(f"{name!r} can't be a name", field=field, remedy=NAME_RULE)
