"""Why pods are not ready and Deployments don't get on, in Kubernetes' own words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from controlplane.cli.checks.finding import Finding, State

STARTING = ("ContainerCreating", "PodInitializing", None)
"""Reasons to wait that are none."""
LONGEST = 300
"""Characters of a line that is quoted."""
IMAGE = "see that the image is there (image.registry, repository, tag) and may be pulled (imagePullSecrets)"
REMEDIES = {
    "Unschedulable": "give the cluster a node that fits, or ask for less: resources, gpus, nodeSelector, tolerations",
    "ErrImagePull": IMAGE,
    "ImagePullBackOff": IMAGE,
    "InvalidImageName": "correct image.registry, repository and tag",
    "CreateContainerConfigError": "make the Secret or ConfigMap that is named, or correct s3.existingSecret",
    "OOMKilled": "give the container more memory: memory_bytes or overheadBytes of the fleet, or resources",
    "Evicted": "the node lacked something; the pod's controller makes another one",
}


def looks(command: str, namespace: str, name: str) -> str:
    """Where to look on."""
    return f"`kubectl --namespace {namespace} {command} {name}` tells more"


def pods(items: list[Any], *, now: datetime, starting_s: float = 120.0) -> Iterator[Finding]:
    """Each pod that is not ready, with the reason. One that has just begun to start is no problem yet."""
    late = [found for pod in items if (found := _pod(pod, now=now, starting_s=starting_s)) is not None]
    yield from late
    ready = len(items) - len(late)
    if items and not late:
        yield Finding("pods", "ok", f"{ready} of {len(items)} pods are ready")


def _pod(pod: Any, *, now: datetime, starting_s: float) -> Finding | None:
    name, namespace = pod.metadata.name, pod.metadata.namespace
    conditions = {each.type: each for each in pod.status.conditions or ()}
    ready = conditions.get("Ready")
    if (ready is not None and ready.status == "True") or pod.status.phase == "Succeeded":
        return None
    if pod.metadata.deletion_timestamp is not None:
        return Finding("pods", "warning", f"{name} is ending")
    reason, words, container = _reason(pod, conditions)
    log = f"logs --container {container} --previous" if container else "describe pod"
    what = f"{name} is not ready: {words}"
    if reason is None and (now - pod.metadata.creation_timestamp).total_seconds() < starting_s:
        return Finding("pods", "warning", what, "it has just begun to start: look again in a minute")
    return Finding("pods", "problem", what, REMEDIES.get(reason or "") or looks(log, namespace, name))


def _reason(pod: Any, conditions: dict[str, Any]) -> tuple[str | None, str, str | None]:
    """The reason's word (none: it just lasts), what Kubernetes says, and the container whose log tells more."""
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return scheduled.reason, _said(scheduled), None
    if pod.status.reason:
        return pod.status.reason, f"{pod.status.reason}: {pod.status.message or ''}".rstrip(": "), None
    for each in (*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())):
        waiting, ended = each.state.waiting, each.state.terminated
        before = each.last_state.terminated if each.last_state is not None else None
        ended = ended if ended is not None and ended.exit_code != 0 else None
        if waiting is not None and waiting.reason not in STARTING:
            last = f"; the last one ended with {_end(before)}" if before is not None else ""
            reason = before.reason if before is not None and before.reason == "OOMKilled" else waiting.reason
            crashed = each.name if waiting.reason == "CrashLoopBackOff" else None
            return reason, f"container {each.name}: {_said(waiting)}{last}", crashed
        if ended is not None:
            return ended.reason, f"container {each.name} ended with {_end(ended)}", each.name
        if not each.ready and before is not None and each.restart_count:
            words = f"container {each.name} was started {each.restart_count + 1} times; it ended with {_end(before)}"
            return before.reason or "restarted", words, each.name
    for kind in ("Initialized", "ContainersReady", "Ready"):
        condition = conditions.get(kind)
        if condition is not None and condition.status != "True":
            return None, _said(condition), None
    return None, f"phase {pod.status.phase or 'unknown'}, and no node has taken it up yet", None


def _said(condition: Any) -> str:
    return f"{condition.reason or ''}: {condition.message or ''}".strip(": ")


def _end(ended: Any) -> str:
    code = f"exit code {ended.exit_code}" + (f" ({ended.reason})" if ended.reason else "")
    return ": ".join(each for each in (code, _last_words(ended.message)) if each)


def _last_words(message: str | None) -> str:
    """What a container's last line says: of our own it is one of the log, in JSON, with the reason why it ends."""
    lines = [line for line in (message or "").splitlines() if line.strip()]
    if not lines:
        return ""
    try:
        line = json.loads(lines[-1])
        return ": ".join(str(line[key]) for key in ("event", "reason") if line.get(key))
    except (ValueError, AttributeError):
        return lines[-1].strip()[-LONGEST:]


def why_down(items: Iterable[Any]) -> str:
    """Why the containers of pods don't run, or ran no longer before they were started again; empty where they do."""
    return "; ".join(dict.fromkeys(why for pod in items if (why := _why_down(pod))))


def _why_down(pod: Any) -> str:
    for each in pod.status.container_statuses or ():
        state, before = each.state, each.last_state.terminated if each.last_state is not None else None
        for ended in (state.terminated, before):
            if ended is not None and ended.exit_code:
                return f"the last one ended with {_end(ended)}"
        if state.waiting is not None and state.waiting.reason not in STARTING:
            return _said(state.waiting)
    return ""


def deployment(item: Any | None, name: str, namespace: str) -> Iterator[Finding]:
    """Whether a Deployment is there and has the pods that it wants; quota and admission speak here."""
    if item is None:
        yield Finding(
            "deployments",
            "problem",
            f"deployment {name} is not there",
            "`helm upgrade` makes it, `helm status` tells more",
        )
        return
    failed = False
    for each in item.status.conditions or ():
        if (each.type, each.status) in (("ReplicaFailure", "True"), ("Progressing", "False")):
            failed = True
            yield Finding(
                "deployments", "problem", f"{name}: {_said(each)}", looks("describe deployment", namespace, name)
            )
    wanted, available = item.spec.replicas or 0, item.status.available_replicas or 0
    if not failed:
        state: State = "ok" if available >= wanted else "warning"
        yield Finding("deployments", state, f"{name} has {available} of {wanted} pods available")
