"""Installed by Helm on a real API server with real controllers, in a namespace that takes only restricted pods."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from helm_python import Config, HelmError
from kubernetes.client import ApiException, CoreV1Api, V1Eviction, V1ObjectMeta

from controlplane.fleet.cluster import client_of, configured
from controlplane.server.leases import KubernetesLease, owner_of
from tests.helm.rendering import CHART, Object, read
from tests.kubernetes.control_plane import ControlPlane
from tests.waiting import until

TINY = read(CHART / "ci" / "tiny-values.yaml")
KINDS = (
    "deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts,roles,rolebindings,leases,"
    "poddisruptionbudgets,networkpolicies,horizontalpodautoscalers,ingresses"
)


class Cluster:
    """A namespace of the API server, where Helm installs."""

    def __init__(self, api_server: ControlPlane, namespace: str, helm: Config) -> None:
        self.api_server, self.namespace, self.helm = api_server, namespace, helm

    def install(self, name: str, values: Object) -> Any:
        return self.helm.install(CHART, name, values, namespace=self.namespace)

    def upgrade(self, name: str, values: Object) -> Any:
        return self.helm.upgrade(CHART, name, values, namespace=self.namespace)

    def names(self, kinds: str, *arguments: str) -> set[str]:
        found = self.api_server.get(kinds, f"--namespace={self.namespace}", *arguments)
        return {f"{each['kind']}/{each['metadata']['name']}" for each in found["items"]}

    def objects(self) -> list[Object]:
        """What releases consist of, without what Kubernetes makes of it."""
        labels = "app.kubernetes.io/part-of=triton-controlplane,app.kubernetes.io/managed-by=Helm"
        kinds = KINDS.replace("replicasets,pods,", "").replace("leases,", "")
        return list(self.api_server.get(kinds, f"--namespace={self.namespace}", f"--selector={labels}")["items"])

    def replicas(self) -> dict[str, int]:
        found = self.api_server.get("deployments", f"--namespace={self.namespace}")
        return {each["metadata"]["name"]: each["spec"]["replicas"] for each in found["items"]}

    def pods(self, component: str) -> dict[str, bool]:
        """The pods of a part of the releases that are to stay, with whether each is ready."""
        selector = f"--selector=app.kubernetes.io/component={component}"
        found = self.api_server.get("pods", selector, f"--namespace={self.namespace}")["items"]
        return {
            each["metadata"]["name"]: any(
                one["type"] == "Ready" and one["status"] == "True" for one in each["status"].get("conditions", ())
            )
            for each in found
            if "deletionTimestamp" not in each["metadata"]
        }

    def begin(self, pod: str) -> None:
        """What a kubelet would say of a pod that is ready."""
        status = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
        patch = ("--subresource=status", f"--patch={json.dumps(status)}")
        self.api_server.kubectl("patch", "pod", pod, *patch, f"--namespace={self.namespace}")

    def evict(self, pod: str) -> int:
        """Ask for the eviction of a pod until there is an answer; its status."""
        return until(lambda: self._evict(pod), what="the API server does not answer")

    def _evict(self, pod: str) -> int:
        """0: the connection did not come about."""
        core = CoreV1Api(client_of(configured(self.api_server.kubeconfig)))
        try:
            core.create_namespaced_pod_eviction(
                pod, self.namespace, V1Eviction(metadata=V1ObjectMeta(name=pod, namespace=self.namespace))
            )
        except ApiException as error:
            return int(error.status or 0)
        return 201

    def lead(self, name: str) -> None:
        """Take a release's Lease, as its controller does, by the controller's rights."""
        account = f"{name}-controller"
        until(lambda: self.may(account, "create", "coordination.k8s.io/leases"))
        configuration = configured(self.api_server.kubeconfig_of(self.namespace, account))
        owner = owner_of(configuration, namespace=self.namespace, deployment=account)
        kept = KubernetesLease(configuration, namespace=self.namespace, name=account, owner=owner)
        kept.create(holder="somebody", address="http://10.0.0.1:8080", lease_s=10)

    def may(self, account: str, verb: str, resource: str) -> bool:
        """Whether a ServiceAccount has this right in the namespace, by the API server's own word."""
        group, _, kind = resource.rpartition("/")
        name, _, only = kind.partition(":")
        resource, _, part = name.partition(".")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{self.namespace}:{account}",
                "groups": [
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{self.namespace}",
                    "system:authenticated",
                ],
                "resourceAttributes": {
                    "namespace": self.namespace,
                    "verb": verb,
                    "group": group,
                    "resource": resource,
                    "subresource": part,
                    "name": only,
                },
            },
        }
        answer = self.api_server.kubectl("create", "--output=json", "--filename=-", given=json.dumps(review))
        return bool(json.loads(answer)["status"]["allowed"])


