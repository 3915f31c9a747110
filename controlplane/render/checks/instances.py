"""Instances, GPUs, rate limits, accelerators, CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc import model_config_pb2

from controlplane.core.errors import InvalidInput
from controlplane.render.backends import BACKENDS
from controlplane.render.checks.case import Case

Group = model_config_pb2.ModelInstanceGroup


def kinds(case: Case) -> Iterator[InvalidInput]:
    """A count below one is taken without a word, and becomes one or none; CPU and `gpus` contradict each other."""
    facts = BACKENDS[case.entry.backend]
    for index, group in enumerate(case.config.instance_group):
        if group.count < 1:
            yield case.finding(
                "instance_group", f"[{index}].count", f"{group.count} instances serve nothing", "use 1 or more"
            )
        if group.kind == Group.KIND_CPU and group.gpus:
            yield case.finding(
                "instance_group",
                f"[{index}].gpus",
                "an instance on the CPU has no GPUs",
                "say `kind: GPU`, or leave it out",
            )
        if group.kind == Group.KIND_CPU and not facts.cpu:
            yield case.finding(
                "instance_group",
                f"[{index}].kind",
                f"the {case.entry.backend} backend has no CPU instances",
                "say `kind: GPU` and use a fleet with GPUs",
            )
        if group.kind == Group.KIND_GPU and not facts.gpu and case.entry.backend != "ensemble":
            yield case.finding(
                "instance_group",
                f"[{index}].kind",
                f"the {case.entry.backend} backend has no GPU instances",
                "say `kind: CPU`",
            )


def gpus(case: Case) -> Iterator[InvalidInput]:
    """Indices are the server's own, from 0."""
    count = case.capabilities.gpus
    for index, group in enumerate(case.config.instance_group):
        if group.kind != Group.KIND_GPU:
            continue
        if count == 0:
            yield case.finding(
                "instance_group",
                f"[{index}].kind",
                "a GPU is asked for, and the fleet's servers have none",
                "say `kind: CPU`, or register it for a fleet with GPUs",
            )
            continue
        for gpu in group.gpus:
            if not 0 <= gpu < count:
                there = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
                yield case.finding(
                    "instance_group",
                    f"[{index}].gpus",
                    f"there is no GPU {gpu}; a server has {there}",
                    "use its own indices, or leave `gpus` out for all of them",
                )
        if len(set(group.gpus)) != len(group.gpus):
            yield case.finding("instance_group", f"[{index}].gpus", "names a GPU twice", "raise `count` instead")


def rate_limits(case: Case) -> Iterator[InvalidInput]:
    """A resource belongs to a device or to the server, not to both."""
    scope: dict[str, bool] = {}
    for index, group in enumerate(case.config.instance_group):
        for resource in group.rate_limiter.resources:
            is_global = getattr(resource, "global")
            if scope.setdefault(resource.name, is_global) != is_global:
                yield case.finding(
                    "instance_group",
                    f"[{index}].rate_limiter",
                    f"{resource.name!r} is global here and not elsewhere",
                    "make it one or the other",
                )
            if not resource.name or resource.count < 1:
                yield case.finding(
                    "instance_group",
                    f"[{index}].rate_limiter",
                    "a resource needs a name and a count of 1 or more",
                    "name it, and say how much an execution takes",
                )


def accelerators(case: Case) -> Iterator[InvalidInput]:
    """An accelerator that the backend lacks is ignored without a word."""
    facts = BACKENDS[case.entry.backend]
    chosen = case.config.optimization.execution_accelerators
    for side, wanted, has in (
        ("gpu", chosen.gpu_execution_accelerator, facts.gpu_accelerators),
        ("cpu", chosen.cpu_execution_accelerator, facts.cpu_accelerators),
    ):
        for index, accelerator in enumerate(wanted):
            field = f".{side}_accelerators[{index}]"
            if case.served.stand_in:
                yield case.finding(
                    "optimization",
                    field,
                    "this fleet serves ONNX files through the Python backend, without accelerators",
                    "leave it out, or use a fleet with the onnxruntime backend",
                )
            elif accelerator.name not in has:
                yield case.finding(
                    "optimization",
                    field,
                    f"the {case.entry.backend} backend has no {side.upper()} accelerator "
                    f"{accelerator.name!r}; it has: {', '.join(has) or 'none'}",
                    "use one of those, or leave it out",
                )


def cuda_graphs(case: Case) -> Iterator[InvalidInput]:
    """Every backend but TensorRT's ignores them without a word."""
    wanted = case.config.optimization.cuda.graphs
    if wanted and not BACKENDS[case.entry.backend].cuda_graphs and case.entry.backend != "ensemble":
        having = ", ".join(name for name, facts in BACKENDS.items() if facts.cuda_graphs)
        yield case.finding(
            "optimization",
            ".cuda_graphs",
            f"the {case.entry.backend} backend has no CUDA graphs; it would ignore this. Those that have: {having}",
            "leave it out, or convert the model for one of those",
        )
