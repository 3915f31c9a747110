"""Every check by table: what is wrong, where it is said to be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from controlplane.core.entry import (
    Accelerator,
    ControlInput,
    DynamicBatching,
    EnsembleStep,
    InstanceGroup,
    Optimization,
    QueuePolicy,
    RateLimiter,
    RateLimiterResource,
    SequenceBatching,
    Serving,
    StateTensor,
    Tensor,
    Warmup,
    WarmupInput,
)
from controlplane.core.errors import InvalidEntry
from controlplane.core.models import Capabilities, Manifest
from controlplane.render.render import render
from tests.render.builders import FILES, NVIDIA, PYTHON_ONLY, X, Y, entry, manifest

NO_CACHE = dataclasses.replace(PYTHON_ONLY, response_cache=False)
NOTHING = Capabilities(server_version="2.51.0", backends=("python",))
RAW_WARMUP = """model_warmup {
  name: "w" batch_size: 16 inputs { key: "x" value { data_type: TYPE_FP32 dims: [4] zero_data: true } }
}"""
ZEROS = WarmupInput(data_type="FP32", dims=(4,))


def batching(**fields: Any) -> dict[str, Any]:
    return {"max_batch_size": 8, "dynamic_batching": DynamicBatching(**fields)}


def sequence(**fields: Any) -> dict[str, Any]:
    return {"max_batch_size": 8, "sequence_batching": SequenceBatching(**fields)}


def warm(**fields: Any) -> dict[str, Any]:
    return {"max_batch_size": 8, "warmup": (Warmup(**{"name": "w", "inputs": {"x": ZEROS}} | fields),)}


def x(**fields: Any) -> dict[str, Any]:
    return {"inputs": (Tensor(**{"name": "x", "data_type": "FP32", "dims": (4,)} | fields),)}


def ensemble(*steps: EnsembleStep, **fields: Any) -> dict[str, Any]:
    return {"backend": "ensemble", "max_batch_size": 4, "ensemble": steps} | fields


def step(model: str = "a", **fields: Any) -> EnsembleStep:
    maps: dict[str, Any] = {"input_map": {"x": "x"}, "output_map": {"y": "y"}}
    return EnsembleStep(model_name=model, **{"model_version": 1} | maps | fields)


CASES: dict[str, tuple[dict[str, Any], Capabilities, str]] = {
    # Triton refuses these, with "failed to poll from model repository".
    "name-elsewhere": ({"config": 'name: "other"'}, PYTHON_ONLY, "config: name"),
    "bad-name": ({"name": "a/../b"}, PYTHON_ONLY, "name"),
    "no-data-type": ({"config": 'input { name: "x" dims: [4] }'}, PYTHON_ONLY, "config: input[0].data_type"),
    "no-dims": (x(dims=()), PYTHON_ONLY, "inputs[0].dims"),
    "dim-zero": (x(dims=(4, 0)), PYTHON_ONLY, "inputs[0].dims"),
    "dim-minus-two": (x(dims=(-2,)), PYTHON_ONLY, "inputs[0].dims"),
    "dim-beyond-64-bits": (x(dims=(2**70,)), PYTHON_ONLY, "None"),
    "negative-max-batch-size": ({"max_batch_size": -1}, PYTHON_ONLY, "max_batch_size"),
    "preferred-above-max": (batching(preferred_batch_size=(16,)), PYTHON_ONLY, "dynamic_batching.preferred_batch_size"),
    "preferred-zero": (batching(preferred_batch_size=(0,)), PYTHON_ONLY, "dynamic_batching.preferred_batch_size"),
    "preferred-above-max-oldest": (
        sequence(strategy="oldest", max_candidate_sequences=2, preferred_batch_size=(9,)),
        PYTHON_ONLY,
        "sequence_batching.preferred_batch_size",
    ),
    "no-default-priority": (batching(priority_levels=2), PYTHON_ONLY, "dynamic_batching.default_priority_level"),
    "default-priority-too-high": (
        batching(priority_levels=2, default_priority_level=3),
        PYTHON_ONLY,
        "dynamic_batching.default_priority_level",
    ),
    "policy-of-no-level": (
        batching(priority_levels=2, default_priority_level=1, priority_queue_policy={3: QueuePolicy()}),
        PYTHON_ONLY,
        "dynamic_batching.priority_queue_policy[3]",
    ),
    "policy-without-levels": (
        batching(priority_queue_policy={1: QueuePolicy()}),
        PYTHON_ONLY,
        "dynamic_batching.priority_queue_policy[1]",
    ),
    "order-and-priorities": (
        batching(preserve_ordering=True, priority_levels=2, default_priority_level=1),
        PYTHON_ONLY,
        "dynamic_batching.preserve_ordering",
    ),
    "cpu-with-gpus": ({"instances": (InstanceGroup(kind="CPU", gpus=(0,)),)}, NVIDIA, "instances[0].gpus"),
    "version-policy": (
        {"config": "version_policy { latest { num_versions: 0 } }"},
        PYTHON_ONLY,
        "config: version_policy",
    ),
    "label-file-missing": (
        {"outputs": (Tensor(name="y", data_type="FP32", dims=(4,), label_filename="no.txt"),)},
        PYTHON_ONLY,
        "outputs[0].label_filename",
    ),
    "reshape-of-another-size": (x(reshape=(5,)), PYTHON_ONLY, "inputs[0].reshape"),
    "reshape-moves-the-free-dim": (x(dims=(-1, 4), reshape=(4, -1)), PYTHON_ONLY, "inputs[0].reshape"),
    "reshape-to-scalar": (x(dims=(1,), reshape=()), PYTHON_ONLY, "inputs[0].reshape"),
    "image-format": (x(format="NHWC"), PYTHON_ONLY, "inputs[0].format"),
    "cache-and-decoupled": ({"response_cache": True, "decoupled": True}, PYTHON_ONLY, "response_cache"),
    "cache-and-sequence": ({"response_cache": True, **sequence()}, PYTHON_ONLY, "response_cache"),
    "two-schedulers": ({**batching(), **sequence()}, PYTHON_ONLY, "sequence_batching"),
    "ensemble-with-instances": (ensemble(step(), instances=(InstanceGroup(),)), PYTHON_ONLY, "instances"),
    "ensemble-of-an-unknown-model": (ensemble(step("gone")), PYTHON_ONLY, "ensemble[0].model_name"),
    "ensemble-batches-more-than-a-step": (ensemble(step(), max_batch_size=9), PYTHON_ONLY, "max_batch_size"),
    "ensemble-of-two-types": (ensemble(step("ints")), PYTHON_ONLY, "ensemble[0].input_map[x]"),
    "ensemble-maps-no-such-tensor": (
        ensemble(step(input_map={"x": "x", "z": "x"})),
        PYTHON_ONLY,
        "ensemble[0].input_map[z]",
    ),
    "ensemble-leaves-an-input": (ensemble(step(input_map={})), PYTHON_ONLY, "ensemble[0].input_map"),
    "ensemble-uses-what-nobody-makes": (ensemble(step(input_map={"x": "w"})), PYTHON_ONLY, "ensemble[0].input_map"),
    "ensemble-makes-twice": (ensemble(step(), step()), PYTHON_ONLY, "ensemble[1].output_map"),
    "ensemble-without-its-output": (ensemble(step(output_map={"y": "w"})), PYTHON_ONLY, "outputs[0].name"),
    "ensemble-in-a-circle": (
        ensemble(step(input_map={"x": "a"}, output_map={"y": "y"}), step(input_map={"x": "y"}, output_map={"y": "a"})),
        PYTHON_ONLY,
        "ensemble",
    ),
    "ensemble-of-itself": (ensemble(step("m")), PYTHON_ONLY, "ensemble[0].model_name"),
    "ensemble-not-pinned": (ensemble(step(model_version=None)), PYTHON_ONLY, "ensemble[0].model_version"),
    "ensemble-without-steps": ({"backend": "ensemble"}, PYTHON_ONLY, "ensemble"),
    # Triton takes these without a word.
    "batching-of-nothing": ({"dynamic_batching": DynamicBatching()}, PYTHON_ONLY, "dynamic_batching"),
    "duplicate-input": ({"inputs": (X, X)}, PYTHON_ONLY, "inputs[1].name"),
    "duplicate-output": ({"outputs": (Y, Y)}, PYTHON_ONLY, "outputs[1].name"),
    "no-instances": ({"instances": (InstanceGroup(kind="CPU", count=0),)}, PYTHON_ONLY, "instances[0].count"),
    "negative-instances": ({"instances": (InstanceGroup(kind="CPU", count=-2),)}, PYTHON_ONLY, "instances[0].count"),
    "no-server-cache": ({"response_cache": True}, NO_CACHE, "response_cache"),
    "foreign-accelerator": (
        {"backend": "tensorrt", "optimization": Optimization(gpu_accelerators=(Accelerator(name="openvino"),))},
        NVIDIA,
        "optimization.gpu_accelerators[0]",
    ),
    "accelerator-behind-the-python-backend": (
        {"backend": "onnxruntime", "optimization": Optimization(cpu_accelerators=(Accelerator(name="openvino"),))},
        PYTHON_ONLY,
        "optimization.cpu_accelerators[0]",
    ),
    **{
        f"cuda-graphs-of-{backend}": (
            {"backend": backend, "optimization": Optimization(cuda_graphs=True)},
            NVIDIA,
            "optimization.cuda_graphs",
        )
        for backend in ("python", "onnxruntime", "pytorch", "openvino")
    },
    "cuda-graphs-in-raw-config": (
        {"config": "optimization { cuda { graphs: true } }"},
        PYTHON_ONLY,
        "config: optimization.cuda_graphs",
    ),
    # It kills the server.
    "warm-up-larger-than-max": (warm(batch_size=16), PYTHON_ONLY, "warmup[0].batch_size"),
    "warm-up-batch-without-batching": (
        {**warm(batch_size=2), "max_batch_size": 0},
        PYTHON_ONLY,
        "warmup[0].batch_size",
    ),
    "warm-up-in-raw-config": (
        {"max_batch_size": 8, "config": RAW_WARMUP},
        PYTHON_ONLY,
        "config: model_warmup[0].batch_size",
    ),
    "warm-up-of-no-input": (warm(inputs={"z": ZEROS, "x": ZEROS}), PYTHON_ONLY, "warmup[0].inputs[z]"),
    "warm-up-lacks-an-input": (warm(inputs={}), PYTHON_ONLY, "warmup[0].inputs"),
    "warm-up-of-another-type": (
        warm(inputs={"x": WarmupInput(data_type="INT32", dims=(4,))}),
        PYTHON_ONLY,
        "warmup[0].inputs[x].data_type",
    ),
    "warm-up-of-free-dims": (
        {**x(dims=(-1,)), **warm(inputs={"x": WarmupInput(data_type="FP32", dims=(-1,))})},
        PYTHON_ONLY,
        "warmup[0].inputs[x].dims",
    ),
    "warm-up-of-other-dims": (
        warm(inputs={"x": WarmupInput(data_type="FP32", dims=(5,))}),
        PYTHON_ONLY,
        "warmup[0].inputs[x].dims",
    ),
    "warm-up-too-large": (
        {**x(dims=(-1,)), **warm(inputs={"x": WarmupInput(data_type="FP32", dims=(1 << 40,))})},
        PYTHON_ONLY,
        "warmup[0].inputs[x].dims",
    ),
    "warm-up-file-missing": (
        warm(inputs={"x": dataclasses.replace(ZEROS, file="no.bin")}),
        PYTHON_ONLY,
        "warmup[0].inputs[x].file",
    ),
    "warm-up-file-of-another-size": (
        warm(inputs={"x": dataclasses.replace(ZEROS, file="short.bin")}),
        PYTHON_ONLY,
        "warmup[0].inputs[x].file",
    ),
    # The rest.
    "no-inputs": ({"inputs": ()}, PYTHON_ONLY, "inputs"),
    "unprintable-name": (x(name="a\nb"), PYTHON_ONLY, "inputs[0].name"),
    "gpu-where-none-is": ({"instances": (InstanceGroup(kind="GPU"),)}, PYTHON_ONLY, "instances[0].kind"),
    "gpu-out-of-range": ({"instances": (InstanceGroup(kind="GPU", gpus=(2,)),)}, NVIDIA, "instances[0].gpus"),
    "gpu-twice": ({"instances": (InstanceGroup(kind="GPU", gpus=(1, 1)),)}, NVIDIA, "instances[0].gpus"),
    "tensorrt-on-the-cpu": (
        {"backend": "tensorrt", "instances": (InstanceGroup(kind="CPU"),)},
        NVIDIA,
        "instances[0].kind",
    ),
    "openvino-on-a-gpu": (
        {"backend": "openvino", "instances": (InstanceGroup(kind="GPU"),)},
        NVIDIA,
        "instances[0].kind",
    ),
    "copies-that-contradict": (
        {"serving": Serving(min_copies=3, max_copies=2)},
        PYTHON_ONLY,
        "serving.max_copies",
    ),
    "apart-from-itself": ({"serving": Serving(apart_from=("m",))}, PYTHON_ONLY, "serving.apart_from"),
    "unknown-backend-there": ({"backend": "openvino"}, PYTHON_ONLY, "backend"),
    "onnx-without-the-package": ({"backend": "onnxruntime"}, NOTHING, "backend"),
    "newer-field": ({"config": "model_metrics { metric_control { } }"}, PYTHON_ONLY, "config: model_metrics"),
    "raw-sequence": ({"max_batch_size": 4, "config": "sequence_batching {}"}, PYTHON_ONLY, "config: sequence_batching"),
    "raw-ensemble": (
        {"config": 'ensemble_scheduling { step { model_name: "a" } }'},
        PYTHON_ONLY,
        "config: ensemble_scheduling",
    ),
    "raw-batching-for-sequences": (
        sequence() | {"config": "dynamic_batching {}"},
        PYTHON_ONLY,
        "config: dynamic_batching",
    ),
    "raw-not-a-config": ({"config": "maxBatchSize: 8"}, PYTHON_ONLY, "config"),
    "raw-short-type": ({"config": 'input { name: "x" data_type: FP32 dims: [4] }'}, PYTHON_ONLY, "config"),
    "raw-zero-batch": ({"max_batch_size": 4, "config": "max_batch_size: 0"}, PYTHON_ONLY, "config: max_batch_size"),
    "raw-library": (
        {"config": 'model_operations { op_library_filename: "evil.so" }'},
        PYTHON_ONLY,
        "config: model_operations",
    ),
    "decoupled-onnx": ({"backend": "onnxruntime", "decoupled": True}, PYTHON_ONLY, "decoupled"),
    "ragged-without-batching": (x(allow_ragged_batch=True), PYTHON_ONLY, "inputs[0].allow_ragged_batch"),
    "torch-output-name": ({"backend": "pytorch"}, NVIDIA, "outputs[0].name"),
    "rate-limit-two-scopes": (
        {
            "instances": tuple(
                InstanceGroup(
                    kind="CPU",
                    rate_limiter=RateLimiter(resources=(RateLimiterResource(name="r", count=1, is_global=flag),)),
                )
                for flag in (True, False)
            )
        },
        PYTHON_ONLY,
        "instances[1].rate_limiter",
    ),
    "oldest-without-candidates": (
        sequence(strategy="oldest"),
        PYTHON_ONLY,
        "sequence_batching.max_candidate_sequences",
    ),
    "control-is-an-input": (
        sequence(control_inputs=(ControlInput(name="x", kind="START", data_type="INT32"),)),
        PYTHON_ONLY,
        "sequence_batching.control_inputs[0].name",
    ),
    "correlation-id-type": (
        sequence(control_inputs=(ControlInput(name="c", kind="CORRID", data_type="FP32"),)),
        PYTHON_ONLY,
        "sequence_batching.control_inputs[0].data_type",
    ),
    "state-is-an-input": (
        sequence(states=(StateTensor(input_name="x", output_name="s", data_type="FP32", dims=(4,)),)),
        PYTHON_ONLY,
        "sequence_batching.states[0].input_name",
    ),
    "state-of-no-size": (
        sequence(states=(StateTensor(input_name="s", output_name="t", data_type="FP32", dims=(-1,)),)),
        PYTHON_ONLY,
        "sequence_batching.states[0].dims",
    ),
    "model-file-missing": ({"default_model_filename": "other.py"}, PYTHON_ONLY, "default_model_filename"),
}

KNOWN = {
    "a": manifest(entry(name="a", max_batch_size=8)),
    "ints": manifest(entry(name="ints", max_batch_size=8, inputs=(Tensor(name="x", data_type="INT32", dims=(4,)),))),
    "m": manifest(entry(max_batch_size=8)),
}


def known(model: str, version: int) -> Manifest | None:
    return KNOWN.get(model) if version == 1 else None


@pytest.mark.parametrize("case", CASES)
def test_it_is_found_and_named(case: str) -> None:
    fields, capabilities, field = CASES[case]
    of = entry(**fields)
    files = dict.fromkeys(FILES[of.backend], b"content") | {"warmup/short.bin": b"123"}
    with pytest.raises(InvalidEntry) as caught:
        render(manifest(of, files), 1, capabilities, known)
    assert field in [str(problem.field) for problem in caught.value.problems]
    assert all(problem.remedy for problem in caught.value.problems)


@pytest.mark.parametrize("backend", ["python", "onnxruntime", "tensorrt", "pytorch", "openvino", "ensemble"])
def test_an_entry_without_faults_passes(backend: str) -> None:
    fields: dict[str, Any] = ensemble(step()) if backend == "ensemble" else {"backend": backend}
    if backend == "pytorch":
        fields |= {"outputs": (dataclasses.replace(Y, name="y__0"),)}
    assert render(manifest(entry(**fields)), 1, NVIDIA, known).config_text


def test_all_findings_come_at_once() -> None:
    of = entry(inputs=(X, X), instances=(InstanceGroup(kind="CPU", count=0),), response_cache=True)
    with pytest.raises(InvalidEntry) as caught:
        render(manifest(of), 1, NO_CACHE)
    assert [problem.field for problem in caught.value.problems] == [
        "inputs[1].name",
        "response_cache",
        "instances[0].count",
    ]


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//x", "", ".", "a\\b", "a\nb"])
def test_no_file_gets_out_of_the_model_directory(path: str) -> None:
    with pytest.raises(InvalidEntry, match="outside its directory"):
        render(manifest(entry(), {"model.py": b"m", path: b"x"}), 1, PYTHON_ONLY)
