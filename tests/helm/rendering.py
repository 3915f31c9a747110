"""The chart, rendered by Helm's own engine without a cluster.

`python -m tests.helm.rendering` writes the golden manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

CHART = Path(__file__).parents[2] / "helm" / "triton-controlplane"
GOLDEN = Path(__file__).parent / "golden"
VALUES = sorted([*CHART.glob("ci/*.yaml"), *CHART.glob("examples/*.yaml")])
RELEASE, NAMESPACE = "serving", "models"
Object = dict[str, Any]


@cache
def chart() -> Chart:
    """The chart as it is on the disk."""
    return Chart.load(CHART)


def read(path: Path) -> dict[str, Any]:
    """A file of values."""
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    return values


def tiny(**more: Any) -> dict[str, Any]:
    """The values that must be given, and `more`."""
    return {"registry": "s3://models", "fleets": [{"name": "cpu"}], **more}


def templates(
    values: Mapping[str, Any], *, name: str = RELEASE, namespace: str = NAMESPACE, upgrade: bool = False
) -> dict[str, str]:
    """What each template renders. Raises HelmError."""
    rendered = chart().render(dict(values), name=name, namespace=namespace, is_install=not upgrade, is_upgrade=upgrade)
    prefix = f"{chart().name}/templates/"
    return {path.removeprefix(prefix): text for path, text in sorted(rendered.items()) if text.strip()}


def objects(values: Mapping[str, Any], *, name: str = RELEASE, namespace: str = NAMESPACE) -> list[Object]:
    """Every object that is installed, and the test's pod. Raises HelmError."""
    return [
        each
        for path, text in templates(values, name=name, namespace=namespace).items()
        if path.endswith(".yaml")
        for each in yaml.safe_load_all(text)
        if each is not None
    ]


def one(found: list[Object], kind: str, name: str) -> Object:
    """The object of this kind and name."""
    (only,) = [each for each in found if each["kind"] == kind and each["metadata"]["name"] == name]
    return only


def pods(found: list[Object]) -> Iterator[tuple[str, Object]]:
    """The specification of every pod, with the name of what makes it."""
    for each in found:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]
        elif each["kind"] == "Deployment":
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    """A pod's containers, sidecars too."""
    return [*pod.get("initContainers", ()), *pod["containers"]]


def manifest(values: Mapping[str, Any]) -> str:
    """Everything as text, each template under its name, without blank lines."""
    parts = []
    for path, text in templates(values).items():
        lines = [line.rstrip() for line in text.splitlines()]
        lines = [line for line in lines if line]
        if lines[0] == "---":
            lines = lines[1:]
        parts.append("\n".join([f"--- # {path}", *lines]))
    return "\n".join(parts) + "\n"


def golden_file(path: Path) -> Path:
    """Where the manifest of a file of values is kept."""
    return GOLDEN / f"{path.parent.name}-{path.name}"


def main() -> None:
    """Write the golden manifests anew."""
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for path in VALUES:
        golden_file(path).write_text(manifest(read(path)))


if __name__ == "__main__":
    main()
