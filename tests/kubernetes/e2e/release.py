"""The product on a real cluster: installed by Helm, with a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
import yaml

from tests.e2e.system import Load, write_doubler
from tests.kubernetes.cluster import ADDRESS, Cluster
from tests.registry.servers import ACCESS_KEY, BUCKET, SECRET_KEY, versitygw
from tests.waiting import until

CHART = Path(__file__).resolve().parents[3] / "helm" / "triton-controlplane"
CONTROLLER, GATEWAY = "10.96.7.7", "10.96.7.8"
"""Their services: there are no names here."""
REGISTRY = f"s3://{BUCKET}/fleet"
RELEASE = "serving"
MODEL = "doubler"
LONG_S = 180.0


def image(reference: str) -> dict[str, str]:
    """An image that was built here, as the chart's values name it."""
    place, _, tag = reference.rpartition(":")
    registry, _, repository = place.partition("/")
    return {"registry": registry, "repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}


class Installed:
    """A release, and who uses it."""

    def __init__(self, cluster: Cluster, namespace: str, images: dict[str, str], helm: Any, s3: str) -> None:
        self.cluster, self.namespace, self.images, self.helm = cluster, namespace, images, helm
        self.environment = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": s3,
            "CTL_REGISTRY": REGISTRY,
        }
        self.s3 = s3

    def values(self, **gateway: Any) -> dict[str, Any]:
        tiny = yaml.safe_load((CHART / "ci" / "tiny-values.yaml").read_text())
        return {
            **tiny,
            "registry": REGISTRY,
            "s3": {"existingSecret": "bucket", "endpoint": self.s3, "region": "us-east-1"},
            "controllerHostAlias": CONTROLLER,
            "unreachableSeconds": 2,
            "fleets": [
                {
                    **tiny["fleets"][0],
                    "replicas": {"min": 1, "max": 3},
                    "image": image(self.images["triton"]),
                    "agentImage": image(self.images["agent"]),
                    "responseCacheBytes": 0,
                    "scaling": {"down_after_s": 5},
                }
            ],
            "controller": {
                **tiny["controller"],
                "replicas": 2,
                "image": image(self.images["controller"]),
                "service": {"clusterIP": CONTROLLER},
            },
            "gateway": {
                **tiny["gateway"],
                "image": image(self.images["gateway"]),
                "service": {"clusterIP": GATEWAY},
                **gateway,
            },
            "test": {"model": MODEL, "timeoutSeconds": 60},
        }

    def get(self, *arguments: str) -> Any:
        return self.cluster.api.get(*arguments, f"--namespace={self.namespace}")

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.api.kubectl(*arguments, f"--namespace={self.namespace}")

    def ctl(self, *arguments: str) -> str:
        """What `ctl` prints to who has the registry's address alone."""
        return self._ctl(*arguments, environment=self.environment).stdout

    def by_context(self, *arguments: str) -> str:
        """What it prints to who has a kubeconfig, and credentials for the bucket, whose address nobody has told."""
        return self._by_context(*arguments).stdout

    def explain(self) -> str:
        """Why the fleet is as it is; nothing while nobody leads, for which it ends with 1."""
        return self._by_context("explain", "fleet", "cpu", statuses=(0, 1)).stdout

    def doctor(self, *arguments: str) -> str:
        """What `ctl doctor` finds wrong, for which it ends with 1; nothing while it ends with 0."""
        done = self._by_context("doctor", *arguments, statuses=(0, 1))
        return done.stdout if done.returncode else ""

    def _by_context(self, *arguments: str, statuses: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
        place = [f"--kubeconfig={self.cluster.api.kubeconfig}", "--context=test", f"--namespace={self.namespace}"]
        environment = {name: value for name, value in self.environment.items() if name != "CTL_REGISTRY"}
        return self._ctl(*place, *arguments, environment=environment, statuses=statuses)

    def _ctl(
        self, *arguments: str, environment: dict[str, str], statuses: Sequence[int] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "controlplane.cli.main", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
            timeout=LONG_S,
        )
        told = f"ctl {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode in statuses, told
        return done

    def fleet(self) -> int:
        """How many pods of the fleet are ready, and none on its way out; -1 while there are such."""
        pods = self.get("pods", "--selector=app.kubernetes.io/component=fleet")["items"]
        if any("deletionTimestamp" in each["metadata"] for each in pods):
            return -1
        return sum(
            any(one["type"] == "Ready" and one["status"] == "True" for one in each["status"].get("conditions", ()))
            for each in pods
        )

    def rolled_out(self) -> None:
        """Wait until all pods are of the version that was installed last."""
        for name in ("controller", "gateway", "cpu"):
            self.kubectl("rollout", "status", f"deployment/{RELEASE}-{name}", f"--timeout={LONG_S:.0f}s")

    def leader(self) -> str:
        """The pod of the controller that leads; empty while nobody does."""
        lease = self.get("lease", f"{RELEASE}-controller")["spec"]
        return str(lease.get("holderIdentity") or "").rpartition("_")[0]

    def pods(self) -> set[str]:
        """The names of all pods."""
        return {each["metadata"]["name"] for each in self.get("pods")["items"]}

    @property
    def gateway(self) -> str:
        return f"{GATEWAY}:8001"

    def load(self, address: str | None = None) -> Load:
        """Clients of the gateway, or of one of its pods, that ask for the model without an end."""
        client = partial(triton.InferenceServerClient, address or self.gateway)
        return Load(client, MODEL, clients=3, factors=(2, 3))

    def register(self, folder: Path, factor: int) -> None:
        self.ctl("register", MODEL, str(write_doubler(folder, factor)))

    def promote(self, version: int) -> None:
        self.ctl("promote", MODEL, str(version), "--no-wait")
        until(lambda: self.stable() == version, timeout_s=LONG_S, what=f"version {version} is not stable")

    def stable(self) -> int | None:
        model = json.loads(self.ctl("describe", "model", MODEL, "-o", "json"))
        found = model["aliases"].get("stable")
        return int(found) if found is not None else None


@pytest.fixture(scope="module")
def installed(
    cluster: Cluster, images: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    # Its library starts threads when it is loaded, and they are to be in the cluster's network.
    from helm_python import Config

    folder = tmp_path_factory.mktemp("e2e")
    namespace = f"serving-{uuid.uuid4().hex[:6]}"
    cluster.api.kubectl("create", "namespace", namespace)
    cluster.api.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with (
        versitygw(folder / "s3", ADDRESS) as s3,
        Config(kubeconfig_path=cluster.api.kubeconfig, namespace=namespace) as helm,
    ):
        made = Installed(cluster, namespace, images, helm, s3.endpoint)
        made.kubectl(
            "create",
            "secret",
            "generic",
            "bucket",
            f"--from-literal=AWS_ACCESS_KEY_ID={ACCESS_KEY}",
            f"--from-literal=AWS_SECRET_ACCESS_KEY={SECRET_KEY}",
        )
        try:
            helm.install(CHART, RELEASE, made.values(), namespace=namespace)
            made.rolled_out()
            yield made
            helm.uninstall(RELEASE)
        finally:
            made.kubectl("delete", "services", "--all")  # their addresses are those of the next release, too
            cluster.api.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture(scope="module")
def model(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which version 1 is stable."""
    folder = tmp_path_factory.mktemp("models")
    installed.register(folder / "one", 2)
    installed.promote(1)
    return folder
