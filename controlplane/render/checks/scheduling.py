"""Batches, queues, priorities, sequences, the cache."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2

from controlplane.core.errors import InvalidInput
from controlplane.render.backends import BACKENDS
from controlplane.render.checks.case import Case

MAX_BATCH_SIZE = 1 << 20
"""No batch is larger; what is, is a slip of the keyboard (and the wire type ends at 2³¹)."""


def batch_size(case: Case) -> Iterator[InvalidInput]:
    """`max_batch_size` is 0 (no batching) or the largest batch."""
    size = case.config.max_batch_size
    if size < 0 or size > MAX_BATCH_SIZE:
        yield case.finding(
            "max_batch_size", "", f"{size} is no batch size", f"use 0 for no batching, at most {MAX_BATCH_SIZE}"
        )


def scheduler(case: Case) -> Iterator[InvalidInput]:
    """A model has one scheduler, and the gateway goes by the entry's: a raw one must not take its place."""
    for field in ("sequence_batching", "ensemble_scheduling"):
        if field in case.raw:
            name = "ensemble" if field == "ensemble_scheduling" else field
            yield case.finding(
                field, "", "the raw config can't choose this scheduler", f"describe it in the entry's `{name}`"
            )
    if "dynamic_batching" in case.raw and case.entry.sequence_batching is not None:
        yield case.finding(
            "dynamic_batching",
            "",
            "it would take the place of the entry's `sequence_batching`",
            "keep one of the two",
        )


def dynamic_batching(case: Case) -> Iterator[InvalidInput]:
    """Dynamic batching of nothing is taken without a word; preferred sizes must be reachable."""
    limit = case.config.max_batch_size
    if case.config.HasField("dynamic_batching"):
        if limit == 0:
            yield case.finding(
                "dynamic_batching",
                "",
                "nothing is batched while `max_batch_size` is 0",
                "set `max_batch_size`, or leave `dynamic_batching` out",
            )
        yield from _preferred(case, "dynamic_batching", list(case.config.dynamic_batching.preferred_batch_size))
    elif case.config.HasField("sequence_batching") and case.config.sequence_batching.HasField("oldest"):
        yield from _preferred(
            case, "sequence_batching", list(case.config.sequence_batching.oldest.preferred_batch_size)
        )


def _preferred(case: Case, field: str, sizes: list[int]) -> Iterator[InvalidInput]:
    for size in sizes:
        if size < 1 or (size > case.config.max_batch_size > 0):
            yield case.finding(
                field,
                ".preferred_batch_size",
                f"{size} is not between 1 and max_batch_size {case.config.max_batch_size}",
                "leave it out, or raise `max_batch_size`",
            )


def priorities(case: Case) -> Iterator[InvalidInput]:
    """Levels count from 1; there must be a default one, and policies only for those that exist."""
    if not case.config.HasField("dynamic_batching"):
        return
    batching = case.config.dynamic_batching
    levels, default = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= default <= levels:
        yield case.finding(
            "dynamic_batching",
            ".default_priority_level",
            f"{default} is not one of the {levels} levels",
            f"say which of 1 to {levels} a request without a priority has",
        )
    if not levels and default:
        yield case.finding(
            "dynamic_batching", ".default_priority_level", "there are no priority levels", "set `priority_levels` too"
        )
    for level in sorted(batching.priority_queue_policy):
        if not 1 <= level <= levels:
            yield case.finding(
                "dynamic_batching",
                f".priority_queue_policy[{level}]",
                f"there is no level {level}",
                f"levels are 1 to {levels}" if levels else "set `priority_levels` too",
            )
    if batching.preserve_ordering and levels > 1:
        yield case.finding(
            "dynamic_batching",
            ".preserve_ordering",
            "contradicts more than one priority level",
            "keep the order, or the priorities",
        )


def sequences(case: Case) -> Iterator[InvalidInput]:
    """Candidates, control inputs and states."""
    if not case.config.HasField("sequence_batching"):
        return
    batching = case.config.sequence_batching
    if batching.HasField("oldest") and batching.oldest.max_candidate_sequences < 1:
        yield case.finding(
            "sequence_batching",
            ".max_candidate_sequences",
            "strategy `oldest` needs room for at least one sequence",
            "say how many sequences an instance may have open at a time",
        )
    tensors = [tensor.name for tensor in case.config.input]
    states = case.entry.sequence_batching.states if case.entry.sequence_batching is not None else ()
    taken = {*tensors}
    for index, control in enumerate(batching.control_input):
        if control.name in taken:
            yield case.finding(
                "sequence_batching",
                f".control_inputs[{index}].name",
                f"{control.name!r} is an input already",
                "a control input is filled in by the server: don't list it in `inputs`",
            )
        taken.add(control.name)
        for each in control.control:
            kinds = model_config_pb2.ModelSequenceBatching.Control
            if each.kind == kinds.CONTROL_SEQUENCE_CORRID and each.data_type not in (
                model_config_pb2.TYPE_UINT64, model_config_pb2.TYPE_INT64, model_config_pb2.TYPE_UINT32,
                model_config_pb2.TYPE_INT32, model_config_pb2.TYPE_STRING,
            ):  # fmt: skip
                yield case.finding(
                    "sequence_batching",
                    f".control_inputs[{index}].data_type",
                    "a correlation id is no such type",
                    "use UINT64, INT64, UINT32, INT32 or BYTES",
                )
    for index, state in enumerate(states):
        if state.input_name in taken:
            yield case.finding(
                "sequence_batching",
                f".states[{index}].input_name",
                f"{state.input_name!r} is an input already",
                "a state is kept by the server: don't list it in `inputs`",
            )
        if not state.dims or any(dim < 1 for dim in state.dims):
            yield case.finding(
                "sequence_batching",
                f".states[{index}].dims",
                f"{list(state.dims)} has no definite size",
                "a state starts as zeros, so every dim must be a positive number",
            )


def response_cache(case: Case) -> Iterator[InvalidInput]:
    """A cache needs a server that has one, and answers that depend on nothing but the request."""
    if not case.config.response_cache.enable:
        return
    field = "response_cache"
    if not case.capabilities.response_cache:
        yield case.finding(
            field,
            "",
            "the fleet's servers have no response cache, and would ignore it",
            "start them with `--cache-config`, or leave it out",
        )
    if case.config.model_transaction_policy.decoupled:
        yield case.finding(field, "", "a decoupled model's answers can't be cached", "leave it out")
    if case.config.HasField("sequence_batching"):
        yield case.finding(field, "", "an answer within a sequence depends on what went before", "leave it out")


def decoupled(case: Case) -> Iterator[InvalidInput]:
    """Only some backends can answer a request more than once."""
    if case.config.model_transaction_policy.decoupled and not BACKENDS[case.entry.backend].decoupled:
        yield case.finding(
            "model_transaction_policy",
            "",
            f"the {case.entry.backend} backend answers each request once",
            "leave `decoupled` out, or write the model for the Python backend",
        )
