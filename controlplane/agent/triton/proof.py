"""Proof before traffic: a version serves what its entry says, and answers the entry's own example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from controlplane.agent.triton.client import Deadline, TritonClient
from controlplane.core.entry import Entry, Example, Tensor
from controlplane.core.errors import LoadFailed
from controlplane.core.names import Key

LIVE_TIMEOUT_S = 5.0
SEQUENCE_ID = 0xC0DE
"""The correlation id of an example asked of a model with sequences; it begins and ends with the one request."""


async def prove(client: TritonClient, key: Key, entry: Entry, *, timeout_s: float) -> None:
    """Raises LoadFailed with a sentence for the model's owner, or ServerDied."""
    if not await client.ready(key):
        raise LoadFailed("Triton loaded it but does not call it ready")
    check_metadata(await client.metadata(key), entry)
    if entry.example is None:
        return
    request = example_request(key, entry, entry.example)
    ask = client.infer_stream if entry.decoupled else client.infer
    try:
        answer = await ask(request, timeout_s)
    except Deadline as error:
        if not await client.live(LIVE_TIMEOUT_S):
            raise  # it is not the model that does not answer
        raise LoadFailed(f"it did not answer the example within {timeout_s:g} s", field="example") from error
    except LoadFailed as error:
        raise LoadFailed(f"it refused the entry's example: {error.what}", field="example") from error
    check_answer(answer, entry, entry.example)


def check_metadata(metadata: service_pb2.ModelMetadataResponse, entry: Entry) -> None:
    """Raises LoadFailed unless names, types and shapes are those of the entry."""
    for kind, stated, served in (
        ("inputs", entry.inputs, metadata.inputs),
        ("outputs", entry.outputs, metadata.outputs),
    ):
        wanted = {each.name: (each.data_type, _shape(each, entry)) for each in stated}
        present = {each.name: (each.datatype, tuple(each.shape)) for each in served}
        if wanted != present:
            raise LoadFailed(f"it serves {kind} {_show(present)}, but the entry says {_show(wanted)}", field=kind)


def _shape(tensor: Tensor, entry: Entry) -> tuple[int, ...]:
    batch = (-1,) if entry.max_batch_size > 0 and not tensor.is_shape_tensor else ()
    return batch + tensor.dims


def _show(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {kind}{list(shape)}" for name, (kind, shape) in sorted(tensors.items())) or "none"


def example_request(key: Key, entry: Entry, example: Example) -> service_pb2.ModelInferRequest:
    """The entry's example as a request. Raises LoadFailed for values that are no tensor of the input's type."""
    request = service_pb2.ModelInferRequest(model_name=key.model, model_version=str(key.version), id="proof")
    types = {tensor.name: tensor.data_type for tensor in entry.inputs}
    for name, value in example.inputs.items():
        if name not in types:
            raise LoadFailed("the example gives an input that the entry does not have", field=f"example.inputs.{name}")
        values = _array(value, types[name], f"example.inputs.{name}")
        request.inputs.add(name=name, datatype=types[name], shape=values.shape)
        request.raw_input_contents.append(_encode(values, types[name]))
    if entry.sequence_batching is not None:
        request.parameters["sequence_id"].int64_param = SEQUENCE_ID
        request.parameters["sequence_start"].bool_param = True
        request.parameters["sequence_end"].bool_param = True
    return request


def _array(value: Any, data_type: str, field: str) -> NDArray[Any]:
    try:
        if data_type == "BYTES":
            texts: NDArray[Any] = np.array(value, dtype=np.object_)
            encoded: NDArray[Any] = np.vectorize(lambda each: str(each).encode(), otypes=[np.object_])(texts)
            return encoded
        dtype: Any = np.float32 if data_type == "BF16" else triton_to_np_dtype(data_type)
        return np.asarray(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise LoadFailed(f"it is no tensor of type {data_type}: {error}", field=field) from error


def check_answer(answer: service_pb2.ModelInferResponse, entry: Entry, example: Example) -> None:
    """Raises LoadFailed unless the outputs have the types that the entry says, and the values that the example expects,
    within its tolerance (absolute, and relative to the expected value)."""
    outputs = {each.name: index for index, each in enumerate(answer.outputs)}
    types = {each.name: each.data_type for each in entry.outputs}
    for each in answer.outputs:
        if each.datatype != types.get(each.name, each.datatype):
            raise LoadFailed(
                f"it answers {each.name} as {each.datatype}, but the entry says {types[each.name]}", field="outputs"
            )
    for name, value in example.outputs.items():
        field = f"example.outputs.{name}"
        if name not in outputs:
            raise LoadFailed("its answer to the example lacks this output", field=field)
        output = answer.outputs[outputs[name]]
        wanted = _array(value, output.datatype, field)
        got = _decode(answer.raw_output_contents[outputs[name]], output.datatype, output.shape)
        if got.shape != wanted.shape:
            raise LoadFailed(
                f"its answer to the example has shape {list(got.shape)}, expected {list(wanted.shape)}", field=field
            )
        different = _different(got, wanted, example.tolerance)
        if different.any():
            first = tuple(int(index) for index in np.argwhere(different)[0])
            raise LoadFailed(
                f"its answer to the example differs: at {list(first)} it gave {got[first]}, "
                f"expected {wanted[first]} (tolerance {example.tolerance:g})",
                field=field,
            )


def _encode(values: NDArray[Any], data_type: str) -> bytes:
    if data_type == "BYTES":
        return serialize_byte_tensor(values).item() if values.size else b""
    if data_type == "BF16":
        return (values.view("<u4") >> 16).astype("<u2").tobytes()
    return values.tobytes()


def _decode(content: bytes, data_type: str, shape: Sequence[int]) -> NDArray[Any]:
    if data_type == "BYTES":
        return deserialize_bytes_tensor(content).reshape(tuple(shape))  # type: ignore[no-any-return]
    if data_type == "BF16":
        upper_half = np.frombuffer(content, dtype="<u2").astype("<u4") << 16
        return upper_half.view("<f4").reshape(tuple(shape))
    return np.frombuffer(content, dtype=triton_to_np_dtype(data_type)).reshape(tuple(shape))


def _different(got: NDArray[Any], wanted: NDArray[Any], tolerance: float) -> NDArray[np.bool_]:
    if wanted.dtype.kind in "Ob":
        return np.asarray(got != wanted)
    exact = got.astype(np.float64), wanted.astype(np.float64)
    return ~np.isclose(*exact, rtol=tolerance, atol=tolerance, equal_nan=True)
