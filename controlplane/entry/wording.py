"""Other ways to say the same: Triton's own names and spellings, sizes with units, values that are not text yet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

TRITON_NAMES = {
    "input": "inputs",
    "output": "outputs",
    "instance_group": "instances",
    "model_warmup": "warmup",
    "ensemble_scheduling": "ensemble",
    "model_transaction_policy": "decoupled",
    "max_queue_delay_microseconds": "max_queue_delay_us",
    "max_sequence_idle_microseconds": "max_sequence_idle_us",
    "default_timeout_microseconds": "default_timeout_us",
    "control_input": "control_inputs",
    "state": "states",
    "step": "ensemble",
    "execution_accelerators": "gpu_accelerators",
    "input_data_file": "file",
    "zero_data": "source",
    "random_data": "source",
    "global": "is_global",
    "platform": "backend",
    "type": "data_type",
    "dtype": "data_type",
    "shape": "dims",
    "memory": "memory_bytes",
    "batch_size": "max_batch_size",
    "tags": "labels",
    "version": "name",
    "version_policy": "name",
}
"""What Triton or habit calls a field that has another name here; used to point to it, not to accept it."""

MAX_FILLED = 1 << 20
"""Elements of an example that is given as `fill` and `dims`."""

SHORT = 16
"""Up to so many elements a tensor of an example is written out."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", re.IGNORECASE)
_TEXTS = ("parameters", "metric_tags", "labels")


def size_bytes(text: str) -> int | None:
    """The bytes of a size such as `512Mi`, `1.5GB` or `1000`; None where it is none."""
    match = _SIZE.fullmatch(text)
    return int(float(match[1]) * _UNITS[match[2].upper()]) if match and match[2].upper() in _UNITS else None


def normal(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` in the entry's own words. What is not understood stays as it is, and is refused later, with its field."""
    said = dict(data)
    for name in _TEXTS:
        if isinstance(said.get(name), Mapping):
            said[name] = {key: _text(value) for key, value in said[name].items()}
    resources = said.get("resources")
    if isinstance(resources, Mapping) and isinstance(resources.get("memory_bytes"), str):
        size = size_bytes(resources["memory_bytes"])
        said["resources"] = {**resources, **({} if size is None else {"memory_bytes": size})}
    example = said.get("example")
    if isinstance(example, Mapping):
        said["example"] = {
            key: _filled(value) if isinstance(value, Mapping) else value for key, value in example.items()
        }
    return {key: _spelled(value) for key, value in said.items()}


def _filled(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """An example's tensors, those written as `{fill: VALUE, dims: […]}` as nested lists."""
    return {
        name: _nested(value["fill"], value["dims"])
        if isinstance(value, Mapping) and set(value) == {"fill", "dims"} and _is_shape(value["dims"])
        else value
        for name, value in tensors.items()
    }


def _is_shape(dims: Any) -> bool:
    whole = isinstance(dims, list) and all(isinstance(dim, int) and dim > 0 for dim in dims)
    return whole and math.prod(dims) <= MAX_FILLED


def _nested(value: Any, dims: list[int]) -> Any:
    return value if not dims else [_nested(value, dims[1:])] * dims[0]


def as_fill(value: Any) -> Any:
    """A tensor's nested lists as `{fill: VALUE, dims: […]}`, where all its elements are one and there are many."""
    dims, first = [], value
    while isinstance(first, list) and first:
        dims.append(len(first))
        first = first[0]
    if not SHORT < math.prod(dims) <= MAX_FILLED or isinstance(first, list | dict):
        return value
    # By their spelling: 1 and 1.0 and true are equal, and not the same to whoever reads them.
    return {"fill": first, "dims": dims} if repr(value) == repr(_nested(first, dims)) else value


def _text(value: Any) -> Any:
    """A parameter as Triton has it, which knows only text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


_PREFIXES: dict[str, Callable[[str], str]] = {
    "data_type": lambda text: {"STRING": "BYTES"}.get(text.removeprefix("TYPE_"), text.removeprefix("TYPE_")),
    "kind": lambda text: text.removeprefix("KIND_").removeprefix("CONTROL_SEQUENCE_"),
    "format": lambda text: text.removeprefix("FORMAT_"),
}


def _spelled(value: Any) -> Any:
    """Triton's spellings of types and kinds, anywhere below."""
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [_spelled(item) for item in value]
    if isinstance(value, dict):
        return {
            key: _PREFIXES[key](item.upper()) if key in _PREFIXES and isinstance(item, str) else _spelled(item)
            for key, item in value.items()
        }
    return value
