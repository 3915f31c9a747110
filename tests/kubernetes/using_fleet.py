"""Fleets of pods for tests: two Deployments on the API server, and backends over them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import yaml

from controlplane.fleet.cluster import client_of, configured
from controlplane.fleet.kubernetes import FLEET_LABEL, KubernetesFleet
from controlplane.fleet.protocol import FleetBackend
from tests.kubernetes.control_plane import ControlPlane
from tests.waiting import until

INSTANCE = "app.kubernetes.io/instance"


def deployment(fleet: str, release: str = "serving") -> str:
    labels = {INSTANCE: release, FLEET_LABEL: fleet}
    return yaml.safe_dump(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": f"{release}-{fleet}", "labels": labels},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "automountServiceAccountToken": False,
                        "containers": [{"name": "triton", "image": "triton:none"}],
                    },
                },
            },
        }
    )


def labelled(fleet: str) -> dict[str, Any]:
    return {"labels": {INSTANCE: "serving", FLEET_LABEL: fleet}}


async def true(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    await asyncio.to_thread(until, condition)


class Made:
    """Backends over one namespace, and what they heard."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.changed = threading.Event()
        self.made: list[KubernetesFleet] = []

    async def __call__(self, release: str = "serving") -> KubernetesFleet:
        backend = KubernetesFleet(
            client_of(configured(self.cluster.kubeconfig)),
            namespace=self.namespace,
            selector=f"{INSTANCE}={release}",
            changed=self.changed.set,
        )
        self.made.append(backend)
        await backend.open()
        return backend

    async def settled(self, backend: FleetBackend) -> None:
        """Until the cluster has done what the Deployments say, and the backend has heard of it."""

        def deployed() -> bool:
            found = self.kubectl_get("deployments")
            return all(
                each["status"].get("observedGeneration") == each["metadata"]["generation"]
                and each["status"].get("replicas", 0) == each["spec"]["replicas"]
                for each in found
            )

        def heard() -> bool:
            return {each.name for each in asyncio.run(backend.list())} == self.pods()

        await true(deployed)
        await true(heard)

    def pods(self) -> set[str]:
        return {each["metadata"]["name"] for each in self.kubectl_get("pods")}

    def kubectl_get(self, kind: str) -> list[Any]:
        return list(self.cluster.get(kind, f"--namespace={self.namespace}")["items"])

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}", given=given)


@pytest.fixture
async def make(api_server: ControlPlane, namespace: str) -> AsyncIterator[Made]:
    made = Made(api_server, namespace)
    for fleet in ("cpu", "other"):
        made.kubectl("apply", "-f", "-", given=deployment(fleet))
    yield made
    for each in made.made:
        each.close()
