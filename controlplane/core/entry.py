"""What a registry entry says: one model version as its owner describes it.

The dataclasses below are the only definition of an entry: the YAML file, the JSON Schema, the stored manifest and the
message to an agent are all read and written from them. Names are those of Triton's own model configuration
(https://github.com/triton-inference-server/common, model_config.proto) where Triton has the thing, so that whoever
knows `config.pbtxt` knows an entry. A value that is absent is left to what is read from the artifact, then to Triton.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

DataType = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BF16", "BYTES",
]  # fmt: skip
Backend = Literal["python", "onnxruntime", "tensorrt", "pytorch", "openvino", "ensemble"]
Load = Literal["auto", "always", "on_demand"]
Priority = Literal["normal", "high"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""A model's, alias's or fleet's name: it becomes a directory, an object key and part of a URL."""


def is_name(text: str) -> bool:
    """Whether `text` may name a model, an alias or a fleet."""
    return NAME.fullmatch(text) is not None and ".." not in text


class _Strict:
    """Refuses unknown fields: a typo in an entry must not pass for a default (read by pydantic at the edge)."""

    __slots__ = ()
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor(_Strict):
    """One input or output. `dims` leaves out the batch dimension when `max_batch_size` > 0; −1 is any size."""

    name: str
    data_type: DataType
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    format: Literal["NONE", "NHWC", "NCHW"] = "NONE"
    optional: bool = False
    allow_ragged_batch: bool = False
    is_shape_tensor: bool = False
    label_filename: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy(_Strict):
    """What happens to requests that wait (Triton's ModelQueuePolicy). 0 for a time-out or a size means no limit."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_us: Annotated[int, Ge(0)] = 0
    allow_timeout_override: bool = False
    max_queue_size: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicBatching(_Strict):
    """Requests are joined into batches while they wait."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_us: Annotated[int, Ge(0)] = 0
    preserve_ordering: bool = False
    priority_levels: Annotated[int, Ge(0)] = 0
    default_priority_level: Annotated[int, Ge(0)] = 0
    default_queue_policy: QueuePolicy | None = None
    priority_queue_policy: Mapping[int, QueuePolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlInput(_Strict):
    """A tensor that tells the model where a sequence starts, ends, is ready, or which one it is."""

    name: str
    kind: Literal["START", "END", "READY", "CORRID"]
    data_type: DataType
    false_true: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTensor(_Strict):
    """A tensor that Triton carries from one request of a sequence to the next, zero at the start."""

    input_name: str
    output_name: str
    data_type: DataType
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceBatching(_Strict):
    """Requests with one correlation id are one sequence and stay on one replica."""

    strategy: Literal["direct", "oldest"] = "direct"
    max_sequence_idle_us: Annotated[int, Gt(0)] = 60_000_000
    max_candidate_sequences: Annotated[int, Ge(0)] = 0
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_us: Annotated[int, Ge(0)] = 0
    minimum_slot_utilization: Annotated[float, Ge(0), Le(1)] = 0.0
    control_inputs: tuple[ControlInput, ...] = ()
    states: tuple[StateTensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleStep(_Strict):
    """One model of an ensemble. Without `model_version` the version is pinned when the ensemble is registered."""

    model_name: str
    model_version: Annotated[int, Gt(0)] | None = None
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimiterResource(_Strict):
    """A resource that an execution takes while it runs."""

    name: str
    count: Annotated[int, Gt(0)]
    is_global: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimiter(_Strict):
    """How executions of an instance group are rationed against other models'."""

    resources: tuple[RateLimiterResource, ...] = ()
    priority: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceGroup(_Strict):
    """`count` instances on each GPU of `gpus` (empty: every GPU of the server), or on the CPU."""

    kind: Literal["CPU", "GPU", "MODEL", "AUTO"] = "AUTO"
    count: Annotated[int, Gt(0)] = 1
    gpus: tuple[int, ...] = ()
    name: str | None = None
    profile: tuple[str, ...] = ()
    passive: bool = False
    host_policy: str | None = None
    rate_limiter: RateLimiter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator(_Strict):
    """An execution accelerator of the backend, such as `tensorrt` or `openvino` for ONNX models."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization(_Strict):
    """Triton's ModelOptimizationPolicy. Absent values are left to the backend."""

    graph_level: int | None = None
    priority: Literal["DEFAULT", "MAX", "MIN"] = "DEFAULT"
    cuda_graphs: bool = False
    gpu_accelerators: tuple[Accelerator, ...] = ()
    cpu_accelerators: tuple[Accelerator, ...] = ()
    input_pinned_memory: bool | None = None
    output_pinned_memory: bool | None = None
    gather_kernel_buffer_threshold: Annotated[int, Ge(0)] | None = None
    eager_batching: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupInput(_Strict):
    """One input of a warm-up request: zeros, random data, or a file of the artifact's `warmup/` directory."""

    data_type: DataType
    dims: tuple[int, ...]
    source: Literal["zero", "random"] = "zero"
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup(_Strict):
    """A request that the server answers for itself before the version counts as loaded."""

    name: str
    batch_size: Annotated[int, Gt(0)] = 1
    count: Annotated[int, Ge(0)] = 0
    inputs: Mapping[str, WarmupInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources(_Strict):
    """What one loaded copy takes of a replica; where more is measured, that counts. Absent: measured, and until then
    estimated from the artifact's size."""

    memory_bytes: Annotated[int, Gt(0)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving(_Strict):
    """How many copies, and when.

    `auto`: loaded when promoted, may leave when others need the memory, comes back on demand. `always`: stays.
    `on_demand`: loaded by the first request. `idle_s`: after so long without a request it is unloaded, and comes back
    on demand (absent: as its fleet says). `max_copies` absent: as many replicas as have room. `apart_from`: models that
    must not be on the same replica. `priority`: when there is more than the replicas can do, requests for models of
    `high` priority are refused last, and where memory is short they are placed first and leave last.
    """

    load: Load = "auto"
    idle_s: Annotated[float, Gt(0)] | None = None
    min_copies: Annotated[int, Gt(0)] = 1
    max_copies: Annotated[int, Gt(0)] | None = None
    apart_from: tuple[str, ...] = ()
    priority: Priority = "normal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(_Strict):
    """A request whose answer is known: asked on each replica before it gets traffic.

    Values are nested lists with the batch dimension, BYTES as strings. `outputs` may name some of the outputs only.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Annotated[float, Ge(0)] = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(_Strict):
    """One model version as its owner describes it.

    `config` is raw config.pbtxt text, merged last and checked like the rest.
    """

    name: str
    backend: Backend
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    max_batch_size: Annotated[int, Ge(0)] = 0
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    ensemble: tuple[EnsembleStep, ...] = ()
    instances: tuple[InstanceGroup, ...] = ()
    optimization: Optimization | None = None
    warmup: tuple[Warmup, ...] = ()
    response_cache: bool = False
    decoupled: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    metric_tags: Mapping[str, str] = field(default_factory=dict)
    default_model_filename: str | None = None
    resources: Resources = Resources()
    serving: Serving = Serving()
    fleet: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    example: Example | None = None
    config: str = ""
