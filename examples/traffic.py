"""Clients of the file-type classifier that ask without a pause."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from examples.file_types import best, features

GRPC_CLIENTS, HTTP_CLIENTS = 12, 4


class Traffic:
    """Clients that classify files without a pause, over gRPC and HTTP, and count what comes back."""

    def __init__(self, grpc: str, http: str, model: str, files: list[tuple[str, bytes]], labels: list[str]) -> None:
        self._grpc, self._http, self._model, self._labels = grpc, http, model, labels
        self._inputs = [(name, features(content)) for name, content in files]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: dict[str, str] = {}
        self.by_version: Counter[str] = Counter()
        self.by_protocol: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(n, self._over_grpc)) for n in range(GRPC_CLIENTS)]
        self._threads += [threading.Thread(target=self._ask, args=(n, self._over_http)) for n in range(HTTP_CLIENTS)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def total(self) -> int:
        """Requests answered so far."""
        with self._lock:
            return sum(self.by_version.values())

    def wait_for(self, requests: int, deadline_s: float = 60.0) -> None:
        """Until so many more requests have been answered, or the deadline is over."""
        wanted, deadline = self.total() + requests, time.monotonic() + deadline_s
        while self.total() < wanted and time.monotonic() < deadline:
            time.sleep(0.05)

    def _ask(self, number: int, ask: Callable[[], Iterator[Callable[[Any], tuple[str, Any]]]]) -> None:
        position = number * 31
        for infer in ask():
            while not self._stop.is_set():
                name, made = self._inputs[position % len(self._inputs)]
                position += 1
                try:
                    version, scores = infer(made[None, :])
                except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure to be reported
                    with self._lock:
                        self.failures[str(error)[:120]] += 1
                    continue
                label, _ = best(scores[0], self._labels)
                with self._lock:
                    self.answers[name] = label
                    self.by_version[version] += 1
                    self.by_protocol[ask.__name__.removeprefix("_over_")] += 1

    def _over_grpc(self) -> Iterator[Callable[[Any], tuple[str, Any]]]:
        with contextlib.closing(triton_grpc.InferenceServerClient(self._grpc)) as client:

            def infer(made: Any) -> tuple[str, Any]:
                given = triton_grpc.InferInput("bytes", made.shape, "INT32")
                given.set_data_from_numpy(made)
                result = client.infer(self._model, [given], client_timeout=60)
                return result.get_response().model_version, result.as_numpy("target_label")

            yield infer

    def _over_http(self) -> Iterator[Callable[[Any], tuple[str, Any]]]:
        with contextlib.closing(triton_http.InferenceServerClient(self._http)) as client:

            def infer(made: Any) -> tuple[str, Any]:
                given = triton_http.InferInput("bytes", made.shape, "INT32")
                given.set_data_from_numpy(made)
                result = client.infer(self._model, [given])
                return result.get_response()["model_version"], result.as_numpy("target_label")

            yield infer
