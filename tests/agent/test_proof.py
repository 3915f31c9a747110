"""What passes for an entry's metadata and example, without a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from controlplane.agent.triton.proof import SEQUENCE_ID, check_answer, check_metadata, example_request
from controlplane.core.entry import DataType, Entry, Example, SequenceBatching, Tensor
from controlplane.core.errors import LoadFailed
from controlplane.core.names import Key

KEY = Key("m", 3)


def entry(data_type: DataType = "FP32", **more: Any) -> Entry:
    tensor = Tensor(name="X", data_type=data_type, dims=(2,))
    return Entry(name="m", backend="python", inputs=(tensor,), outputs=(tensor,), max_batch_size=4, **more)


def metadata(name: str = "X", data_type: str = "FP32", shape: tuple[int, ...] = (-1, 2)) -> Any:
    tensor = service_pb2.ModelMetadataResponse.TensorMetadata(name=name, datatype=data_type, shape=shape)
    return service_pb2.ModelMetadataResponse(name="m", inputs=[tensor], outputs=[tensor])


@pytest.mark.parametrize(
    ("served", "passes"),
    [
        pytest.param(metadata(), True, id="equal"),
        pytest.param(metadata(name="Y"), False, id="name"),
        pytest.param(metadata(data_type="FP16"), False, id="type"),
        pytest.param(metadata(shape=(2,)), False, id="no batch dimension"),
        pytest.param(metadata(shape=(-1, 3)), False, id="shape"),
    ],
)
def test_metadata(served: Any, passes: bool) -> None:
    if passes:
        check_metadata(served, entry())
    else:
        with pytest.raises(LoadFailed, match="but the entry says X FP32"):
            check_metadata(served, entry())


def answer(values: Any, data_type: DataType, dtype: Any) -> Any:
    array = np.array(values, dtype=dtype)
    content = serialize_byte_tensor(array).item() if data_type == "BYTES" else array.tobytes()
    output = service_pb2.ModelInferResponse.InferOutputTensor(name="X", datatype=data_type, shape=array.shape)
    return service_pb2.ModelInferResponse(outputs=[output], raw_output_contents=[content])


@pytest.mark.parametrize(
    ("data_type", "dtype", "got", "expected", "passes"),
    [
        pytest.param("FP32", np.float32, [[1.0, 2.00001]], [[1, 2]], True, id="within tolerance"),
        pytest.param("FP32", np.float32, [[1.0, 2.1]], [[1, 2]], False, id="beyond tolerance"),
        pytest.param("FP32", np.float32, [[1.0, np.nan]], [[1, 2]], False, id="not a number"),
        pytest.param("FP32", np.float32, [[1.0, np.nan]], [[1, np.nan]], True, id="not a number, as expected"),
        pytest.param("FP16", np.float16, [[1.0, 2.0]], [[1, 2]], True, id="half"),
        pytest.param("INT64", np.int64, [[1, 2]], [[1, 3]], False, id="integers"),
        pytest.param("UINT8", np.uint8, [[0, 255]], [[0, 255]], True, id="bytes"),
        pytest.param("BOOL", np.bool_, [[True, False]], [[True, False]], True, id="booleans"),
        pytest.param("BOOL", np.bool_, [[True, False]], [[True, True]], False, id="different booleans"),
        pytest.param("BYTES", np.object_, [[b"a", "ü".encode()]], [["a", "ü"]], True, id="text"),
        pytest.param("BYTES", np.object_, [[b"a", b"b"]], [["a", "c"]], False, id="different text"),
        pytest.param("BF16", "<u2", [[0x3F80, 0x4000]], [[1.0, 2.0]], True, id="brain float"),
        pytest.param("FP32", np.float32, [[1.0]], [[1, 2]], False, id="another shape"),
    ],
)
def test_answer(data_type: DataType, dtype: Any, got: Any, expected: Any, passes: bool) -> None:
    example = Example(inputs={}, outputs={"X": expected})
    if passes:
        check_answer(answer(got, data_type, dtype), entry(data_type), example)
    else:
        with pytest.raises(LoadFailed) as failed:
            check_answer(answer(got, data_type, dtype), entry(data_type), example)
        assert failed.value.field == "example.outputs.X"


@pytest.mark.parametrize(
    ("data_type", "value", "content"),
    [
        pytest.param("FP32", [[1, 2]], np.array([1, 2], np.float32).tobytes(), id="float"),
        pytest.param("BF16", [[1, 2]], b"\x80\x3f\x00\x40", id="brain float"),
        pytest.param("BYTES", [["a", "bc"]], b"\x01\x00\x00\x00a\x02\x00\x00\x00bc", id="text"),
        pytest.param("BOOL", [[True, False]], b"\x01\x00", id="booleans"),
    ],
)
def test_request(data_type: DataType, value: Any, content: bytes) -> None:
    request = example_request(KEY, entry(data_type), Example(inputs={"X": value}))
    assert (request.model_name, request.model_version) == ("m", "3")
    assert list(request.inputs[0].shape) == [1, 2]
    assert request.raw_input_contents[0] == content
    assert "sequence_id" not in request.parameters


def test_a_sequence_of_one_request() -> None:
    request = example_request(KEY, entry(sequence_batching=SequenceBatching()), Example(inputs={"X": [[1, 2]]}))
    assert request.parameters["sequence_id"].int64_param == SEQUENCE_ID
    assert request.parameters["sequence_start"].bool_param
    assert request.parameters["sequence_end"].bool_param


@pytest.mark.parametrize("value", [[["x"]], [[1], [1, 2]], None], ids=["text", "ragged", "null"])
def test_an_example_that_is_no_tensor(value: Any) -> None:
    with pytest.raises(LoadFailed, match="no tensor of type INT32"):
        example_request(KEY, entry("INT32"), Example(inputs={"X": value}))
