"""The cluster that the tests below here use is a real one."""

from __future__ import annotations

import json
import socket

import pytest

from tests.kubernetes.cluster import ADDRESS, Cluster
from tests.kubernetes.images import sizes
from tests.waiting import until

SERVER = """\
import socket, sys
listening = socket.create_server(("", 8000))
while True:
    one, _ = listening.accept()
    one.sendall(socket.gethostname().encode())
    one.close()
"""

LIMITED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _deployment(image: str, command: list[str]) -> str:
    labels = {"app": "some"}
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "main", "image": image, "command": command, "securityContext": LIMITED}],
        "terminationGracePeriodSeconds": 1,
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "some"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "some"},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [deployment, service]})


def _ask(address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), 2) as asked:
            return asked.recv(1000).decode()
    except OSError:
        return ""


def test_pods_of_an_image_built_here_run_and_serve(cluster: Cluster, namespace: str, images: dict[str, str]) -> None:
    manifests = _deployment(images["agent"], ["python3", "-c", SERVER])
    cluster.api.kubectl("apply", f"--namespace={namespace}", "--filename=-", given=manifests)
    cluster.api.kubectl("rollout", "status", "deployment/some", f"--namespace={namespace}", "--timeout=60s")
    pods = {each["metadata"]["name"] for each in cluster.api.get("pods", f"--namespace={namespace}")["items"]}
    address = cluster.api.get("service", "some", f"--namespace={namespace}")["spec"]["clusterIP"]
    answered: set[str] = set()

    def all_answered() -> bool:
        answered.add(_ask(address, 80))
        return pods <= answered

    until(all_answered, what="not every pod answers through the service")
    # And the other way: what a test serves, a pod reaches.
    with socket.create_server((ADDRESS, 0)) as server:
        asking = f"import socket; print(socket.create_connection(({ADDRESS!r}, {server.getsockname()[1]}), 5))"
        said = cluster.api.kubectl("exec", f"--namespace={namespace}", "deployment/some", "--", "python3", "-c", asking)
    assert ADDRESS in said


@pytest.mark.parametrize("name", ["controller", "agent"])
def test_images_are_small(images: dict[str, str], name: str) -> None:
    unpacked, _ = sizes(images[name])
    assert unpacked < 200e6, f"{name}: {unpacked / 1e6:.0f} MB unpacked"
