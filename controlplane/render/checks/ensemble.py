"""Ensembles: how the steps fit together, and into the models that they name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from controlplane.core.entry import Entry, Tensor
from controlplane.core.errors import InvalidInput
from controlplane.render.checks.case import Case, type_name
from controlplane.render.checks.tensors import same_dims


class _End(NamedTuple):
    """One end of a tensor's way: who makes or takes it, and as what."""

    who: str
    data_type: str
    dims: tuple[int, ...]


def foreign_fields(case: Case) -> Iterator[InvalidInput]:
    """What belongs to the steps' models: Triton refuses it in an ensemble, or ignores it."""
    if case.entry.backend != "ensemble":
        return
    there = {
        "instance_group": bool(case.config.instance_group or case.entry.instances),
        "model_warmup": bool(case.config.model_warmup),
        "optimization": case.config.HasField("optimization") or case.entry.optimization is not None,
    }
    for field in (name for name, is_there in there.items() if is_there):
        yield case.finding(field, "", "belongs to the steps' own models, not to an ensemble", "leave it out")


def wiring(case: Case) -> Iterator[InvalidInput]:
    """Every tensor of the ensemble is made once, and before it is used."""
    if case.entry.backend != "ensemble":
        return
    steps = case.config.ensemble_scheduling.step
    made = {tensor.name: "the ensemble's input" for tensor in case.config.input}
    for index, step in enumerate(steps):
        for tensor in step.output_map.values():
            if tensor in made:
                yield case.finding(
                    "ensemble_scheduling",
                    f"[{index}].output_map",
                    f"{tensor!r} is made twice: by {made[tensor]} and here",
                    "give each step's output a name of its own",
                )
            made[tensor] = f"step {index}"
    used = {tensor for step in steps for tensor in step.input_map.values()}
    for index, step in enumerate(steps):
        for tensor in sorted(set(step.input_map.values()) - set(made)):
            yield case.finding(
                "ensemble_scheduling",
                f"[{index}].input_map",
                f"nothing makes {tensor!r}",
                f"use one of: {', '.join(sorted(made))}",
            )
        if step.model_name == case.config.name:
            yield case.finding(
                "ensemble_scheduling",
                f"[{index}].model_name",
                "an ensemble can't be its own step",
                "name another model",
            )
    for index, output in enumerate(case.config.output):
        if output.name not in made:
            yield case.finding(
                "output",
                f"[{index}].name",
                f"no step makes {output.name!r}",
                "map a step's output to it in `output_map`",
            )
    for index, given in enumerate(case.config.input):
        if given.name not in used:
            yield case.finding(
                "input", f"[{index}].name", "no step uses it", "map it to a step's input, or leave it out"
            )
    yield from _circles(case)


def _circles(case: Case) -> Iterator[InvalidInput]:
    ready = {tensor.name for tensor in case.config.input}
    waiting = dict(enumerate(case.config.ensemble_scheduling.step))
    everything = ready | {tensor for step in waiting.values() for tensor in step.output_map.values()}
    while runnable := [
        index for index, step in waiting.items() if not set(step.input_map.values()) & everything - ready
    ]:
        for index in runnable:
            ready |= set(waiting.pop(index).output_map.values())
    if waiting:
        numbers = ", ".join(map(str, sorted(waiting)))
        yield case.finding(
            "ensemble_scheduling",
            "",
            f"steps {numbers} wait for each other's outputs in a circle",
            "let the tensors flow one way",
        )


def steps(case: Case) -> Iterator[InvalidInput]:
    """Each step's model is there, takes what it is given, and batches at least as much as the ensemble."""
    if case.entry.backend != "ensemble" or case.known is None:
        return
    entries: dict[int, Entry] = {}
    for index, step in enumerate(case.config.ensemble_scheduling.step):
        manifest = case.known(step.model_name, step.model_version)
        if manifest is None:
            yield case.finding(
                "ensemble_scheduling",
                f"[{index}].model_name",
                f"there is no {step.model_name}@{step.model_version}",
                "register it first, or name a version that is there",
            )
            continue
        entries[index] = manifest.entry
        yield from _fits(case, index, manifest.entry)
    yield from _types(case, entries)


def _fits(case: Case, index: int, entry: Entry) -> Iterator[InvalidInput]:
    step = case.config.ensemble_scheduling.step[index]
    for side, mapped, tensors in (
        ("input_map", step.input_map, entry.inputs),
        ("output_map", step.output_map, entry.outputs),
    ):
        names = {tensor.name for tensor in tensors}
        for name in sorted(set(mapped) - names):
            yield case.finding(
                "ensemble_scheduling",
                f"[{index}].{side}[{name}]",
                f"{step.model_name} has no such tensor",
                f"it has: {', '.join(sorted(names))}",
            )
    for tensor in entry.inputs:
        if not tensor.optional and tensor.name not in step.input_map:
            yield case.finding(
                "ensemble_scheduling",
                f"[{index}].input_map",
                f"{step.model_name}'s input {tensor.name!r} gets nothing",
                "map a tensor to it",
            )
    if case.config.max_batch_size > entry.max_batch_size:
        yield case.finding(
            "max_batch_size",
            "",
            f"{case.config.max_batch_size} is more than {step.model_name}'s {entry.max_batch_size}",
            "an ensemble batches no more than its steps",
        )


def _types(case: Case, entries: dict[int, Entry]) -> Iterator[InvalidInput]:
    """Whoever makes a tensor and whoever takes it agree on its type and dims."""
    steps = case.config.ensemble_scheduling.step
    makers = {
        tensor.name: _End("the ensemble's input", type_name(tensor.data_type), tuple(tensor.dims))
        for tensor in case.config.input
    }
    for index, entry in entries.items():
        for name, tensor in steps[index].output_map.items():
            if (made := _named(entry.outputs, name)) is not None:
                end = _End(f"{entry.name}'s {name}", made.data_type, _dims(case, entry, made.dims))
                makers.setdefault(tensor, end)
    for index, entry in entries.items():
        for name, tensor in sorted(steps[index].input_map.items()):
            taken = _named(entry.inputs, name)
            if taken is not None and tensor in makers:
                taker = _End(entry.name, taken.data_type, _dims(case, entry, taken.dims))
                yield from _agree(f"ensemble[{index}].input_map[{name}]", makers[tensor], taker)
    for index, output in enumerate(case.config.output):
        if output.name in makers:
            taker = _End("the ensemble", type_name(output.data_type), tuple(output.dims))
            yield from _agree(case.at("output", f"[{index}]"), makers[output.name], taker)


def _agree(field: str, maker: _End, taker: _End) -> Iterator[InvalidInput]:
    if maker.data_type != taker.data_type or not same_dims(maker.dims, taker.dims):
        yield InvalidInput(
            f"{taker.who} has it as {taker.data_type} {list(taker.dims)}, and {maker.who} is "
            f"{maker.data_type} {list(maker.dims)}",
            field=field,
            remedy="let types and dims agree, or put a step between them",
        )


def _dims(case: Case, entry: Entry, dims: tuple[int, ...]) -> tuple[int, ...]:
    """A step's dims as the ensemble sees them: with the batch dimension where only the step batches."""
    return (-1, *dims) if entry.max_batch_size > 0 and case.config.max_batch_size == 0 else dims


def _named(tensors: tuple[Tensor, ...], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.name == name), None)
