"""Events on a cluster's objects: what `kubectl describe` shows of what was decided, and why."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
import urllib3
from kubernetes.client import (
    ApiClient,
    ApiException,
    CoreV1Api,
    CoreV1Event,
    V1EventSource,
    V1ObjectMeta,
    V1ObjectReference,
)

from controlplane.fleet.cluster import CALL_S, told

log = structlog.get_logger(__name__)

SOURCE: Final = "triton-controlplane"
LONGEST: Final = 1024
"""Characters of a message; the API server refuses longer ones."""
WAITING: Final = 256
KNOWN: Final = 1024
BURST, WITHIN_S = 25, 600.0
"""So many events on one object within so many seconds; who looks at it is not helped by more."""
AGAIN_S = 3000.0
"""An event that is repeated within this time is counted up. Somewhat less than the hour after which clusters forget."""


@dataclass(frozen=True, slots=True)
class _Event:
    kind: str
    api_version: str
    name: str
    uid: str
    reason: str
    text: str
    warning: bool


@dataclass(slots=True)
class _Written:
    name: str
    count: int
    at: float


class Events:
    """Writes events in a thread of its own. Whoever tells does not wait, and what can't be written is dropped: the logs
    have it too."""

    def __init__(self, api: ApiClient, namespace: str, labels: Mapping[str, str]) -> None:
        self._core = CoreV1Api(api)
        self._namespace = namespace
        self._labels = dict(labels)
        self._waiting: queue.Queue[_Event | None] = queue.Queue(WAITING)
        self._written: OrderedDict[_Event, _Written] = OrderedDict()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._failing = False

    def start(self) -> None:
        """Begin to write."""
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def stop(self) -> None:
        """Write no longer, once what waits is written."""
        self._put(None)

    def tell(self, about: Any, kind: str, reason: str, text: str, *, warning: bool = False) -> None:
        """An event on a Deployment or a pod, as the client returns them. `kind` is its kind; `reason` one word."""
        metadata = about.metadata
        api_version = "v1" if kind == "Pod" else "apps/v1"
        self._put(_Event(kind, api_version, metadata.name, metadata.uid, reason, text[:LONGEST], warning))

    def _put(self, event: _Event | None) -> None:
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            log.warning("an event on a Kubernetes object is dropped: too many wait")

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            try:
                self._write(event)
                self._failing = False
            except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                if not self._failing:
                    log.warning("events can't be written", reason=str(told(error, f"writing an event on {event.name}")))
                self._failing = True

    def _write(self, event: _Event) -> None:
        now = time.monotonic()
        if not self._may(event.uid, now):
            return
        written = self._written.get(event)
        if written is not None and now - written.at < AGAIN_S and self._count_up(written):
            written.at = now
            return
        name = f"{event.name}.{time.time_ns():x}"
        self._core.create_namespaced_event(self._namespace, self._made(event, name), _request_timeout=CALL_S)
        self._written[event] = _Written(name, 1, now)
        self._written.move_to_end(event)
        while len(self._written) > KNOWN:
            self._written.popitem(last=False)

    def _may(self, uid: str, now: float) -> bool:
        times = self._times.setdefault(uid, deque(maxlen=BURST))
        self._times.move_to_end(uid)
        while len(self._times) > KNOWN:
            self._times.popitem(last=False)
        if len(times) == BURST and now - times[0] < WITHIN_S:
            return False
        times.append(now)
        return True

    def _count_up(self, written: _Written) -> bool:
        """Whether it could be done: the cluster may have forgotten the event."""
        body = {"count": written.count + 1, "lastTimestamp": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            self._core.patch_namespaced_event(written.name, self._namespace, body, _request_timeout=CALL_S)
        except ApiException as error:
            if error.status != 404:
                raise
            return False
        written.count += 1
        return True

    def _made(self, event: _Event, name: str) -> CoreV1Event:
        now = datetime.now(UTC)
        return CoreV1Event(
            metadata=V1ObjectMeta(name=name, namespace=self._namespace, labels=self._labels),
            involved_object=V1ObjectReference(
                kind=event.kind,
                api_version=event.api_version,
                name=event.name,
                namespace=self._namespace,
                uid=event.uid,
            ),
            type="Warning" if event.warning else "Normal",
            reason=event.reason,
            message=event.text,
            source=V1EventSource(component=SOURCE),
            first_timestamp=now,
            last_timestamp=now,
            count=1,
        )
