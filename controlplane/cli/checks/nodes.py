"""Nodes with GPUs, against what fleets ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.cli.checks.finding import Finding

PLUGIN = "see that the device plugin (or the GPU operator) runs on the nodes, and that gpuResource names what it offers"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a fleet asks for: `each` of a resource for each of its replicas, on nodes with these labels."""

    fleet: str
    resource: str
    each: int
    at_least: int
    at_most: int
    labels: Mapping[str, str]


def wish_of(fleet: str, deployment: Any, *, at_least: int, at_most: int) -> Wish | None:
    """What a fleet's Deployment asks for; None where it is no device."""
    pod = deployment.spec.template.spec
    for container in pod.containers:
        limits = (container.resources.limits if container.resources is not None else None) or {}
        for resource, count in limits.items():
            if "/" in resource:
                return Wish(fleet, resource, int(count), at_least, at_most, pod.node_selector or {})
    return None


def usable(nodes: Sequence[Any]) -> list[Any]:
    """The nodes that are ready and take new pods."""
    return [
        node
        for node in nodes
        if not node.spec.unschedulable
        and any(each.type == "Ready" and each.status == "True" for each in node.status.conditions or ())
    ]


def fits(wish: Wish, nodes: Sequence[Any]) -> Finding:
    """Whether the nodes have what the fleet asks for. What others have taken of it is not looked at."""
    labelled = [node for node in nodes if wish.labels.items() <= (node.metadata.labels or {}).items()]
    counts = [int((node.status.allocatable or {}).get(wish.resource, 0)) for node in labelled]
    places = sum(count // wish.each for count in counts)
    where = f"of {len(labelled)} nodes that are ready" + (f" with {_labels(wish)}" if wish.labels else "")
    asked = f"fleet {wish.fleet} asks for {wish.each} {wish.resource} for each replica"
    if not any(counts):
        return Finding("gpus", "problem", f"{asked}, and none {where} has any", PLUGIN)
    if places == 0:
        most = f"and no node has more than {max(counts)}"
        return Finding("gpus", "problem", f"{asked}, {most}", "ask for fewer (gpus), or give the cluster larger nodes")
    if places < max(1, wish.at_least):
        return Finding(
            "gpus",
            "problem",
            f"{asked} and for {wish.at_least} replicas at least; the nodes have places for {places}",
            "give the cluster more nodes, or the fleet a smaller replicas.min",
        )
    if places < wish.at_most:
        return Finding(
            "gpus",
            "warning",
            f"{asked} and for up to {wish.at_most} replicas; the nodes have places for {places} at present",
            "fine where nodes are added by themselves; else replicas beyond that stay Pending",
        )
    return Finding("gpus", "ok", f"{asked}; the nodes have places for {places}")


def _labels(wish: Wish) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(wish.labels.items()))
