"""What values are taken, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from helm_python import HelmError, HelmValuesError

from helm.values_table import CHART, table, values, with_table
from tests.helm.rendering import VALUES, chart, objects, read, tiny

WARNING = 2


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem)
def test_values_that_come_with_the_chart_are_accepted_and_linted(path: Path) -> None:
    given = read(path)
    chart().validate_schema(given)
    report = helm_python.lint(CHART, given, strict=True, kube_version="v1.34.0")
    assert not report["errors"]
    assert [each for each in report["messages"] if each["severity"] >= WARNING] == []


def test_little_has_to_be_said() -> None:
    chart().validate_schema(tiny())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "/registry"),
        ({"registry": "s3://models"}, "/fleets"),
        ({"registry": "./models", "fleets": [{"name": "cpu"}]}, "/registry"),
        (tiny(fleet=[]), "'fleet' not allowed"),
        (tiny(s3={"secret": "bucket"}), "'secret' not allowed"),
        (tiny(controller={"settings": {"drains_s": 1}}), "'drains_s' not allowed"),
        (tiny(gateway={"settings": {"max_heap": "1Gi"}}), "'max_heap' not allowed"),
        (tiny(gateway={"image": {"tag": 1.1}}), "/gateway/image/tag"),
        (tiny(fleets=[{"name": "cpu", "replica": 2}]), "'replica' not allowed"),
        (tiny(fleets=[{"replicas": 2}]), "'name'"),
        (tiny(fleets=[{"name": "CPU"}]), "/fleets/0/name"),
        (tiny(fleets=[{"name": "controller"}]), "/fleets/0/name"),
        (tiny(fleets=[{"name": "cpu", "memory_bytes": "4 GB"}]), "/fleets/0/memory_bytes"),
        (tiny(fleets=[{"name": "cpu", "replicas": {"min": 1}}]), "/fleets/0/replicas"),
        (tiny(fleets=[{"name": "cpu", "scaling": {"queue_ms": 1, "in_flight": 1}}]), "/fleets/0/scaling"),
        (tiny(fleets=[{"name": "cpu", "podDisruptionBudget": {"maxUnavailable": "1"}}]), "maxUnavailable"),
        (tiny(metrics={"source": "prometheus"}), "/metrics/prometheus_url"),
        (tiny(metrics={"prometheus_url": "http://prometheus"}), "/metrics/prometheus_url"),
        (tiny(ingress={"grpc": {"enabled": True}}), "/ingress/grpc/host"),
        (tiny(tls={"certManager": {"enabled": True}}), "/tls/certManager/issuerRef/name"),
    ],
    ids=str,
)
def test_mistyped_values_are_refused_with_their_place(given: dict[str, Any], told: str) -> None:
    with pytest.raises(HelmValuesError) as error:
        objects(given)
    assert told in str(error.value)


def fleet_at_night(most: int, gpus: int = 0) -> dict[str, Any]:
    window = {"begins": "22:00", "ends": "6:00", "min": 5}
    return {"name": "a", "replicas": {"max": most}, "gpus": gpus, "scaling": {"schedule": [window]}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (tiny(fleets=[{"name": "cpu"}, {"name": "cpu"}]), 'fleets[1].name: "cpu" is there twice'),
        (tiny(fleets=[{"name": "a", "default": True}, {"name": "b", "default": True}]), "a, b are all the default"),
        (tiny(fleets=[{"name": "cpu", "replicas": {"min": 2, "max": 1}}]), "fleets[0].replicas: min is more than max"),
        (tiny(fleets=[{"name": "cpu", "replicas": {"max": 0}}]), "fleets[0].replicas: min is more than max"),
        (
            tiny(
                fleets=[{"name": "a", "replicas": 2}, {"name": "b", "replicas": {"min": 2, "max": 4}}],
                controller={"settings": {"max_replicas": 3}},
            ),
            "3 replicas are less than the fleets' min needs, 4 in all",
        ),
        (
            tiny(fleets=[{"name": "a", "replicas": 2, "gpus": 2}], controller={"settings": {"max_gpus": 3}}),
            "3 GPUs are less than the fleets' min needs, 4 in all",
        ),
        (
            tiny(fleets=[{"name": "a", "replicas": {"max": 2}, "gpus": 8}], controller={"settings": {"max_gpus": 4}}),
            "fleets[0].gpus: a replica takes more than the 4 GPUs",
        ),
        (
            tiny(fleets=[fleet_at_night(9)], controller={"settings": {"max_replicas": 3}}),
            "fleets[0].scaling.schedule[0].min: 5 replicas take more than controller.settings.max_replicas, 3",
        ),
        (
            tiny(fleets=[fleet_at_night(9, gpus=2)], controller={"settings": {"max_gpus": 8}}),
            "fleets[0].scaling.schedule[0].min: 5 replicas take more than controller.settings.max_gpus, 8",
        ),
        (tiny(gateway={"autoscaling": {"enabled": True, "maxReplicas": 1}}), "minReplicas is more than maxReplicas"),
        (tiny(gateway={"resources": {"limits": {"memory": "1Gi"}}}), "gateway.settings.max_heap_bytes"),
        (tiny(gatewayApi={"grpc": {"enabled": True}}), "gatewayApi.parentRefs"),
        (tiny(tls={"certManager": {"enabled": True, "issuerRef": {"name": "a"}}}), "there is no Ingress"),
    ],
    ids=str,
)
def test_values_that_contradict_each_other_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(HelmError) as error:
        objects(given)
    assert told in str(error.value)


def test_a_release_whose_name_can_not_be_used_is_told_to_give_another() -> None:
    for name in ("1st", "a" * 41):
        with pytest.raises(HelmError, match="fullnameOverride"):
            objects(tiny(), name=name)
        objects(tiny(fullnameOverride="serving"), name=name)


def test_every_value_is_documented_and_the_table_is_current() -> None:
    source = (CHART / "values.yaml").read_text()
    assert [each.path for each in values(source) if each.text is None] == []
    readme = (CHART / "README.md").read_text()
    assert readme == with_table(readme, source), "python helm/values_table.py"
    assert "| `registry` |" in table(source)


def test_the_schema_knows_the_values_and_no_others() -> None:
    """Nulls aside, what the schema lets one say is in values.yaml, with its default."""
    schema = chart().schema
    assert schema is not None
    given = yaml.safe_load((CHART / "values.yaml").read_text())
    _same_keys(schema, given, "")


def _same_keys(schema: dict[str, Any], given: dict[str, Any], path: str) -> None:
    known = {name for name in schema["properties"] if path or name != "global"}
    assert known == set(given), path
    for name, inner in given.items():
        below = schema["properties"][name]
        if isinstance(inner, dict) and inner and "properties" in below:
            _same_keys(below, inner, f"{path}{name}.")


def test_no_object_takes_unknown_properties_but_those_that_are_kubernetes_own() -> None:
    schema = chart().schema
    assert schema is not None
    free = {path for path, each in _objects(schema, "") if each.get("additionalProperties") is not False}
    assert {path.rsplit(".", 1)[-1] for path in free} == {
        "global",
        "affinity",
        "behavior",
        "inputs",
        "podSecurityContext",
        "securityContext",
        "agentSecurityContext",
        "items",  # of lists of Kubernetes' own objects
        "limits",
        "requests",
        "texts",
    }


def _objects(schema: object, path: str) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(schema, list):
        return [found for each in schema for found in _objects(each, path)]
    if not isinstance(schema, dict):
        return []
    found = [(path, schema)] if schema.get("type") == "object" else []
    for name, inner in schema.items():
        if name in ("properties", "definitions"):
            for key, below in inner.items():
                found += _objects(below, f"{path}.{key}")
        elif name in ("items", "oneOf", "anyOf"):
            found += _objects(inner, f"{path}.{name}")
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"max_replicas": 5}, {"max_gpus": 5}, {"max_replicas": None, "max_gpus": 9}], ids=str
)
def test_a_schedule_needs_no_budget(settings: dict[str, Any]) -> None:
    assert objects(tiny(fleets=[fleet_at_night(9, gpus=1)], controller={"settings": settings}))
