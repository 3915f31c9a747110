"""What the chart renders: as it was agreed on, and what always holds of it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from controlplane.agent.__main__ import parse as parse_agent
from controlplane.agent.triton.pod import PORTS, arguments
from controlplane.local.home import Home
from controlplane.local.system import read_system
from controlplane.server.pod import pod_of
from gateway.__main__ import parse as parse_gateway
from gateway.settings import Settings as GatewaySettings
from gateway.settings import check
from tests.helm.rendering import (
    CHART,
    NAMESPACE,
    RELEASE,
    VALUES,
    Object,
    containers,
    golden_file,
    manifest,
    objects,
    one,
    pods,
    read,
    templates,
    tiny,
)

kubernetes_validate: Any = importlib.import_module("kubernetes_validate")
OLDEST, NEWEST = "1.29", "1.34"
FOREIGN = {"PodMonitor", "PrometheusRule", "GRPCRoute", "HTTPRoute", "Certificate"}
"""Kinds that clusters have by custom resources; there is no schema of them here, golden manifests aside."""
everywhere = pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem)


@everywhere
def test_manifests_are_as_they_were(path: Path) -> None:
    """After a wanted change: python -m tests.helm.rendering."""
    assert manifest(read(path)) == golden_file(path).read_text()


@everywhere
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_the_manifests(path: Path, version: str) -> None:
    found = objects(read(path))
    for each in found:
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, version, strict=True)


@everywhere
def test_no_object_is_there_twice_and_all_are_labelled(path: Path) -> None:
    found = objects(read(path))
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))
    for each in found:
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "triton-controlplane"
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/part-of"] == "triton-controlplane"
        assert {f"app.kubernetes.io/{name}" for name in ("component", "version", "managed-by")} <= labels.keys()
        assert each["metadata"].get("namespace") == (None if each["kind"].startswith("Cluster") else NAMESPACE)


@everywhere
def test_fleets_have_no_number_of_replicas(path: Path) -> None:
    found = [each for each in objects(read(path)) if each["kind"] == "Deployment"]
    fleets = [each for each in found if each["metadata"]["labels"]["app.kubernetes.io/component"] == "fleet"]
    assert len(fleets) == len(read(path)["fleets"])
    for each in fleets:
        assert "replicas" not in each["spec"]
        name = each["metadata"]["labels"]["triton-controlplane.io/fleet"]
        assert each["spec"]["selector"]["matchLabels"]["triton-controlplane.io/fleet"] == name
        assert each["spec"]["template"]["metadata"]["labels"]["triton-controlplane.io/fleet"] == name


@everywhere
def test_every_container_is_restricted(path: Path) -> None:
    for name, pod in pods(objects(read(path))):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        assert all("hostPath" not in volume for volume in pod["volumes"]), name
        for each in containers(pod):
            own = each["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, each["name"]
            assert own["readOnlyRootFilesystem"] is True, each["name"]
            assert own["capabilities"] == {"drop": ["ALL"]}, each["name"]
            assert each["resources"]["requests"]["cpu"], each["name"]
            assert each["resources"]["requests"]["memory"], each["name"]


@everywhere
def test_no_secret_is_in_the_manifests_and_only_the_controller_is_given_any(path: Path) -> None:
    found = objects(read(path))
    assert "Secret" not in {each["kind"] for each in found}
    for name, pod in pods(found):
        given = {
            variable["name"]
            for each in containers(pod)
            for variable in each.get("env", ())
            if "secretKeyRef" in variable.get("valueFrom", {}) or variable["name"].startswith("AWS_")
        }
        assert not given or name.endswith("-controller")
        for each in containers(pod):
            for variable in each.get("env", ()):
                if "KEY" in variable["name"] or "TOKEN" in variable["name"]:
                    assert "value" not in variable


@everywhere
def test_only_the_controller_reaches_the_api_server(path: Path) -> None:
    found = objects(read(path))
    for name, pod in pods(found):
        assert pod["automountServiceAccountToken"] is name.endswith("-controller")
    accounts = {
        subject["name"]
        for each in found
        if each["kind"].endswith("RoleBinding")
        for subject in each["subjects"]
        if subject["kind"] == "ServiceAccount"
    }
    assert {account.rsplit("-", 1)[-1] for account in accounts} == {"controller"}
    assert len(accounts) == 1


def test_the_controllers_rights_are_these() -> None:
    found = objects(tiny(fleets=[{"name": "cpu"}, {"name": "gpu"}]))
    role = {
        (group, resource): (set(rule["verbs"]), rule.get("resourceNames"))
        for rule in one(found, "Role", "serving-controller")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if resource != "leases"
    }
    assert role == {
        ("apps", "deployments"): ({"get", "list", "watch"}, None),
        ("apps", "deployments/scale"): ({"get", "patch"}, ["serving-cpu", "serving-gpu"]),
        ("", "pods"): ({"get", "list", "watch", "patch"}, None),
        ("", "events"): ({"create", "patch"}, None),
    }
    leases = [rule for rule in one(found, "Role", "serving-controller")["rules"] if rule["resources"] == ["leases"]]
    assert [(set(rule["verbs"]), rule.get("resourceNames")) for rule in leases] == [
        ({"create"}, None),
        ({"get", "update", "patch"}, ["serving-controller"]),
    ]
    wide = one(found, "ClusterRole", "triton-controlplane:models:serving-controller")
    assert wide["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]


@everywhere
def test_what_the_controller_reads_is_a_system(path: Path, tmp_path: Path) -> None:
    values = read(path)
    found = objects(values)
    (text,) = (each["data"]["system.yaml"] for each in found if "system.yaml" in each.get("data", {}))
    file = tmp_path / "system.yaml"
    file.write_text(text)
    system = read_system(file, Home(tmp_path))
    assert system.registry == values["registry"]
    assert [fleet.name for fleet in system.fleets] == [fleet["name"] for fleet in values["fleets"]]


def test_what_a_fleet_says_reaches_the_controller(tmp_path: Path) -> None:
    file = tmp_path / "system.yaml"
    file.write_text(
        one(
            objects(
                tiny(
                    fleetDefaults={"gpus": 1, "min_loaded": 3, "memory_bytes": "1.5Gi"},
                    fleets=[
                        {"name": "a", "replicas": {"min": 0, "max": 4}, "scaling": {"in_flight": 8}, "default": True},
                        {"name": "b", "gpus": 0, "min_loaded": 0, "memory_bytes": 1 << 40, "model_idle_s": 90},
                    ],
                    controller={"settings": {"max_gpus": 0}},
                )
            ),
            "ConfigMap",
            "serving-config",
        )["data"]["system.yaml"]
    )
    system = read_system(file, Home(tmp_path))
    first, second = system.fleets
    assert (first.replicas.min, first.replicas.max, first.scaling.in_flight) == (0, 4, 8)
    assert (first.gpus, first.min_loaded, first.memory_bytes, first.default) == (1, 3, 3 << 29, True)
    assert (second.gpus, second.min_loaded, second.memory_bytes, second.default) == (0, 0, 1 << 40, False)
    assert (first.model_idle_s, second.model_idle_s) == (None, 90)
    assert system.controller.max_gpus == 0


@everywhere
def test_what_the_gateways_read_are_settings(path: Path) -> None:
    (text,) = (each["data"]["gateway.json"] for each in objects(read(path)) if "gateway.json" in each.get("data", {}))
    settings = TypeAdapter(GatewaySettings).validate_json(text)
    check(settings)
    assert (settings.address, settings.grpc_port, settings.http_port) == ("0.0.0.0", 8001, 8000)  # noqa: S104


@everywhere
def test_agents_and_gateways_understand_their_arguments(path: Path) -> None:
    for name, pod in pods(objects(read(path))):
        for each in containers(pod):
            if each["name"] == "agent":
                settings, _ = parse_agent(_filled(each["args"], name))
                triton = pod["containers"][0]
                wanted = arguments(settings)
                assert _filled(triton["args"], name)[: len(wanted)] == wanted
                assert {port["name"]: port["containerPort"] for port in triton["ports"]} == {
                    "grpc": PORTS.grpc,
                    "http": PORTS.http,
                    "metrics": PORTS.metrics,
                }
                assert settings.port == each["ports"][0]["containerPort"]
                assert pod["terminationGracePeriodSeconds"] > settings.drain_s + settings.exit_timeout_s
            elif each["name"] == "gateway":
                found = parse_gateway(_filled(each["args"], name))
                assert found.port == 8091
                assert pod["terminationGracePeriodSeconds"] > found.drain_s + found.grace_s


def _filled(given: list[str], name: str) -> list[str]:
    """Arguments as the kubelet gives them."""
    pod = f"{name}-7d9c-x2"
    return [each.replace("$(POD_NAME)", pod).replace("$(POD_IP)", "10.0.0.7") for each in given]


def test_the_controller_is_told_whose_it_is() -> None:
    pod = one(objects(tiny(fullnameOverride="r")), "Deployment", "r-controller")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] + container["args"] == [
        *("python3", "-m", "controlplane.server"),
        *("--kubernetes", "--config", "/etc/triton-controlplane/system.yaml"),
    ]
    given = {each["name"]: each.get("value", "told by the kubelet") for each in container["env"]}
    told = pod_of(given)
    assert (told.release, told.instance) == ("r", RELEASE)
    assert told.port == container["ports"][0]["containerPort"]


def test_servers_without_gpus_see_none() -> None:
    found = objects(tiny(fleets=[{"name": "cpu"}, {"name": "gpu", "gpus": 1}]))
    for name, hidden in (("serving-cpu", True), ("serving-gpu", False)):
        triton = one(found, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        assert ({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in triton["env"]) is hidden


def test_memory_disk_and_gpus_come_from_the_fleet() -> None:
    fleet = {
        "name": "gpu",
        "gpus": 2,
        "gpuResource": "nvidia.com/mig-1g.10gb",
        "memory_bytes": "8Gi",
        "disk_bytes": "10Gi",
        "shmBytes": "2Gi",
    }
    pod = one(objects(tiny(fleets=[fleet])), "Deployment", "serving-gpu")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"] == {"memory": str(11 << 30), "nvidia.com/mig-1g.10gb": 2}
    assert resources["requests"]["memory"] == str(11 << 30)
    volumes = {each["name"]: each.get("emptyDir") for each in pod["volumes"]}
    assert volumes["data"] == {"sizeLimit": str(18 << 30)}
    assert volumes["shm"] == {"medium": "Memory", "sizeLimit": str(2 << 30)}


def test_the_token_is_for_the_controller_alone_and_the_server_is_not_given_it() -> None:
    found = objects(tiny())
    for name in ("serving-cpu", "serving-gateway"):
        pod = one(found, "Deployment", name)["spec"]["template"]["spec"]
        (token,) = [each["projected"]["sources"] for each in pod["volumes"] if each["name"] == "token"]
        assert token == [
            {"serviceAccountToken": {"audience": "triton-controlplane", "expirationSeconds": 3600, "path": "token"}}
        ]
        holders = [
            each["name"] for each in containers(pod) if any(mount["name"] == "token" for mount in each["volumeMounts"])
        ]
        assert holders == ["agent" if name == "serving-cpu" else "gateway"]


def test_only_inference_is_reached_from_outside() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in objects(tiny()) if each["kind"] == "NetworkPolicy"}
    assert set(policies) == {"serving-controller", "serving-gateway", "serving-fleet"}

    def rules(name: str) -> list[tuple[list[str | None], list[int]]]:
        return [
            ([_component(each) for each in rule["from"]], [port["port"] for port in rule["ports"]])
            for rule in policies[name]["ingress"]
            if "from" in rule
        ]

    (everybody,) = (rule for rule in policies["serving-gateway"]["ingress"] if "from" not in rule)
    assert {each["port"] for each in everybody["ports"]} == {8001, 8000}
    # Nobody's component is who scrapes: the pods of another namespace.
    assert rules("serving-gateway") == [([None], [8092])]
    assert rules("serving-controller") == [(["fleet", "gateway"], [8080]), ([None], [8081])]
    assert rules("serving-fleet") == [
        (["gateway"], [8001, 8000]),
        (["controller"], [8001, 8000, 8002]),
        ([None], [8002]),
    ]
    closed = objects(tiny(networkPolicy={"metricsFrom": []}))
    assert len(one(closed, "NetworkPolicy", "serving-controller")["spec"]["ingress"]) == 1
    for spec in policies.values():
        assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == RELEASE


def _component(peer: Object) -> str | None:
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    assert not labels or labels["app.kubernetes.io/instance"] == RELEASE
    assert not labels or "namespaceSelector" not in peer
    component = labels.get("app.kubernetes.io/component")
    assert component is None or isinstance(component, str)
    return component


def test_where_models_code_may_go_can_be_bounded() -> None:
    spec = one(
        objects(tiny(networkPolicy={"restrictFleetEgress": True, "fleetEgress": []})), "NetworkPolicy", "serving-fleet"
    )["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    controller, dns = spec["egress"]
    assert [_component(each) for each in controller["to"]] == ["controller"]
    assert {each["port"] for each in dns["ports"]} == {53}


def test_releases_do_not_meet() -> None:
    def names(found: list[Object]) -> set[tuple[str, str | None, str]]:
        return {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in found}

    first = names(objects(tiny()))
    assert not first & names(objects(tiny(), name="other"))
    assert not first & names(objects(tiny(), namespace="elsewhere"))


def test_a_new_configuration_restarts_who_reads_it_and_nobody_else() -> None:
    def restarted(values: dict[str, Any]) -> set[str]:
        before, after = (
            {
                each["metadata"]["name"]: each["spec"]["template"]
                for each in objects(given)
                if each["kind"] == "Deployment"
            }
            for given in (tiny(), values)
        )
        return {name for name in before if before[name] != after[name]}

    assert restarted(tiny(controller={"settings": {"warm_s": 5}})) == {"serving-controller"}
    assert restarted(tiny(gateway={"settings": {"cold_wait_s": 5}})) == {"serving-gateway"}
    assert restarted(tiny(fleets=[{"name": "cpu", "replicas": {"min": 0, "max": 3}}])) == {"serving-controller"}
    assert restarted(tiny(gateway={"replicas": 5})) == set()


def test_what_needs_apis_that_clusters_may_lack_is_left_out_by_itself() -> None:
    assert not FOREIGN & {each["kind"] for each in objects(tiny())}
    asked = objects(tiny(metrics={"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}))
    assert {each["kind"] for each in asked} & FOREIGN == {"PodMonitor", "PrometheusRule"}


def test_rules_are_those_of_the_controller() -> None:
    own = (CHART.parents[1] / "controlplane" / "metrics" / "rules.yaml").read_text()
    assert (CHART / "files" / "rules.yaml").read_text() == own
    found = objects(tiny(metrics={"scrapeConfig": True, "prometheusRule": {"enabled": True}}))
    wanted = yaml.safe_load(own)
    assert one(found, "PrometheusRule", "serving")["spec"] == wanted
    data = one(found, "ConfigMap", "serving-prometheus")["data"]
    assert yaml.safe_load(data["rules.yaml"]) == wanted
    jobs = yaml.safe_load(data["scrape.yaml"])["scrape_configs"]
    labels = [{each["target_label"] for each in job["relabel_configs"] if "target_label" in each} for job in jobs]
    assert labels == [{"replica", "fleet"}, {"pod"}]


@pytest.mark.parametrize(
    ("flavor", "annotation"),
    [
        ("nginx", {"nginx.ingress.kubernetes.io/backend-protocol": "GRPC"}),
        ("alb", {"alb.ingress.kubernetes.io/backend-protocol-version": "GRPC"}),
        ("none", {}),
    ],
)
def test_the_ingress_says_that_it_is_grpc(flavor: str, annotation: dict[str, str]) -> None:
    host = {"enabled": True, "host": "models.example.com"}
    found = objects(tiny(ingress={"flavor": flavor, "grpc": host, "http": host}, tls={"existingSecret": "certificate"}))
    grpc, http = one(found, "Ingress", "serving-grpc"), one(found, "Ingress", "serving-http")
    assert grpc["metadata"].get("annotations", {}) == annotation
    assert "annotations" not in http["metadata"]
    assert grpc["spec"]["tls"] == [{"hosts": ["models.example.com"], "secretName": "certificate"}]


def test_a_fixed_number_of_gateways_or_an_autoscaler() -> None:
    fixed, scaled = objects(tiny()), objects(tiny(gateway={"autoscaling": {"enabled": True}}))
    assert one(fixed, "Deployment", "serving-gateway")["spec"]["replicas"] == 2
    assert "replicas" not in one(scaled, "Deployment", "serving-gateway")["spec"]
    assert one(scaled, "HorizontalPodAutoscaler", "serving-gateway")["spec"]["maxReplicas"] == 10


def test_notes_name_the_next_commands() -> None:
    notes = templates(tiny(test={"model": "magika"}))["NOTES.txt"]
    commands = re.findall(r"^ {7}(\w+)", notes, flags=re.MULTILINE)
    assert commands == ["kubectl", "export", "ctl", "helm"]
    assert "s3.existingSecret is empty" in notes
    assert "s3.existingSecret" not in templates(tiny(s3={"existingSecret": "bucket"}))["NOTES.txt"]


def test_the_test_pod_asks_the_gateway() -> None:
    pod = one(objects(tiny(test={"model": "magika", "inputs": {"bytes": [[1]]}})), "Pod", "serving-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    environment = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    assert environment["GATEWAY"] == "serving-gateway:8001"
    assert json.loads(environment["INPUTS"]) == {"bytes": [[1]]}
    assert pod["spec"]["containers"][0]["args"][0].strip() == (CHART / "files" / "smoke.py").read_text().strip()
