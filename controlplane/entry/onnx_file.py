"""What an ONNX file says of itself: its tensors, and whether it takes batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from controlplane.core.entry import DataType
from controlplane.core.errors import InvalidInput

MAX_BYTES = 2 << 30
"""Protobuf's own limit; larger models keep their weights in files beside."""

_TYPES: dict[int, DataType] = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}  # fmt: skip
"""ONNX's TensorProto.DataType."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxTensor:
    """A tensor as the file declares it: dims with the batch dimension, −1 where a size is free. A scalar has none."""

    name: str
    data_type: DataType
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFacts:
    """What was read. `external` are the files with weights, relative to the model's own."""

    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    external: tuple[str, ...]

    @property
    def takes_batches(self) -> bool:
        """Whether the first dimension of every tensor is free."""
        return all(tensor.dims[:1] == (-1,) for tensor in (*self.inputs, *self.outputs))


def read_onnx(path: Path) -> OnnxFacts:
    """What the file at `path` says. Only the file itself is read. Raises InvalidInput when it is no ONNX model."""
    import onnx  # 0.2 s, and only who registers ONNX files needs it  # noqa: PLC0415
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise InvalidInput(
            f"{path.name} is a Git LFS pointer, not the model", remedy="run `git lfs pull`, then register"
        )
    if size == 0 or size > MAX_BYTES:
        raise InvalidInput(f"{path.name} has {size} bytes, which is no ONNX model", remedy="give the model's own file")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
        if model.ir_version < 1 or not model.graph.output:
            raise InvalidInput(f"{path.name} is not an ONNX model", remedy="give a file that onnx.checker accepts")
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = _tensors((each for each in model.graph.input if each.name not in constants), path.name)
        outputs = _tensors(model.graph.output, path.name)
        external = tuple(sorted({_location(t, path.name) for t in model.graph.initializer if t.data_location == 1}))
    except (DecodeError, UnicodeError, ValueError) as error:
        raise InvalidInput(
            f"{path.name} is not an ONNX model: {error}", remedy="give a file that onnx.checker accepts"
        ) from error
    return OnnxFacts(inputs=inputs, outputs=outputs, external=external)


def _tensors(values: Iterable[Any], source: str) -> tuple[OnnxTensor, ...]:
    found = []
    for value in values:
        if value.type.WhichOneof("value") != "tensor_type":
            raise InvalidInput(
                f"{source}: {value.name!r} is no tensor (a sequence, map or optional), which Triton can't serve",
                remedy="export the model with tensors only",
            )
        kind = value.type.tensor_type
        if kind.elem_type not in _TYPES:
            raise InvalidInput(f"{source}: Triton has no type for {value.name!r} (ONNX type {kind.elem_type})")
        if not kind.HasField("shape"):
            raise InvalidInput(
                f"{source}: {value.name!r} has no shape", remedy="run onnx.shape_inference, or state inputs and outputs"
            )
        dims = tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in kind.shape.dim)
        found.append(OnnxTensor(name=value.name, data_type=_TYPES[kind.elem_type], dims=dims))
    return tuple(found)


def _location(tensor: Any, source: str) -> str:
    location = next((item.value for item in tensor.external_data if item.key == "location"), "")
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts:
        raise InvalidInput(
            f"{source}: its weights are said to be at {location!r}, which is outside the artifact",
            remedy="put the weights beside the model, and name them by a relative path",
        )
    return str(path)
