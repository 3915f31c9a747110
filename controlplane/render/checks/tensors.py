"""Inputs and outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2

from controlplane.core.errors import InvalidInput
from controlplane.render.checks.case import Case

_TORCH_OUTPUT = re.compile(r".+__\d+")


def _all(case: Case) -> Iterator[tuple[str, int, Any]]:
    for field, tensors in (("input", case.config.input), ("output", case.config.output)):
        for index, tensor in enumerate(tensors):
            yield field, index, tensor


def names(case: Case) -> Iterator[InvalidInput]:
    """Each side's names must be there and differ: Triton takes duplicates, and then keeps one of them."""
    for field, tensors in (("input", case.config.input), ("output", case.config.output)):
        seen: set[str] = set()
        if not tensors:
            yield case.finding(
                field, "", f"there is no {field}", f"list the model's {field}s with name, data_type and dims"
            )
        for index, tensor in enumerate(tensors):
            if not tensor.name or not tensor.name.isprintable():
                yield case.finding(
                    field, f"[{index}].name", "must be printable text", "use the model's own name for it"
                )
            if tensor.name in seen:
                yield case.finding(
                    field,
                    f"[{index}].name",
                    f"{tensor.name!r} is there twice",
                    "give each tensor once, under its own name",
                )
            seen.add(tensor.name)


def types_and_dims(case: Case) -> Iterator[InvalidInput]:
    """Every tensor needs a type and dims; a dim is positive, or −1 for any size."""
    for field, index, tensor in _all(case):
        if tensor.data_type == model_config_pb2.TYPE_INVALID:
            yield case.finding(field, f"[{index}].data_type", "is missing", "name the type, such as FP32")
        if not tensor.dims:
            yield case.finding(
                field, f"[{index}].dims", "is empty", "give the shape without the batch dimension; [1] for a scalar"
            )
        for dim in tensor.dims:
            if dim == 0 or dim < -1:
                yield case.finding(
                    field, f"[{index}].dims", f"{dim} is no size", "use a positive number, or -1 for any size"
                )


def reshapes(case: Case) -> Iterator[InvalidInput]:
    """A reshape keeps the number of elements, and the sizes between the variable dims."""
    batched = case.config.max_batch_size > 0
    for field, index, tensor in _all(case):
        if not tensor.HasField("reshape"):
            continue
        shape = tuple(tensor.reshape.shape)
        if not shape and not batched:
            yield case.finding(
                field,
                f"[{index}].reshape",
                "can't be empty without batching: Triton has no scalars there",
                "leave `reshape` out and use dims [1]",
            )
        elif any(dim == 0 or dim < -1 for dim in shape) or _parts(shape) != _parts(tensor.dims):
            yield case.finding(
                field,
                f"[{index}].reshape",
                f"{list(shape)} does not hold as many elements as dims {list(tensor.dims)}",
                "keep the number of elements, and the order of the -1 dims",
            )


def _parts(dims: Iterable[int]) -> list[int]:
    """The number of elements before, between and after the variable dims."""
    parts: list[list[int]] = [[]]
    for dim in dims:
        if dim == -1:
            parts.append([])
        else:
            parts[-1].append(dim)
    return [math.prod(part) for part in parts]


def formats(case: Case) -> Iterator[InvalidInput]:
    """NHWC and NCHW speak of images: height, width and channels."""
    for index, tensor in enumerate(case.config.input):
        if tensor.format != model_config_pb2.ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
            yield case.finding(
                "input",
                f"[{index}].format",
                f"needs 3 dims beside the batch dimension, and there are {len(tensor.dims)}",
                "give dims as height, width, channels in that format's order, or leave `format` out",
            )


def backend_names(case: Case) -> Iterator[InvalidInput]:
    """TorchScript has no names for outputs, so Triton wants their positions in them."""
    if case.entry.backend != "pytorch":
        return
    for index, tensor in enumerate(case.config.output):
        if _TORCH_OUTPUT.fullmatch(tensor.name) is None:
            yield case.finding(
                "output",
                f"[{index}].name",
                f"{tensor.name!r} does not say which output it is",
                f"PyTorch outputs are named NAME__INDEX, such as OUTPUT__{index}",
            )


def ragged(case: Case) -> Iterator[InvalidInput]:
    """Ragged batches are joined by the backend, from a dynamic batch."""
    for index, tensor in enumerate(case.config.input):
        if tensor.allow_ragged_batch and not case.config.HasField("dynamic_batching"):
            yield case.finding(
                "input",
                f"[{index}].allow_ragged_batch",
                "means something only with dynamic batching",
                "add `dynamic_batching`, or leave it out",
            )
        elif tensor.allow_ragged_batch and case.served.stand_in:
            yield case.finding(
                "input",
                f"[{index}].allow_ragged_batch",
                "can't be served through the Python backend, as this fleet does",
                "leave it out, or use a fleet with the onnxruntime backend",
            )


def same_dims(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two tensors' dims can be the same at run time."""
    return len(a) == len(b) and all(x == y or -1 in (x, y) for x, y in zip(a, b, strict=True))
