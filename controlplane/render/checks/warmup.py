"""Warm-up requests: the server answers them while it loads, and one of the wrong size kills it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2

from controlplane.core.errors import InvalidInput
from controlplane.render.checks.case import Case, type_name
from controlplane.render.checks.tensors import same_dims
from controlplane.render.layout import WARMUP, filed_name

SIZES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4, "FP32": 4,
    "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip
"""Bytes of one element; BYTES has no fixed size."""

MAX_BYTES = 1 << 30
"""What one warm-up tensor may take: the server allocates it while others are being served."""


def batch_sizes(case: Case) -> Iterator[InvalidInput]:
    """A batch larger than `max_batch_size` is a segmentation fault of the whole server (2.51, measured)."""
    limit = max(1, case.config.max_batch_size)
    for index, warmup in enumerate(case.config.model_warmup):
        if not 1 <= warmup.batch_size <= limit:
            yield case.finding(
                "model_warmup",
                f"[{index}].batch_size",
                f"{warmup.batch_size} is not between 1 and {limit}: "
                "a larger batch than `max_batch_size` crashes the server",
                f"use 1 to {limit}",
            )


def inputs(case: Case) -> Iterator[InvalidInput]:
    """The inputs of a warm-up are those of the model, with its types and definite dims."""
    declared = {tensor.name: tensor for tensor in case.config.input}
    for index, warmup in enumerate(case.config.model_warmup):
        if not warmup.name:
            yield case.finding("model_warmup", f"[{index}].name", "is missing", "name it; the log speaks of it by name")
        missing = [name for name, tensor in declared.items() if not tensor.optional and name not in warmup.inputs]
        if missing:
            yield case.finding(
                "model_warmup",
                f"[{index}].inputs",
                f"lacks {', '.join(missing)}",
                "give every input that is not optional",
            )
        for name, item in sorted(warmup.inputs.items()):
            where = f"[{index}].inputs[{name}]"
            if name not in declared:
                yield case.finding(
                    "model_warmup", where, "is no input of the model", f"inputs are: {', '.join(declared)}"
                )
                continue
            tensor = declared[name]
            if item.data_type != tensor.data_type:
                yield case.finding(
                    "model_warmup",
                    f"{where}.data_type",
                    f"is {type_name(item.data_type)}, and the input's is {type_name(tensor.data_type)}",
                    "use the input's type",
                )
            if any(dim < 1 for dim in item.dims) or not same_dims(tuple(item.dims), tuple(tensor.dims)):
                yield case.finding(
                    "model_warmup",
                    f"{where}.dims",
                    f"{list(item.dims)} is no definite shape of dims {list(tensor.dims)}",
                    "use the input's dims, with a number in place of each -1",
                )
            elif _bytes(item, warmup.batch_size) > MAX_BYTES:
                yield case.finding("model_warmup", f"{where}.dims", "takes more than 1 GiB", "use a smaller example")


def data_files(case: Case) -> Iterator[InvalidInput]:
    """A warm-up's data file lies in `warmup/` of the artifact, and holds exactly one request's bytes."""
    there = {
        filed_name(file): file
        for file in case.versions[max(case.versions)].files
        if file.path.startswith(WARMUP)
    }  # fmt: skip
    for index, warmup in enumerate(case.config.model_warmup):
        for name, item in sorted(warmup.inputs.items()):
            if not item.input_data_file:
                continue
            where = f"[{index}].inputs[{name}].file"
            file = there.get(item.input_data_file)
            if file is None:
                yield case.finding(
                    "model_warmup",
                    where,
                    f"there is no file {WARMUP}{item.input_data_file} in the artifact",
                    "put the input's raw bytes there, and name it in the entry's `warmup`",
                )
            elif type_name(item.data_type) in SIZES and file.size_bytes != _bytes(item, 1):
                yield case.finding(
                    "model_warmup",
                    where,
                    f"{file.path} has {file.size_bytes} bytes, and dims {list(item.dims)} take {_bytes(item, 1)}",
                    "write the tensor's raw little-endian bytes, without a batch dimension",
                )


def _bytes(item: model_config_pb2.ModelWarmup.Input, batch: int) -> int:
    return SIZES.get(type_name(item.data_type), 4) * int(math.prod(item.dims)) * max(1, batch)
