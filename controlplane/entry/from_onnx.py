"""What an entry states together with what its ONNX file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.core.errors import ControlPlaneError, InvalidEntry, InvalidInput
from controlplane.entry.document import Document
from controlplane.entry.onnx_file import OnnxFacts, OnnxTensor
from controlplane.entry.problems import at_line

DEFAULT_MAX_BATCH_SIZE = 32
"""The largest batch where the file takes any and nobody says. Triton's own default is 4, which leaves most of a batch's
gain unused; 32 gets nearly all of it, and a batch only ever holds what was waiting anyway."""


def with_onnx(stated: Mapping[str, Any], read: OnnxFacts, facts: list[str], document: Document) -> dict[str, Any]:
    """`stated` completed from the file. Raises InvalidEntry for every contradiction."""
    made = dict(stated)
    problems: list[ControlPlaneError] = []
    size = made.get("max_batch_size")
    if size is None:
        size = DEFAULT_MAX_BATCH_SIZE if read.takes_batches and not made.get("sequence_batching") else 0
        made["max_batch_size"] = size
        facts.append(
            f"batches of up to {size}: the first dimension is free in every input and output"
            if size
            else "no batching: not every input and output has a free first dimension"
            if not read.takes_batches
            else "no batching: sequences are batched only where `max_batch_size` says so"
        )
    batched = isinstance(size, int) and size > 0
    if batched and not read.takes_batches:
        shapes = ", ".join(f"{t.name} {list(t.dims)}" for t in (*read.inputs, *read.outputs) if t.dims[:1] != (-1,))
        problems.append(
            InvalidInput(
                f"{size} is stated, and the file takes no batches: the first dimension is fixed in {shapes}",
                field="max_batch_size",
                remedy="set it to 0, or export the model with a free batch dimension",
            )
        )
    if batched and "dynamic_batching" not in made and not made.get("sequence_batching"):
        made["dynamic_batching"] = {}
        facts.append("dynamic batching, without waiting for a batch to fill")
    kept_in, kept_out = _states(made)
    for side, tensors, kept, all_wanted in (
        ("inputs", read.inputs, kept_in, True),
        ("outputs", read.outputs, kept_out, False),
    ):
        offered = {tensor.name: tensor for tensor in tensors if tensor.name not in kept}
        made[side] = _side(
            side, made.get(side), offered, batched=batched, all_wanted=all_wanted, problems=problems, document=document
        )
        facts.extend(f"{side[:-1]} {t['name']} {t['data_type']} {t['dims']}" for t in made[side] if _whole(t))
    problems.extend(_unknown_states(made, read))
    if problems:
        raise InvalidEntry(document.source, tuple(problems))
    return made


def _whole(tensor: Any) -> bool:
    return isinstance(tensor, Mapping) and {"name", "data_type", "dims"} <= set(tensor)


def _states(stated: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """The file's tensors that the server fills in or keeps: they are no inputs and outputs of a request."""
    batching = stated.get("sequence_batching")
    if not isinstance(batching, Mapping):
        return set(), set()
    states = [each for each in batching.get("states") or () if isinstance(each, Mapping)]
    controls = [each for each in batching.get("control_inputs") or () if isinstance(each, Mapping)]
    return (
        {str(each.get("input_name")) for each in states} | {str(each.get("name")) for each in controls},
        {str(each.get("output_name")) for each in states},
    )


def _unknown_states(stated: Mapping[str, Any], read: OnnxFacts) -> list[ControlPlaneError]:
    kept_in, kept_out = _states(stated)
    return [
        InvalidInput(
            f"the file has no {side} {name!r}; it has: {', '.join(each.name for each in tensors)}",
            field="sequence_batching",
            remedy=f"name one of the file's {side}s",
        )
        for side, kept, tensors in (("input", kept_in, read.inputs), ("output", kept_out, read.outputs))
        for name in sorted(kept - {each.name for each in tensors})
    ]


def _side(
    side: str,
    stated: Any,
    offered: Mapping[str, OnnxTensor],
    *,
    batched: bool,
    all_wanted: bool,
    problems: list[ControlPlaneError],
    document: Document,
) -> list[Any]:
    """The tensors of one side: those stated, completed; and from the file those that are needed and not stated."""
    if stated is None:
        return [_as_stated(tensor, batched) for tensor in offered.values()]
    if not isinstance(stated, list):
        return [stated]  # refused later, with its field
    made = []
    for index, tensor in enumerate(stated):
        name = tensor.get("name") if isinstance(tensor, Mapping) else None
        if not isinstance(tensor, Mapping) or not isinstance(name, str):
            made.append(tensor)
            continue
        where, line = f"{side}[{index}]", at_line((side, index), document.lines)
        if name not in offered:
            problems.append(
                InvalidInput(
                    f"the file has no {side[:-1]} {name!r}{line}; it has: {', '.join(offered)}",
                    field=f"{where}.name",
                    remedy="use the file's own names, or leave the list out: it is read from the file",
                )
            )
            continue
        if (problem := _contradiction(tensor, offered[name], batched, where, line)) is not None:
            problems.append(problem)
        made.append({**_as_stated(offered[name], batched), **tensor})
    if all_wanted:
        named = {tensor.get("name") for tensor in made if isinstance(tensor, Mapping)}
        made += [_as_stated(tensor, batched) for name, tensor in offered.items() if name not in named]
    return made


def _dims(tensor: OnnxTensor, batched: bool) -> list[int]:
    """Dims as an entry has them; Triton has no scalars, a [1] stands for one."""
    return list(tensor.dims[1:] if batched else tensor.dims) or [1]


def _as_stated(tensor: OnnxTensor, batched: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": tensor.name, "data_type": tensor.data_type, "dims": _dims(tensor, batched)}
    if batched and len(tensor.dims) == 1:
        made["reshape"] = []  # [batch] alone: an element each
    return made


def _contradiction(
    stated: Mapping[str, Any], tensor: OnnxTensor, batched: bool, where: str, line: str
) -> ControlPlaneError | None:
    if "data_type" in stated and stated["data_type"] != tensor.data_type:
        return InvalidInput(
            f"{stated['data_type']!r} is stated{line}, and the file says {tensor.data_type}",
            field=f"{where}.data_type",
            remedy="use the file's type, or leave it out",
        )
    dims = stated.get("reshape", stated.get("dims"))
    if not isinstance(dims, list) or not all(isinstance(dim, int) for dim in dims):
        return None
    wanted = _dims(tensor, batched)
    if _fits(dims, wanted) or (not dims and wanted == [1]):
        return None
    repeated = batched and len(dims) == len(tensor.dims) and _fits(dims[1:], wanted)
    return InvalidInput(
        f"{dims} repeats the batch dimension, which `max_batch_size` stands for{line}"
        if repeated
        else f"{dims} is stated{line}, and the file says {list(tensor.dims)}, "
        f"{'of which the first is the batch dimension' if batched else 'without batching'}",
        field=f"{where}.dims",
        remedy=f"use {wanted}, or leave it out",
    )


def _fits(stated: list[int], wanted: list[int]) -> bool:
    return len(stated) == len(wanted) and all(a == b or -1 in (a, b) for a, b in zip(stated, wanted, strict=True))
