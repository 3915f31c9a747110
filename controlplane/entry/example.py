"""Whether an entry's example can be a request to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.core.entry import Entry, Tensor
from controlplane.core.errors import InvalidInput

_INTEGERS = {
    "UINT8": (0, 2**8), "UINT16": (0, 2**16), "UINT32": (0, 2**32), "UINT64": (0, 2**64),
    "INT8": (-(2**7), 2**7), "INT16": (-(2**15), 2**15), "INT32": (-(2**31), 2**31), "INT64": (-(2**63), 2**63),
}  # fmt: skip


def example_problems(entry: Entry) -> Iterator[InvalidInput]:
    """What is wrong with the example: names, shapes, values."""
    if entry.example is None:
        return
    yield from _side("inputs", entry.example.inputs, entry.inputs, entry)
    yield from _side("outputs", entry.example.outputs, entry.outputs, entry)
    for tensor in entry.inputs:
        if not tensor.optional and tensor.name not in entry.example.inputs:
            yield InvalidInput(
                f"lacks {tensor.name!r}", field="example.inputs", remedy="give every input that is not optional"
            )


def _side(side: str, given: Mapping[str, Any], tensors: tuple[Tensor, ...], entry: Entry) -> Iterator[InvalidInput]:
    declared = {tensor.name: tensor for tensor in tensors}
    for name, value in given.items():
        field = f"example.{side}[{name}]"
        if name not in declared:
            yield InvalidInput(
                f"the model has no such {side[:-1]}", field=field, remedy=f"{side} are: {', '.join(declared)}"
            )
            continue
        tensor = declared[name]
        try:
            shape = shape_of(value)
        except ValueError as error:
            yield InvalidInput(str(error), field=field, remedy="nest lists as deep as the tensor has dimensions")
            continue
        wanted = (-1, *tensor.dims) if entry.max_batch_size > 0 else tensor.dims
        if not _fits(shape, wanted):
            what, remedy = _misfit(shape, wanted, tensor, entry)
            yield InvalidInput(what, field=field, remedy=remedy)
        elif entry.max_batch_size and not 1 <= shape[0] <= entry.max_batch_size:
            yield InvalidInput(
                f"is a batch of {shape[0]}",
                field=field,
                remedy=f"use 1 to {entry.max_batch_size}, the `max_batch_size`",
            )
        elif not all(_holds(tensor.data_type, each) for each in flat(value)):
            yield InvalidInput(
                f"has a value that is no {tensor.data_type}", field=field, remedy="give text for BYTES, else numbers"
            )


def _misfit(shape: tuple[int, ...], wanted: tuple[int, ...], tensor: Tensor, entry: Entry) -> tuple[str, str]:
    """What to say of an example's shape that isn't the tensor's."""
    what = f"has shape {list(shape)} instead of {list(wanted)}"
    if not entry.max_batch_size:
        return what, "give the whole tensor"
    if len(shape) == len(tensor.dims) and tensor.dims[0] in (-1, 1) and _fits(shape, tensor.dims):
        return (
            f"{what}: the dims {list(tensor.dims)} of {tensor.name} may repeat the batch dimension, which "
            f"`max_batch_size: {entry.max_batch_size}` stands for already",
            f"state `dims: {list(tensor.dims[1:])}` if the first one is the batch; else give the example as a batch",
        )
    return what, "give it with the batch dimension, such as [[…]]"


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, got) for got, want in zip(shape, wanted, strict=True))


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of nested lists. Raises ValueError where they are not even."""
    if not isinstance(value, list | tuple):
        return ()
    shapes = {shape_of(item) for item in value}
    if len(shapes) > 1:
        raise ValueError("its lists are not equally long")
    return (len(value), *(shapes.pop() if shapes else ()))


def flat(value: Any) -> Iterator[Any]:
    """The elements of nested lists, in order."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    else:
        yield value


def _holds(data_type: str, value: Any) -> bool:
    if data_type == "BYTES":
        return isinstance(value, str)
    if data_type == "BOOL":
        return isinstance(value, bool) or value in (0, 1)
    if data_type in _INTEGERS:
        low, end = _INTEGERS[data_type]
        return isinstance(value, int) and not isinstance(value, bool) and low <= value < end
    return isinstance(value, int | float) and not isinstance(value, bool)
