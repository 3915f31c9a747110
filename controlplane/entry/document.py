"""YAML or JSON text to plain data, with limits, and with the line on which each value stands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from controlplane.core.errors import InvalidInput

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

Path = tuple[str | int, ...]
"""Where a value is: keys and indices from the top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A mapping as it was written. `source` names it in messages, `lines` has the line of each value."""

    source: str
    data: Mapping[str, Any]
    lines: Mapping[Path, int]


EMPTY = Document(source="entry", data={}, lines={})


def read_document(text: str | bytes, source: str = "model.yaml") -> Document:
    """The document that `text` (YAML, of which JSON is a part) holds; an empty one where it holds nothing.

    Raises InvalidInput with the line for broken YAML, a duplicate key, an alias, more than one document, too much depth
    or size, and for anything but a mapping.
    """
    if len(text) > MAX_BYTES:
        raise InvalidInput(
            f"{source} is larger than {MAX_BYTES >> 20} MiB", remedy="an entry describes a model; put data into files"
        )
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        loader = _Loader(decoded)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(source=source, data={}, lines={})
            if not isinstance(node, yaml.MappingNode):
                raise InvalidInput(
                    f"{source} holds no mapping of fields", remedy="write one `field: value` on each line"
                )
            lines = dict(_lines(node, ()))
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8 text", remedy="give a YAML or JSON file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise InvalidInput(f"{source}{where}: {error.problem or error}", remedy="correct the YAML") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{source} can't be read: {error}", remedy="correct the YAML") from error
    return Document(source=source, data=data, lines=lines)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, less what an entry has no use for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: yaml.error.Mark | None = event.start_mark  # type: ignore[assignment]
        if isinstance(event, yaml.AliasEvent):
            # A few of them nested make a document of any size.
            raise yaml.MarkedYAMLError(problem="aliases (`*name`) are not taken", problem_mark=mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key}` is there twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A text; half a surrogate pair (JSON can write one) is none."""
        text: str = self.construct_yaml_str(node)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise yaml.MarkedYAMLError(problem="is no valid Unicode text", problem_mark=node.start_mark)
        return text

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """A number; JSON, in which entries are stored, has no infinity."""
        value: float = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.MarkedYAMLError(problem="is no finite number", problem_mark=node.start_mark)
        return value

    def construct_plain(self, node: yaml.ScalarNode) -> str:
        """A date as the text that it was written as: entries know no dates."""
        return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_plain)


def _lines(node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from ((below, line) for below, line in _lines(value, (*path, str(key.value))))
    elif isinstance(node, yaml.SequenceNode) and any(not isinstance(item, yaml.ScalarNode) for item in node.value):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*path, index))
