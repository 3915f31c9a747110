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

from controlplane.core.errors import Conflict, InvalidInput, NotFound
from controlplane.fleet.cluster import CALL_S, told

log = structlog.get_logger(__name__)

SOURCE: Final = "triton-controlplane"
LONGEST: Final = 1024
"""Characters of a message; the API server refuses longer ones."""
WAITING: Final = 256
KNOWN: Final = 1024
BURST, WITHIN_S = 25, 600.0
"""So many events on one object within so many seconds; who looks at it is not helped by more."""
RETRY_MIN_S, RETRY_MAX_S = 1.0, 30.0
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
    mark: str


@dataclass(slots=True)
class _Written:
    name: str
    count: int
    at: float


class Events:
    """Writes events in a thread of its own. Whoever tells does not wait. While none can be written (the API server is
    away, the right is missing), the next is tried again and those behind it wait; of more than WAITING the new ones are
    dropped, as is what the API server takes for wrong: the logs have it too."""

    def __init__(self, api: ApiClient, namespace: str, labels: Mapping[str, str]) -> None:
        self._core = CoreV1Api(api)
        self._namespace = namespace
        self._labels = dict(labels)
        self._waiting: queue.Queue[tuple[_Event, datetime] | None] = queue.Queue(WAITING)
        self._written: OrderedDict[_Event, _Written] = OrderedDict()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._stopped = threading.Event()
        self.problem = ""
        """Why none can be written at present."""

    def start(self) -> None:
        """Begin to write."""
        threading.Thread(target=self._run, name="events", daemon=True).start()

    def stop(self) -> None:
        """Write no longer, once what waits is written, if it can be written."""
        self._stopped.set()
        self._put(None)

    def tell(self, about: Any, kind: str, reason: str, text: str, *, warning: bool = False, mark: str = "") -> None:
        """An event on a Deployment or a pod, as the client returns them. `kind` is its kind; `reason` one word. `mark`:
        what tells it from all others, where it is to be there once, whoever else has written it."""
        metadata = about.metadata
        api_version = "v1" if kind == "Pod" else "apps/v1"
        event = _Event(kind, api_version, metadata.name, metadata.uid, reason, text[:LONGEST], warning, mark)
        self._put((event, datetime.now(UTC)))

    def _put(self, news: tuple[_Event, datetime] | None) -> None:
        try:
            self._waiting.put_nowait(news)
        except queue.Full:
            log.warning("an event on a Kubernetes object is dropped: too many wait")

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            event, at = waiting
            delay_s = RETRY_MIN_S
            if not self._may(event.uid, time.monotonic()):
                continue
            while not self._is_done(event, at):
                if self._stopped.wait(delay_s):
                    return
                delay_s = min(2 * delay_s, RETRY_MAX_S)

    def _is_done(self, event: _Event, at: datetime) -> bool:
        """Whether the event is written, or never will be."""
        try:
            self._write(event, at)
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            reason = told(error, f"writing an event on {event.name}")
            if isinstance(reason, Conflict) and event.mark:
                return True
            if isinstance(reason, NotFound | InvalidInput | Conflict):
                log.warning("an event on a Kubernetes object is refused", reason=str(reason))
                return True
            if not self.problem:
                log.warning("events can't be written", reason=str(reason))
            self.problem = str(reason)
            return False
        self.problem = ""
        return True

    def _write(self, event: _Event, at: datetime) -> None:
        now = time.monotonic()
        written = self._written.get(event)
        if written is not None and now - written.at < AGAIN_S and self._count_up(written, at):
            written.at = now
            return
        name = f"{event.name}.{event.mark or f'{time.time_ns():x}'}"
        self._core.create_namespaced_event(self._namespace, self._made(event, name, at), _request_timeout=CALL_S)
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

    def _count_up(self, written: _Written, at: datetime) -> bool:
        """Whether it could be done: the cluster may have forgotten the event."""
        body = {"count": written.count + 1, "lastTimestamp": at.isoformat(timespec="seconds")}
        try:
            self._core.patch_namespaced_event(written.name, self._namespace, body, _request_timeout=CALL_S)
        except ApiException as error:
            if error.status != 404:
                raise
            return False
        written.count += 1
        return True

    def _made(self, event: _Event, name: str, at: datetime) -> CoreV1Event:
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
            first_timestamp=at,
            last_timestamp=at,
            count=1,
        )