@contextmanager
def connected(api_server: ControlPlane, namespace: str) -> Iterator[Cluster]:
    with Config(kubeconfig_path=api_server.kubeconfig, namespace=namespace) as helm:
        yield Cluster(api_server, namespace, helm)


@pytest.fixture
def cluster(api_server: ControlPlane, namespace: str) -> Iterator[Cluster]:
    api_server.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with connected(api_server, namespace) as made:
        yield made


def test_everything_is_taken_and_its_pods_are_made(cluster: Cluster) -> None:
    values = read(CHART / "ci" / "everything-values.yaml")
    for needs_custom_resources in ("gatewayApi", "metrics"):
        del values[needs_custom_resources]
    values["fleets"][0]["priorityClassName"] = "system-node-critical"  # there is no other one
    del values["fleets"][0]["runtimeClassName"]
    values["controllerHostAlias"] = ""
    for service in (values["controller"]["service"], values["gateway"]["service"]):
        del service["clusterIP"]
    for port in ("grpcNodePort", "httpNodePort"):
        del values["gateway"]["service"][port]
    cluster.install("all", values)
    # A ReplicaSet makes no pod that the namespace's Pod Security refuses.
    until(
        lambda: (
            {each.split("/")[1].rsplit("-", 2)[0] for each in cluster.names("pods")}
            == {"all-controller", "all-gateway", "all-gpu", "all-cpu"}
        ),
        what="some Deployment has no pod",
    )
    cluster.helm.uninstall("all")


def test_a_fleets_size_is_the_controllers_through_upgrade_and_rollback(cluster: Cluster) -> None:
    first = cluster.install("serving", TINY)
    assert first["status"] == "deployed"
    assert "ctl register" in first["notes"]
    assert cluster.replicas() == {"serving-controller": 1, "serving-gateway": 1, "serving-cpu": 1}
    cluster.api_server.kubectl("scale", "deployment/serving-cpu", "--replicas=3", f"--namespace={cluster.namespace}")
    changed = {"name": "cpu", "podLabels": {"new": "label"}}
    cluster.upgrade("serving", {**TINY, "fleets": [changed, {"name": "second"}], "gateway": {"replicas": 2}})
    assert cluster.replicas() == {
        "serving-controller": 1,
        "serving-gateway": 2,
        "serving-cpu": 3,
        "serving-second": 1,
    }
    cluster.helm.rollback("serving", version=1)
    assert cluster.replicas() == {"serving-controller": 1, "serving-gateway": 1, "serving-cpu": 3}


def test_nothing_is_left_of_one_release_and_everything_of_the_other(cluster: Cluster) -> None:
    def wide() -> set[str]:
        labels = "app.kubernetes.io/part-of=triton-controlplane"
        found = cluster.api_server.get("clusterroles,clusterrolebindings", f"--selector={labels}")
        return {each["metadata"]["name"] for each in found["items"]}

    before, everything = cluster.names(KINDS), cluster.api_server.objects(cluster.namespace)
    cluster.install("first", TINY)
    alone = {
        each for each in cluster.names(KINDS) if "/first-" in each and not each.startswith(("Pod/", "ReplicaSet/"))
    }
    cluster.install("second", TINY)
    ours = {f"triton-controlplane:{cluster.namespace}:{name}-controller" for name in ("first", "second")}
    assert ours <= wide()
    for name in ("first", "second"):
        cluster.lead(name)
    assert {"Lease/first-controller", "Lease/second-controller"} <= cluster.names("leases")
    alone |= {"Lease/first-controller"}
    cluster.helm.uninstall("second")
    until(lambda: not any("second" in each for each in cluster.names(KINDS)), what="something is left of the release")
    assert alone <= cluster.names(KINDS)
    cluster.helm.uninstall("first")
    until(lambda: cluster.names(KINDS) == before, what="something is left")
    left = cluster.api_server.objects
    until(lambda: left(cluster.namespace) == everything, timeout_s=60, every_s=0.2, what="something is left")
    assert not ours & wide()


