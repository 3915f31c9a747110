"""An API server that has too much to do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.kubernetes.control_plane import ControlPlane

NARROW = """\
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {{name: {namespace}}}
spec:
  type: Limited
  limited: {{nominalConcurrencyShares: 0, borrowingLimitPercent: 0, limitResponse: {{type: Reject}}}}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {{name: {namespace}}}
spec:
  priorityLevelConfiguration: {{name: {namespace}}}
  matchingPrecedence: 2
  rules:
    - subjects: [{{kind: ServiceAccount, serviceAccount: {{name: serving-controller, namespace: {namespace}}}}}]
      resourceRules: [{{verbs: ["*"], apiGroups: ["*"], resources: ["*"], namespaces: ["*"], clusterScope: true}}]
"""
"""One request of the controllers at a time, and what is too much is refused."""


@contextlib.contextmanager
def crowded(api: ControlPlane, namespace: str, ask: Callable[[], object]) -> Iterator[None]:
    """It answers 429 to most of what the controllers ask, since `ask`, with their identity and from four threads, takes
    the little that they may have."""
    objects, enough = NARROW.format(namespace=namespace), threading.Event()

    def ask_on() -> None:
        while not enough.is_set():
            ask()

    api.kubectl("apply", "--filename=-", given=objects)
    with ThreadPoolExecutor(4) as threads:
        try:
            asking = [threads.submit(ask_on) for _ in range(4)]
            yield
        finally:
            enough.set()
            api.kubectl("delete", "--filename=-", given=objects)
        for each in asking:
            each.result()
