"""Each kind of configuration that the wheel's server can serve is loaded, answers, and is what it says it has."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from onnx import TensorProto, helper

from controlplane.core.entry import (
    ControlInput,
    DynamicBatching,
    EnsembleStep,
    Entry,
    InstanceGroup,
    QueuePolicy,
    RateLimiter,
    RateLimiterResource,
    SequenceBatching,
    StateTensor,
    Tensor,
    Warmup,
    WarmupInput,
)
from controlplane.core.models import Capabilities
from controlplane.local.gpus import count_gpus
from controlplane.render.backends import BACKENDS
from controlplane.render.compare import differences
from tests.render.builders import PYTHON_ONLY, X, Y, entry, manifest
from tests.render.server import WHEEL, Server

ADD_ONE = b"""
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor("y", pb.get_input_tensor_by_name(r, "x").as_numpy() + 1)]) for r in requests
        ]
"""
TWICE = b"""
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        for r in requests:
            x = pb.get_input_tensor_by_name(r, "x").as_numpy()
            sender = r.get_response_sender()
            for step in (1, 2):
                sender.send(pb.InferenceResponse([pb.Tensor("y", x + step)]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def onnx_double(*, batched: bool = True) -> bytes:
    """y = x + x; `batched` leaves the first dimension free."""
    dims: list[int | str | None] = ["batch", 4] if batched else [4]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def onnx_running_sum() -> bytes:
    """y = stateN = x + state, and a scalar input `sr` that is multiplied in."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["sr"], ["factor"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "factor"], ["scaled"]),
            helper.make_node("Add", ["scaled", "state"], ["y"]),
            helper.make_node("Identity", ["y"], ["stateN"]),
        ],
        "sum",
        [
            value("x", TensorProto.FLOAT, ["b", 4]),
            value("state", TensorProto.FLOAT, ["b", 4]),
            value("sr", TensorProto.INT64, []),
        ],
        [value("y", TensorProto.FLOAT, ["b", 4]), value("stateN", TensorProto.FLOAT, ["b", 4])],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def contents(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {hashlib.sha256(data).hexdigest(): data for data in files.values()}


def serve(
    triton: Server, of: Entry, files: Mapping[str, bytes], capabilities: Capabilities = PYTHON_ONLY, version: int = 1
) -> None:
    rendered = triton.serve({version: manifest(of, files)}, contents(files), capabilities)
    served = triton.client.get_model_config(of.name).config
    assert differences(rendered.config_text, served) == ()


def ask(triton: Server, model: str, x: Any, version: int = 1, **more: Any) -> np.ndarray[Any, Any]:
    tensor = grpcclient.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    inputs = [tensor, *more.pop("inputs", ())]
    answer = triton.client.infer(model, inputs, model_version=str(version), client_timeout=20, **more)
    value: np.ndarray[Any, Any] | None = answer.as_numpy("y")
    assert value is not None
    return value


def counts(triton: Server, model: str, version: str, *, at_least: int) -> tuple[int, int]:
    """Inferences and executions; Triton counts them only after it has answered."""
    deadline = time.monotonic() + 10
    while True:
        stats = triton.client.get_inference_statistics(model, version).model_stats[0]
        if stats.inference_count >= at_least or time.monotonic() > deadline:
            return stats.inference_count, stats.execution_count
        time.sleep(0.02)


ONE = np.ones((1, 4), np.float32)
CASES: dict[str, tuple[dict[str, Any], dict[str, bytes]]] = {
    "python": ({"max_batch_size": 8}, {"model.py": ADD_ONE}),
    "dynamic-batching": (
        {
            "max_batch_size": 8,
            "dynamic_batching": DynamicBatching(
                preferred_batch_size=(4, 8), max_queue_delay_us=100, preserve_ordering=True
            ),
        },
        {"model.py": ADD_ONE},
    ),
    "priorities": (
        {
            "max_batch_size": 8,
            "dynamic_batching": DynamicBatching(
                priority_levels=2,
                default_priority_level=2,
                default_queue_policy=QueuePolicy(max_queue_size=10),
                priority_queue_policy={
                    1: QueuePolicy(timeout_action="DELAY", default_timeout_us=1_000_000, allow_timeout_override=True)
                },
            ),
        },
        {"model.py": ADD_ONE},
    ),
    "rate-limiter": (
        {
            "max_batch_size": 8,
            "instances": (
                InstanceGroup(
                    kind="CPU",
                    count=2,
                    name="slow",
                    rate_limiter=RateLimiter(
                        resources=(RateLimiterResource(name="slots", count=2, is_global=True),), priority=2
                    ),
                ),
            ),
        },
        {"model.py": ADD_ONE},
    ),
    "response-cache": ({"max_batch_size": 8, "response_cache": True}, {"model.py": ADD_ONE}),
    "warm-up": (
        {
            "max_batch_size": 8,
            "warmup": (
                Warmup(name="zeros", batch_size=8, count=2, inputs={"x": WarmupInput(data_type="FP32", dims=(4,))}),
                Warmup(name="file", inputs={"x": WarmupInput(data_type="FP32", dims=(4,), file="first.bin")}),
            ),
        },
        {"model.py": ADD_ONE, "warmup/first.bin": np.ones(4, np.float32).tobytes()},
    ),
    "strange-words": (
        {
            "max_batch_size": 8,
            "parameters": {'a"b\n} backend: "evil"': "é\\\x01'"},
            "metric_tags": {"team": "söme \"body\""},
            "outputs": (Tensor(name="y", data_type="FP32", dims=(4,), label_filename='la"bels.txt'),),
        },
        {"model.py": ADD_ONE, 'la"bels.txt': b"a\nb\nc\nd\n"},
    ),
    "raw-config": (
        {"max_batch_size": 8, "config": 'dynamic_batching { max_queue_delay_microseconds: 7 }'},
        {"model.py": ADD_ONE},
    ),
    "reshape": (
        {
            "inputs": (Tensor(name="x", data_type="FP32", dims=(1, 4), reshape=(4,)),),
            "outputs": (Tensor(name="y", data_type="FP32", dims=(1, 4), reshape=(4,)),),
        },
        {"model.py": ADD_ONE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_loads_answers_and_has_the_configuration(triton: Server, case: str) -> None:
    fields, files = CASES[case]
    of = entry(name=f"live-{case}", **fields)
    serve(triton, of, files)
    assert ask(triton, of.name, ONE).tolist() == [[2.0] * 4]


@pytest.mark.skipif(not count_gpus(), reason="not run: there is no GPU here (golden-tested only)")
def test_instances_on_each_gpu(triton: Server) -> None:
    of = entry(name="live-gpus", max_batch_size=8, instances=(InstanceGroup(kind="GPU", count=2),))
    serve(triton, of, {"model.py": ADD_ONE}, dataclasses.replace(PYTHON_ONLY, gpus=count_gpus()))
    assert ask(triton, of.name, ONE).tolist() == [[2.0] * 4]


@pytest.mark.parametrize("backend", sorted(BACKENDS.keys() - {"python", "ensemble"}))
def test_backends_that_the_wheel_does_not_bring(triton: Server, backend: str) -> None:
    if not (WHEEL / "backends" / backend).exists():
        pytest.skip(f"not run: the server here has no {backend} backend (golden-tested only)")
    assert backend == "onnxruntime", f"this server has {backend}: give it a model of its kind here"
    of = entry(name="live-native", backend=backend, max_batch_size=8)
    capabilities = dataclasses.replace(PYTHON_ONLY, backends=("python", backend))
    serve(triton, of, {"model.onnx": onnx_double()}, capabilities)
    assert ask(triton, of.name, ONE).tolist() == [[2.0] * 4]


def test_a_decoupled_model_answers_more_than_once(triton: Server) -> None:
    serve(triton, entry(name="live-decoupled", max_batch_size=4, decoupled=True), {"model.py": TWICE})
    answers: list[Any] = []
    done = threading.Event()

    def collect(result: Any, error: Any) -> None:
        answers.append(error if error is not None else result.as_numpy("y").tolist())
        if len(answers) == 2:
            done.set()

    with grpcclient.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
        client.start_stream(collect)
        tensor = grpcclient.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(ONE)
        client.async_stream_infer("live-decoupled", [tensor], model_version="1")
        assert done.wait(20)
    assert answers == [[[2.0] * 4], [[3.0] * 4]]


def onnx_entry(**fields: Any) -> Entry:
    return entry(backend="onnxruntime", **fields)


def test_onnx_requests_are_joined_into_batches(triton: Server) -> None:
    batching = DynamicBatching(max_queue_delay_us=200_000, preferred_batch_size=(8,))
    serve(
        triton,
        onnx_entry(name="live-onnx", max_batch_size=8, dynamic_batching=batching),
        {"model.onnx": onnx_double()},
        version=3,
    )
    answers: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: answers.update({n: ask(triton, "live-onnx", ONE * n, version=3)}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: answer.tolist() for n, answer in answers.items()} == {n: [[2.0 * n] * 4] for n in range(8)}
    inferences, executions = counts(triton, "live-onnx", "3", at_least=8)
    assert inferences == 8
    assert executions < 8


def test_onnx_without_batching(triton: Server) -> None:
    serve(triton, onnx_entry(name="live-onnx-one"), {"model.onnx": onnx_double(batched=False)})
    assert ask(triton, "live-onnx-one", np.ones(4, np.float32)).tolist() == [2.0] * 4


@pytest.mark.parametrize(("strategy", "max_batch_size"), [("direct", 4), ("oldest", 4), ("oldest", 0)], ids=str)
def test_onnx_sequences_keep_their_states_apart(triton: Server, strategy: Any, max_batch_size: int) -> None:
    name = f"live-sequence-{strategy}-{max_batch_size}"
    lead = () if max_batch_size else (1,)
    sequence = SequenceBatching(
        strategy=strategy,
        max_candidate_sequences=4 if strategy == "oldest" else 0,
        states=(StateTensor(input_name="state", output_name="stateN", data_type="FP32", dims=(*lead, 4)),),
    )
    # A scalar can't be batched: there the model gets it as a constant of its own.
    inputs = (Tensor(name="x", data_type="FP32", dims=(*lead, 4)),)
    scalar = (Tensor(name="sr", data_type="INT64", dims=(1,)),)
    of = onnx_entry(
        name=name,
        max_batch_size=max_batch_size,
        sequence_batching=sequence,
        inputs=inputs if max_batch_size else (*inputs, *scalar),
        outputs=(Tensor(name="y", data_type="FP32", dims=(*lead, 4)),),
    )
    serve(triton, of, {"model.onnx": onnx_running_sum_batched() if max_batch_size else onnx_running_sum()})
    factor = grpcclient.InferInput("sr", [1], "INT64")
    factor.set_data_from_numpy(np.array([10], np.int64))
    extra = [] if max_batch_size else [factor]
    seen: dict[Any, list[float]] = {7: [], "word": []}
    for step in range(3):
        for correlation, values in seen.items():
            answer = ask(
                triton,
                name,
                ONE * (1 if correlation == 7 else 2),
                inputs=extra,
                sequence_id=correlation,
                sequence_start=step == 0,
                sequence_end=step == 2,
            )
            values.append(float(answer[0, 0]))
    unit = 1.0 if max_batch_size else 10.0
    assert seen == {7: [unit, 2 * unit, 3 * unit], "word": [2 * unit, 4 * unit, 6 * unit]}
    assert (
        float(ask(triton, name, ONE, inputs=extra, sequence_id=7, sequence_start=True, sequence_end=True)[0, 0]) == unit
    )


def onnx_running_sum_batched() -> bytes:
    """y = stateN = x + state."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "state"], ["y"]), helper.make_node("Identity", ["y"], ["stateN"])],
        "sum",
        [value("x", TensorProto.FLOAT, ["b", 4]), value("state", TensorProto.FLOAT, ["b", 4])],
        [value("y", TensorProto.FLOAT, ["b", 4]), value("stateN", TensorProto.FLOAT, ["b", 4])],
    )
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_control_inputs_reach_the_model(triton: Server) -> None:
    tell = b"""
import numpy as np, triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("y", self.all(request))]) for request in requests]

    def all(self, request):
        values = [pb.get_input_tensor_by_name(request, name).as_numpy() for name in "serc"]
        return np.array([[float(value.ravel()[0]) for value in values]], np.float32)
"""
    controls = (
        ControlInput(name="s", kind="START", data_type="INT32"),
        ControlInput(name="e", kind="END", data_type="FP32", false_true=(-1, 5)),
        ControlInput(name="r", kind="READY", data_type="BOOL"),
        ControlInput(name="c", kind="CORRID", data_type="UINT64"),
    )
    of = entry(name="live-controls", max_batch_size=2, sequence_batching=SequenceBatching(control_inputs=controls))
    serve(triton, of, {"model.py": tell})
    answer = ask(triton, "live-controls", ONE, sequence_id=9, sequence_start=True, sequence_end=False)
    assert answer.tolist() == [[1.0, -1.0, 1.0, 9.0]]


def test_versions_side_by_side_under_one_configuration(triton: Server) -> None:
    add_ten = ADD_ONE.replace(b"+ 1", b"+ 10")
    old = manifest(entry(name="live-two", max_batch_size=4), {"model.py": ADD_ONE})
    new = manifest(entry(name="live-two", max_batch_size=8, dynamic_batching=DynamicBatching()), {"model.py": add_ten})
    files = contents({"a": ADD_ONE, "b": add_ten})
    triton.serve({1: old}, files, PYTHON_ONLY)
    assert ask(triton, "live-two", ONE).tolist() == [[2.0] * 4]
    triton.serve({1: old, 2: new}, files, PYTHON_ONLY)
    assert ask(triton, "live-two", ONE, version=1).tolist() == [[2.0] * 4]
    assert ask(triton, "live-two", ONE, version=2).tolist() == [[11.0] * 4]
    triton.serve({2: new}, files, PYTHON_ONLY)
    assert ask(triton, "live-two", ONE, version=2).tolist() == [[11.0] * 4]
    with pytest.raises(grpcclient.InferenceServerException):
        ask(triton, "live-two", ONE, version=1)


def test_an_ensemble_runs_the_pinned_versions_of_its_steps(triton: Server) -> None:
    serve(triton, entry(name="live-step-a", max_batch_size=8), {"model.py": ADD_ONE}, version=2)
    serve(triton, onnx_entry(name="live-step-b", max_batch_size=8), {"model.onnx": onnx_double()})
    steps = (
        EnsembleStep(model_name="live-step-a", model_version=2, input_map={"x": "x"}, output_map={"y": "middle"}),
        EnsembleStep(model_name="live-step-b", model_version=1, input_map={"x": "middle"}, output_map={"y": "y"}),
    )
    of = entry(name="live-ensemble", backend="ensemble", max_batch_size=8, ensemble=steps, inputs=(X,), outputs=(Y,))
    serve(triton, of, {})
    assert ask(triton, "live-ensemble", ONE).tolist() == [[4.0] * 4]


def test_a_bad_request_fails_alone_in_its_batch(triton: Server) -> None:
    """Row 0 of `x` picks an element by index: 9 is none."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "pick",
        [value("x", TensorProto.INT64, ["b", 1])],
        [value("y", TensorProto.FLOAT, ["b", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [0.5, 1.5, 2.5])],
    )
    data = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    of = onnx_entry(
        name="live-bad",
        max_batch_size=8,
        dynamic_batching=DynamicBatching(max_queue_delay_us=200_000, preferred_batch_size=(4,)),
        inputs=(Tensor(name="x", data_type="INT64", dims=(1,)),),
        outputs=(Tensor(name="y", data_type="FP32", dims=(1,)),),
    )
    serve(triton, of, {"model.onnx": data})
    results: dict[int, Any] = {}

    def one(index: int) -> None:
        tensor = grpcclient.InferInput("x", [1, 1], "INT64")
        tensor.set_data_from_numpy(np.array([[index]], np.int64))
        try:
            answer = triton.client.infer("live-bad", [tensor], model_version="1", client_timeout=20)
            results[index] = float(answer.as_numpy("y")[0, 0])
        except grpcclient.InferenceServerException as error:
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in (0, 1, 2, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {index: results[index] for index in (0, 1, 2)} == {0: 0.5, 1: 1.5, 2: 2.5}
    assert isinstance(results[9], grpcclient.InferenceServerException)


def test_an_element_for_each_row(triton: Server) -> None:
    """Tensors of shape [batch]: dims [1], reshaped to nothing."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    data = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    of = onnx_entry(
        name="live-rows",
        max_batch_size=8,
        dynamic_batching=DynamicBatching(),
        inputs=(Tensor(name="x", data_type="FP32", dims=(1,), reshape=()),),
        outputs=(Tensor(name="y", data_type="FP32", dims=(1,), reshape=()),),
    )
    serve(triton, of, {"model.onnx": data})
    assert ask(triton, "live-rows", np.array([[1], [2]], np.float32)).tolist() == [[2.0], [4.0]]


def test_a_version_joins_without_a_failed_request(triton: Server) -> None:
    """The configuration changes with it, so Triton loads the old version anew, behind what it serves."""
    add_ten = ADD_ONE.replace(b"+ 1", b"+ 10")
    old = manifest(entry(name="live-join", max_batch_size=4), {"model.py": ADD_ONE})
    new = manifest(entry(name="live-join", max_batch_size=8, dynamic_batching=DynamicBatching()), {"model.py": add_ten})
    files = contents({"a": ADD_ONE, "b": add_ten})
    triton.serve({1: old}, files, PYTHON_ONLY)
    joined, answers = threading.Event(), []

    def keep_asking() -> None:
        while not joined.is_set():
            try:
                answers.append(ask(triton, "live-join", ONE).tolist())
            except grpcclient.InferenceServerException as error:
                answers.append(error)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        triton.serve({1: old, 2: new}, files, PYTHON_ONLY)
    finally:
        joined.set()
        thread.join()
    assert answers
    assert [answer for answer in answers if answer != [[2.0] * 4]] == []
    assert ask(triton, "live-join", ONE, version=2).tolist() == [[11.0] * 4]
