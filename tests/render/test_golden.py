"""The exact text of each backend's configuration, and of everything that an entry can say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

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
    StateTensor,
    Tensor,
    Warmup,
    WarmupInput,
)
from controlplane.core.models import Capabilities
from controlplane.render.render import render, render_model
from tests.render.builders import NVIDIA, PYTHON_ONLY, Y, entry, manifest

STATEFUL: dict[str, Any] = {
    "backend": "onnxruntime",
    "max_batch_size": 4,
    "sequence_batching": SequenceBatching(
        strategy="oldest",
        max_candidate_sequences=16,
        control_inputs=(ControlInput(name="START", kind="START", data_type="INT32", false_true=(0, 1)),),
        states=(StateTensor(input_name="s", output_name="t", data_type="FP32", dims=(2, 128)),),
    ),
}
EVERYTHING: dict[str, Any] = {
    "backend": "onnxruntime",
    "max_batch_size": 16,
    "inputs": (
        Tensor(name="image", data_type="FP16", dims=(3, -1, -1), format="NCHW"),
        Tensor(name="words", data_type="BYTES", dims=(1,), reshape=(), optional=True, allow_ragged_batch=True),
    ),
    "outputs": (Tensor(name="y", data_type="FP32", dims=(4,), label_filename="labels.txt"),),
    "dynamic_batching": DynamicBatching(
        preferred_batch_size=(8, 16),
        max_queue_delay_us=500,
        priority_levels=2,
        default_priority_level=2,
        default_queue_policy=QueuePolicy(max_queue_size=64),
        priority_queue_policy={
            1: QueuePolicy(timeout_action="DELAY", default_timeout_us=9, allow_timeout_override=True)
        },
    ),
    "instances": (
        InstanceGroup(
            kind="GPU",
            count=2,
            gpus=(0, 1),
            name="fast",
            rate_limiter=RateLimiter(
                resources=(RateLimiterResource(name="memory", count=3, is_global=True),), priority=1
            ),
        ),
        InstanceGroup(kind="CPU", host_policy="numa0"),
    ),
    "optimization": Optimization(
        graph_level=1,
        priority="MAX",
        gpu_accelerators=(Accelerator(name="tensorrt", parameters={"precision_mode": "FP16"}),),
        cpu_accelerators=(Accelerator(name="openvino"),),
        input_pinned_memory=True,
        output_pinned_memory=False,
        gather_kernel_buffer_threshold=4096,
        eager_batching=True,
    ),
    "warmup": (
        Warmup(
            name="first",
            batch_size=16,
            count=2,
            inputs={"image": WarmupInput(data_type="FP16", dims=(3, 8, 8), source="random")},
        ),
    ),
    "response_cache": True,
    "parameters": {"intra_op_thread_count": "2", "quo\"te": "lin\ne"},
    "metric_tags": {"team": "vision"},
}  # fmt: skip
ENSEMBLE: dict[str, Any] = {
    "backend": "ensemble",
    "max_batch_size": 8,
    "ensemble": (
        EnsembleStep(model_name="a", model_version=3, input_map={"x": "x"}, output_map={"y": "z"}),
        EnsembleStep(model_name="b", model_version=1, input_map={"x": "z"}, output_map={"y": "y"}),
    ),
}
CASES: dict[str, tuple[dict[str, Any], Capabilities]] = {
    "python": ({"parameters": {"EXECUTION_ENV_PATH": "/opt/env.tar.gz"}, "decoupled": True}, PYTHON_ONLY),
    "onnxruntime": ({"backend": "onnxruntime", "max_batch_size": 8, "dynamic_batching": DynamicBatching()}, NVIDIA),
    "onnxruntime-behind-python": (
        {
            "backend": "onnxruntime",
            "max_batch_size": 8,
            "dynamic_batching": DynamicBatching(),
            "optimization": Optimization(graph_level=-1),
        },
        PYTHON_ONLY,
    ),
    "onnxruntime-stateful": (STATEFUL, NVIDIA),
    "onnxruntime-stateful-behind-python": (STATEFUL, PYTHON_ONLY),
    "tensorrt": (
        {
            "backend": "tensorrt",
            "max_batch_size": 8,
            "instances": (InstanceGroup(kind="GPU", count=2),),
            "optimization": Optimization(cuda_graphs=True),
        },
        NVIDIA,
    ),
    "pytorch": ({"backend": "pytorch", "outputs": (dataclasses.replace(Y, name="y__0"),)}, NVIDIA),
    "openvino": ({"backend": "openvino", "max_batch_size": 2}, NVIDIA),
    "ensemble": (ENSEMBLE, PYTHON_ONLY),
    "everything": (EVERYTHING, NVIDIA),
    "raw-config": (
        {"max_batch_size": 4, "config": 'instance_group [{ kind: KIND_CPU count: 3 }] model_warmup []'},
        PYTHON_ONLY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_text(case: str, snapshot: SnapshotAssertion) -> None:
    fields, capabilities = CASES[case]
    of = entry(**fields)
    files = None if case != "everything" else {"model.onnx": b"m", "labels.txt": b"a\n"}
    rendered = render(manifest(of, files), 3, capabilities)
    assert rendered.config_text == snapshot
    assert (sorted(rendered.files), rendered.directories, rendered.notes) == snapshot(name="directory")


def test_two_versions(snapshot: SnapshotAssertion) -> None:
    old = manifest(entry(max_batch_size=4, response_cache=True))
    new = manifest(
        entry(
            max_batch_size=8,
            dynamic_batching=DynamicBatching(preferred_batch_size=(4, 8)),
            warmup=(
                Warmup(name="w", batch_size=8, inputs={"x": WarmupInput(data_type="FP32", dims=(4,), file="x.bin")}),
            ),
        ),
        {"model.py": b"new", "warmup/x.bin": bytes(16)},
    )
    rendered = render_model({1: old, 2: new}, PYTHON_ONLY)
    assert rendered.config_text == snapshot
    assert (sorted(rendered.files), rendered.directories, rendered.notes) == snapshot(name="directory")
