"""What an API server holds of one kind, kept current by a watch: nobody polls it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import structlog
import urllib3
from kubernetes.client import ApiException
from kubernetes.watch import Watch

from controlplane.backoff import backoff_s
from controlplane.fleet.cluster import CALL_S, GONE, told

log = structlog.get_logger(__name__)

WATCH_S = 240
"""After so long the server ends a watch, and the next one goes on from there."""
RESYNC_S = 900.0
"""After so long everything is listed anew, whatever the watch has told."""
RETRY_MIN_S, RETRY_MAX_S = 0.2, 30.0


class Informer:
    """Lists objects once and follows every change in a thread of its own.

    `list_` is the client's call that lists them, with `options` (namespace, selector). `changed` is called in the
    thread whenever something is different. What was known stays known while the server is away.
    """

    def __init__(self, what: str, list_: Callable[..., Any], options: Mapping[str, Any], changed: Callable[[], None]):
        self.what = what
        self._list = list_
        self.problem: Exception | None = None
        """Why it is out of date at present. Ends when a watch is open again: a list alone is old in a moment."""

        @wraps(list_)  # the client reads from it what it returns
        def open_watch(**options: Any) -> Any:
            opened = list_(**options)
            if 200 <= opened.status < 300:
                self.problem = None
            return opened

        self._open = open_watch
        self._options = dict(options)
        self._changed = changed
        self._objects: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._synced = threading.Event()
        self._stopped = threading.Event()
        self._watch: Watch | None = None

    def start(self) -> None:
        """Begin to follow."""
        threading.Thread(target=self._run, name=f"informer-{self.what}", daemon=True).start()

    def stop(self) -> None:
        """Follow no longer. A watch that is open ends at its next event, or with the process."""
        self._stopped.set()
        if self._watch is not None:
            self._watch.stop()  # type: ignore[no-untyped-call]

    def wait(self, timeout_s: float) -> bool:
        """Whether everything has been listed once, at the latest after so long."""
        return self._synced.wait(timeout_s)

    @property
    def synced(self) -> bool:
        """Whether everything has been listed once."""
        return self._synced.is_set()

    def objects(self) -> dict[str, Any]:
        """What there is, by name."""
        with self._lock:
            return dict(self._objects)

    def put(self, found: Any) -> None:
        """Take in what a write has just returned, ahead of the watch."""
        with self._lock:
            self._objects[found.metadata.name] = found

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            begun = time.monotonic()
            try:
                self._follow()
                failures = 0
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would go on
                if self._stopped.is_set():  # which ends what is open
                    return
                failures = 1 if time.monotonic() - begun > RETRY_MAX_S else failures + 1
                if failures == 1 and isinstance(error, ApiException) and error.status == GONE:
                    log.info("the watch is too old: everything is listed anew", kind=self.what)
                    continue
                known = isinstance(error, ApiException | urllib3.exceptions.HTTPError | OSError)
                self.problem = told(error, f"watching {self.what}") if known else error
                if failures in (1, 10, 100):
                    log.warning("what is known may be out of date", kind=self.what, reason=repr(self.problem))
                self._stopped.wait(backoff_s(failures, RETRY_MIN_S, RETRY_MAX_S))

    def _follow(self) -> None:
        listed = self._list(**self._options, _request_timeout=CALL_S)
        with self._lock:
            self._objects = {each.metadata.name: each for each in listed.items}
        self._synced.set()
        self._changed()
        version, end = listed.metadata.resource_version, time.monotonic() + RESYNC_S
        while time.monotonic() < end and not self._stopped.is_set():
            self._watch = Watch()  # type: ignore[no-untyped-call]
            for event in self._watch.stream(  # type: ignore[no-untyped-call]
                self._open,
                **self._options,
                resource_version=version,
                timeout_seconds=WATCH_S,
                allow_watch_bookmarks=True,
                _request_timeout=(CALL_S, WATCH_S + CALL_S),
            ):
                version = event["raw_object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":  # which has a version, and no object
                    self._take(event["type"], event["object"])
                    self._changed()

    def _take(self, kind: str, found: Any) -> None:
        with self._lock:
            if kind == "DELETED":
                self._objects.pop(found.metadata.name, None)
            else:
                self._objects[found.metadata.name] = found
