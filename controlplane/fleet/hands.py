"""Whose hand was at a fleet's Deployment, besides who installed it: from the API server's record of who set what."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, Literal

MANAGER: Final = "triton-controlplane"
"""Who we are, in that record."""
INSTALLERS: Final = frozenset({"helm", "helm-controller"})
"""Who changes releases by their trade, whoever installed them; other tools are known by what they made. It is the
record that counts, not its name: `kubectl apply --server-side` goes by that of `kubectl scale`."""
CLUSTER: Final = "kube-controller-manager"
BEFORE: Final = "before-first-apply"
"""Who the API server says has set what was there when somebody applied something first."""
KEPT: Final = timedelta(hours=1)
"""For so long is told what is in force no more."""

Code = Literal["SCALED_BY_HAND", "EDITED_BY_HAND"]


@dataclass(frozen=True, slots=True)
class Hand:
    """Somebody has set a Deployment's size, or changed what its pods are like. `at`: when; None where it is only known
    that it was before we looked. `mark` tells this change from all others, also to another controller."""

    code: Code
    text: str
    at: datetime | None
    mark: str


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that is in force, by `manager`: the name that his program goes by. Who sets a size leaves no time."""

    uid: str
    code: Code
    manager: str
    did: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class _Seen:
    fleet: str
    hand: Hand
    ended: datetime | None = None


class Hands:
    """Remembers when each change was seen first, and for a while what is in force no more. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[_Change, _Seen] | None = None

    def look(self, deployments: Mapping[str, Any]) -> list[tuple[str, Hand]]:
        """Take what there is, by fleet; the hands that were not seen before, each with its fleet."""
        now = datetime.now(UTC)
        with self._lock:
            before = self._known or {}
            ended = {change: replace(seen, ended=seen.ended or now) for change, seen in before.items()}
            kept = {change: seen for change, seen in ended.items() if now - (seen.ended or now) < KEPT}
            found = {}
            for fleet, deployment in deployments.items():
                for change in _changes(deployment):
                    hand = _hand(change, deployment, now, first=self._known is None)
                    seen = before.get(change)
                    found[change] = seen if seen is not None and seen.ended is None else _Seen(fleet, hand)
            self._known = {**kept, **found}
            return [(seen.fleet, seen.hand) for change, seen in found.items() if seen is not before.get(change)]

    def texts(self, *, ended: bool) -> dict[str, str]:
        """By fleet, the changes that are in force, or those that were until lately."""
        with self._lock:
            known = list((self._known or {}).values())
        found: dict[str, list[str]] = {}
        for seen in known:
            if (seen.ended is not None) == ended:
                found.setdefault(seen.fleet, []).append(seen.hand.text)
        return {fleet: "; ".join(texts) for fleet, texts in found.items()}


def has_size_owner(deployment: Any) -> bool:
    """Whether it is recorded who has set the size."""
    return any("f:replicas" in spec for _, spec in _entries(deployment))


def take_size(deployment: Any) -> None:
    """Note that the size is ours: the API server, which has just been told to set it, writes the same."""
    for each in deployment.metadata.managed_fields or ():
        if each.manager != MANAGER:
            ((each.fields_v1 or {}).get("f:spec") or {}).pop("f:replicas", None)


def _changes(deployment: Any) -> Iterator[_Change]:
    """Those that are in force. Sizes are this controller's, all else is the installer's: who set what can't be changed
    afterwards, the selector, has made the Deployment, or applies it as a whole."""
    name, uid = deployment.metadata.name, deployment.metadata.uid
    for each, spec in _entries(deployment):
        if "f:selector" in spec or each.manager in (MANAGER, BEFORE, *INSTALLERS):
            continue
        if "f:replicas" in spec:
            did = f"set {name} to {deployment.spec.replicas}"
            yield _Change(uid, "SCALED_BY_HAND", each.manager, did, each.time)
        if "f:template" in spec and each.manager != CLUSTER:
            what = ", ".join(dict.fromkeys(_changed(spec["f:template"]))) or "its pods"
            yield _Change(uid, "EDITED_BY_HAND", each.manager, f"changed {name} ({what})", each.time)


def _entries(deployment: Any) -> list[tuple[Any, Mapping[str, Any]]]:
    return [(each, (each.fields_v1 or {}).get("f:spec") or {}) for each in deployment.metadata.managed_fields or ()]


def _hand(change: _Change, deployment: Any, now: datetime, *, first: bool) -> Hand:
    at = change.at or (None if first else now)
    when = f"at {at:%H:%M:%S} UTC" if at is not None else f"before {now:%H:%M:%S} UTC"
    then = ": what is to stay belongs into the chart's values" if change.code == "EDITED_BY_HAND" else ""
    told_apart = (change, deployment.metadata.generation if change.at is None else None)
    mark = sha256(repr(told_apart).encode()).hexdigest()[:16]
    return Hand(change.code, f"{change.manager} {change.did} {when}{then}", at, mark)


def _changed(template: Mapping[str, Any]) -> Iterator[str]:
    """What of a pod's template is somebody's, in words: `env of container triton`, `labels`, `nodeSelector`."""
    for key in template.get("f:metadata") or ():
        yield key.removeprefix("f:")
    for key, value in (template.get("f:spec") or {}).items():
        if key not in ("f:containers", "f:initContainers"):
            yield key.removeprefix("f:")
            continue
        for container, fields in value.items():
            name = json.loads(container.removeprefix("k:"))["name"] if container.startswith("k:") else container
            parts = [each.removeprefix("f:") for each in fields if each.startswith("f:") and each != "f:name"]
            yield from (f"{part} of container {name}" for part in parts)
            if not parts:
                yield f"container {name}"
