"""From what a person types after ``--input`` to a tensor, and to the Python expression that makes it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.utils import triton_to_np_dtype

from controlplane.core.errors import InvalidInput

SHOWN_JSON = 120
"""A JSON text longer than this is not repeated in the code."""

VALUES = ("@", "[", "{", '"')
"""How a value begins in which there may be a `=`; before the `=` of anything else stands a tensor's name."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """An input as the server declares it; −1 in the shape is any size."""

    name: str
    data_type: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} ({self.data_type} {list(self.shape)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A tensor to send. `code` makes it again; `note` says what was done to make it fit."""

    name: str
    data_type: str
    array: Array
    code: str
    note: str = ""


def read_input(text: str, declared: dict[str, Declared]) -> Given:
    """The tensor that ``[TENSOR=]@FILE`` or ``[TENSOR=]JSON`` stands for. Raises InvalidInput."""
    name, separator, value = text.partition("=")
    there = ", ".join(str(each) for each in declared.values())
    if not separator or text.startswith(VALUES):
        if len(declared) != 1:
            raise InvalidInput(
                f"which input is {text[:40]!r}?", field="--input", remedy=f"write TENSOR=… with one of: {there}"
            )
        name, value = next(iter(declared)), text
    if name not in declared:
        raise InvalidInput(f"the model has no input {name[:40]!r}", field="--input", remedy=f"it has: {there}")
    wanted = declared[name]
    if not value.startswith("@"):
        array, code = _from_json(value, wanted)
        return _fitted(wanted, array, code, repr(value[:40]))
    path = Path(value[1:])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", field="--input") from error
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise InvalidInput(f"{path} is no array: {error}", field="--input") from error
        return _fitted(wanted, array.astype(_dtype(wanted), copy=False), f'np.load("{path}")', str(path))
    if path.suffix == ".json":
        array, _ = _from_json(content.decode(errors="replace"), wanted)
        return _fitted(wanted, array, f'np.array(json.load(open("{path}")), dtype={_code(wanted)})', str(path))
    return _from_bytes(content, path, wanted)


def _from_json(text: str, wanted: Declared) -> tuple[Array, str]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f"{text[:40]!r} is not JSON: {error}", field="--input", remedy="@FILE reads a file"
        ) from error
    try:
        if wanted.data_type == "BYTES":
            array = np.array(_encoded(value), dtype=np.object_)
        else:
            array = np.array(value, dtype=_dtype(wanted))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{text[:40]!r} is no {wanted.data_type} tensor: {error}", field="--input") from error
    shown = json.dumps(value) if len(text) <= SHOWN_JSON else "…"
    return array, f"np.array({shown}, dtype={_code(wanted)})"


def _encoded(value: object) -> object:
    if isinstance(value, list):
        return [_encoded(each) for each in value]
    return str(value).encode()


def _from_bytes(content: bytes, path: Path, wanted: Declared) -> Given:
    """A file's bytes as they are; for a BYTES tensor the whole file is one value."""
    if wanted.data_type == "BYTES":
        array = np.array([content], dtype=np.object_)
        return _fitted(wanted, array, f'np.array([open("{path}", "rb").read()], dtype=np.object_)', str(path))
    dtype = _dtype(wanted)
    fixed = math.prod(size for size in wanted.shape if size > 0)
    if content and len(content) % (fixed * dtype.itemsize) == 0:
        array = np.frombuffer(content, dtype)
        return _fitted(wanted, array, f'np.fromfile("{path}", dtype={_code(wanted)})', str(path))
    if content and dtype.kind in "iu" and all(size > 0 for size in wanted.shape[1:]):
        values = np.frombuffer(content[:fixed].ljust(fixed, b"\0"), np.uint8).astype(dtype)
        code = f'np.frombuffer(open("{path}", "rb").read()[:{fixed}].ljust({fixed}, b"\\0"), np.uint8)'
        count = min(fixed, len(content))
        note = f"{path} has {len(content)} bytes: {count} of them are sent, each as one value of {wanted}"
        note += f", and {fixed - count} zeros after them" if count < fixed else ""
        return _fitted(wanted, values, f"{code}.astype({_code(wanted)})", str(path), note)
    raise InvalidInput(
        f"{path} has {len(content)} bytes, and {wanted} takes a multiple of {fixed * dtype.itemsize}",
        field="--input",
        remedy="give raw values of that type, a .npy file or JSON",
    )


def _fitted(wanted: Declared, array: Array, code: str, what: str, note: str = "") -> Given:
    """The array in the declared shape: as it is where that fits, else reshaped where there is one way to."""
    shape = wanted.shape
    if _fits(array.shape, shape):
        return Given(name=wanted.name, data_type=wanted.data_type, array=array, code=code, note=note)
    if _fits((1, *array.shape), shape):
        target: list[int] = [1, *array.shape]
    else:
        # The first free dimension takes what is left: it is the batch, where there is one.
        free = [index for index, size in enumerate(shape) if size == -1]
        target = [1 if index in free[1:] else size for index, size in enumerate(shape)]
    try:
        reshaped = array.reshape(target)
    except ValueError:
        reshaped = None
    if reshaped is None:
        raise InvalidInput(f"{what} has the shape {list(array.shape)}, and {wanted} does not fit", field="--input")
    made = f"{code}.reshape({list(reshaped.shape)})"
    return Given(name=wanted.name, data_type=wanted.data_type, array=reshaped, code=made, note=note)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, got) for want, got in zip(wanted, shape, strict=True))


def _dtype(wanted: Declared) -> np.dtype[Any]:
    found = triton_to_np_dtype(wanted.data_type)
    if found is None:
        raise InvalidInput(f"{wanted} can't be sent from here", field="--input")
    return np.dtype(found)


def _code(wanted: Declared) -> str:
    return "np.object_" if wanted.data_type == "BYTES" else f"np.{_dtype(wanted).name}"