@pytest.mark.parametrize("component", ["fleet", "gateway", "controller"])
def test_of_two_evictions_at_once_one_is_refused(cluster: Cluster, component: str) -> None:
    """Kubernetes' own controller counts for the disruption budget; what kubelets say of pods, the test says."""
    cluster.install("serving", {**TINY, "gateway": {"replicas": 2}, "controller": {"replicas": 2}})
    cluster.api_server.kubectl("scale", "deployment/serving-cpu", "--replicas=2", f"--namespace={cluster.namespace}")
    budget = "serving-cpu" if component == "fleet" else f"serving-{component}"
    until(lambda: len(cluster.pods(component)) == 2)
    for pod in cluster.pods(component):
        cluster.begin(pod)

    def allowed() -> bool:
        status = cluster.api_server.get("poddisruptionbudget", budget, f"--namespace={cluster.namespace}")["status"]
        return bool((status.get("currentHealthy"), status.get("disruptionsAllowed")) == (2, 1))

    until(allowed, what="no pod may be evicted")
    with ThreadPoolExecutor(2) as threads:
        answers = sorted(threads.map(cluster.evict, cluster.pods(component)))
    assert answers == [201, 429]
    (ready,) = (name for name, ready in cluster.pods(component).items() if ready)
    assert cluster.evict(ready) == 429, "who comes for the other one is not ready"
    assert cluster.pods(component)[ready]


def test_a_second_release_under_the_same_name_is_refused(cluster: Cluster) -> None:
    cluster.install("first", {**TINY, "fullnameOverride": "serving"})
    before = {each["metadata"]["uid"] for each in cluster.objects()}
    with pytest.raises(HelmError, match=r"(?s)exists and cannot be imported.*must equal \"second\".* \"first\""):
        cluster.install("second", {**TINY, "fullnameOverride": "serving"})
    found = cluster.objects()
    assert {each["metadata"]["uid"] for each in found} == before
    assert {each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in found} == {"first"}
    cluster.upgrade("first", {**TINY, "fullnameOverride": "serving", "gateway": {"replicas": 2}})
    assert cluster.replicas()["serving-gateway"] == 2
    cluster.helm.uninstall("first")


def test_rights_are_as_small_as_they_can_be(cluster: Cluster) -> None:
    cluster.install("serving", TINY)
    allowed = [
        ("list", "apps/deployments"),
        ("watch", "apps/deployments"),
        ("get", "apps/deployments.scale:serving-cpu"),
        ("patch", "apps/deployments.scale:serving-cpu"),
        ("watch", "/pods"),
        ("patch", "/pods"),
        ("create", "/events"),
        ("create", "coordination.k8s.io/leases"),
        ("update", "coordination.k8s.io/leases:serving-controller"),
        ("create", "authentication.k8s.io/tokenreviews"),
    ]
    denied = [
        ("patch", "apps/deployments:serving-cpu"),
        ("patch", "apps/deployments.scale:serving-gateway"),
        ("delete", "/pods"),
        ("create", "/pods"),
        ("create", "/pods.exec"),
        ("get", "/secrets"),
        ("get", "/configmaps"),
        ("create", "/serviceaccounts.token"),
        ("update", "coordination.k8s.io/leases:another"),
        ("create", "authorization.k8s.io/subjectaccessreviews"),
    ]
    assert [each for each in allowed if not cluster.may("serving-controller", *each)] == []
    assert [each for each in denied if cluster.may("serving-controller", *each)] == []
    for account in ("serving-fleet", "serving-gateway", "serving-ctl"):
        assert [each for each in allowed + denied if cluster.may(account, *each)] == []


def test_who_is_named_may_read_with_ctl_and_nothing_else(cluster: Cluster) -> None:
    cluster.install("serving", {**TINY, "ctl": {"subjects": [{"kind": "User", "name": "ada"}]}})

    def can(verb: str, resource: str, *more: str) -> bool:
        command = [str(cluster.api_server.programs["kubectl"]), f"--kubeconfig={cluster.api_server.kubeconfig}", "auth"]
        asked = ["can-i", verb, resource, *more, "--as=ada", f"--namespace={cluster.namespace}"]
        done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
        return done.stdout.strip() == "yes"

    # The API server learns of a new RoleBinding by a watch of its own.
    until(lambda: can("create", "serviceaccounts/serving-ctl", "--subresource=token"), what="ada may not")
    assert can("create", "pods", "--subresource=portforward")
    assert can("list", "pods")
    assert not can("create", "serviceaccounts/serving-controller", "--subresource=token")
    assert not can("patch", "deployments")
    assert not can("get", "secrets")
