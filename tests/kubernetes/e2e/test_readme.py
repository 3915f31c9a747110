"""The README's way from a cluster to a first answer, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
import yaml

from examples.models import prepare
from tests.following import ROOT, follow
from tests.kubernetes.cluster import ADDRESS, Cluster
from tests.registry.servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, versitygw

TRITON = "nvcr.io/nvidia/tritonserver:24.10-py3"
NAMESPACE = "models"
CONTROLLER, GATEWAY = "10.96.7.9", "10.96.7.10"
"""Not those of other tests' release: a namespace that is deleted keeps its services' addresses for a while."""
HELM = f'#!/bin/sh\nexec "{sys.executable}" -m tests.kubernetes.e2e.helm "$@"\n'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[S3Server]:
    with versitygw(tmp_path / "s3", ADDRESS) as server:
        yield server


@pytest.fixture
def emptied(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.api.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


@pytest.mark.usefixtures("emptied")
def test_the_readmes_commands(cluster: Cluster, images: dict[str, str], store: S3Server, tmp_path: Path) -> None:
    chapter = (ROOT / "README.md").read_text().split("## On Kubernetes\n")[1].split("\n## ")[0]
    build, values, commands = chapter.split("```")[1::2]
    assert "docker build" in build and "docker push" in build  # what buildah has done, from the same files
    for name in ("agent", "controller", "gateway"):
        cluster.tag_image(images[name], f"registry.example/triton-controlplane/{name}:0.1.0")
    cluster.tag_image(images["triton"], TRITON)
    # What is not the user's to choose here: there are no names for services, and the store is not AWS.
    written = values.removeprefix("yaml\n") + yaml.safe_dump(
        {
            "controllerHostAlias": CONTROLLER,
            "controller": {"service": {"clusterIP": CONTROLLER}},
            "gateway": {"service": {"clusterIP": GATEWAY}},
        }
    )
    for old, new in {
        "s3://my-bucket": f"s3://{BUCKET}",
        "existingSecret: bucket": f"existingSecret: bucket, region: us-east-1, endpoint: {store.endpoint}",
    }.items():
        assert old in written
        written = written.replace(old, new)
    (tmp_path / "values.yaml").write_text(written)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "helm").write_text(HELM)
    (programs / "helm").chmod(0o755)
    (programs / "kubectl").symlink_to(cluster.api.programs["kubectl"])
    said = follow(
        commands,
        {
            "AWS_ACCESS_KEY_ID=…": f"AWS_ACCESS_KEY_ID={ACCESS_KEY}",
            "AWS_SECRET_ACCESS_KEY=…": f"AWS_SECRET_ACCESS_KEY={SECRET_KEY}",
            "values.yaml": str(tmp_path / "values.yaml"),
            "/tmp/models/magika": str(prepare("magika", tmp_path)),
            "CTL_CONTEXT=my-cluster": "CTL_CONTEXT=test",
        },
        programs=programs,
        environment={**store.environment, "KUBECONFIG": str(cluster.api.kubeconfig)},
        timeout_s=600,
    )
    assert "markdown" in said
    with triton.InferenceServerClient(f"{GATEWAY}:8001") as client:
        assert client.is_model_ready("magika")
