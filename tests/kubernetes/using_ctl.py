"""How tests use `ctl --context`: fixtures, and what they look for in its answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.cli.cluster.api import Api
from controlplane.cli.cluster.release import ADDRESS
from controlplane.cli.main import main
from tests.cli.conftest import Answer
from tests.helm.rendering import CHART, read
from tests.helm.rendering import objects as rendered
from tests.kubernetes.control_plane import ControlPlane

Ctl = Callable[..., Answer]
Object = dict[str, Any]
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME_DIR", "REGISTRY", "CONTEXT", "NAMESPACE", "RELEASE"):
        monkeypatch.delenv(f"CTL_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ctl(api_server: ControlPlane, namespace: str, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """With the administrator's kubeconfig and the test's namespace, where no others are named."""

    def run(*arguments: object, kubeconfig: Path | None = None, inside: str = namespace) -> Answer:
        capsys.readouterr()
        where = [f"--kubeconfig={kubeconfig or api_server.kubeconfig}", "--context=test", f"--namespace={inside}"]
        status = main([*where, *(str(each) for each in arguments)])
        said = capsys.readouterr()
        return Answer(status, said.out, said.err)

    return run


@pytest.fixture
def api(api_server: ControlPlane, namespace: str) -> Api:
    return Api(kubeconfig=api_server.kubeconfig, context="test", namespace=namespace)


def chart(name: str, namespace: str, **more: Any) -> list[Object]:
    """What the chart renders of a release that is not tested here for itself."""
    values = {**read(CHART / "ci" / "tiny-values.yaml"), "registry": "s3://registry/fleet", **more}
    found = rendered(values, name=name, namespace=namespace)
    kept = [each for each in found if "helm.sh/hook" not in (each["metadata"].get("annotations") or {})]
    return sorted(kept, key=lambda each: each["kind"] == "Deployment")  # after what their pods need, as Helm does


@pytest.fixture
def install(api_server: ControlPlane, namespace: str) -> Iterator[Callable[..., None]]:
    """Applies what the chart renders."""
    wide: list[Object] = []

    def apply(name: str = "serving", **more: Any) -> None:
        objects = chart(name, namespace, **more)
        wide.extend(each for each in objects if each["kind"] in CLUSTER_WIDE)
        api_server.kubectl("apply", "--filename=-", given=yaml.safe_dump_all(objects))

    yield apply
    for each in wide:
        api_server.kubectl("delete", each["kind"], each["metadata"]["name"], "--ignore-not-found")


def lease(namespace: str, holder: str, address: str = "http://10.0.0.1:8080", *, age_s: float = 0.0) -> str:
    """A Lease as a controller writes it, renewed so long ago."""
    now = (datetime.now(UTC) - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 600, "renewTime": now, "acquireTime": now}
    metadata = {"name": "serving-controller", "namespace": namespace, "annotations": {ADDRESS: address}}
    return json.dumps({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})


def person(api_server: ControlPlane, namespace: str, name: str = "somebody") -> Path:
    api_server.kubectl("create", "serviceaccount", name, f"--namespace={namespace}")
    return api_server.kubeconfig_of(namespace, name)


def states(answer: Answer, check: str) -> list[str]:
    return [each["state"] for each in answer.data if each["check"] == check]


def told(answer: Answer, check: str) -> str:
    return "\n".join(f"{each['what']} → {each['remedy']}" for each in answer.data if each["check"] == check)


def bind(api_server: ControlPlane, namespace: str, role: str, name: str = "somebody") -> None:
    api_server.kubectl(
        "create",
        "rolebinding",
        role,
        f"--role={role}",
        f"--serviceaccount={namespace}:{name}",
        f"--namespace={namespace}",
    )


def may(
    api_server: ControlPlane,
    namespace: str,
    verb: str,
    resource: str,
    *,
    group: str = "",
    only: str = "",
    name: str = "somebody",
) -> bool:
    """Whether the service account `name` may do that by now, to the object `only` if it is named: the API server hears
    of its own roles and bindings a little after they are written."""
    resource, _, part = resource.partition("/")
    wished = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": part}
    wished["name"] = only
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{namespace}:{name}", "resourceAttributes": wished},
    }
    answer = api_server.kubectl("create", "--output=json", "--filename=-", given=json.dumps(review))
    return bool(json.loads(answer)["status"]["allowed"])


@pytest.fixture
def looked(ctl: Ctl, tmp_path: Path) -> Callable[..., Answer]:
    def run(*arguments: object, **options: Any) -> Answer:
        return ctl("doctor", f"--registry={tmp_path / 'registry'}", "-o", "json", *arguments, **options)

    return run
