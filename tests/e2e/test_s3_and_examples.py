"""A registry in S3, and the plainest example, as their users run them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from examples import models
from examples.drawing import image
from examples.file_types import best, features, labels_of
from tests.e2e.system import ROOT, System, eventually
from tests.registry.servers import BUCKET, S3Server, moto


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto() as server:
        yield server


def test_a_system_on_s3(tmp_path: Path, s3: S3Server) -> None:
    system = System(
        tmp_path / "s3", f"registry: s3://{BUCKET}/prod\nfleets: [{{name: cpu}}]", environment=dict(s3.environment)
    )
    try:
        system.up()
        system.serve("cloudy", factor=2)
        assert system.ask("cloudy") == (6.0, "1")
        secrets = {value for name, value in s3.environment.items() if "SECRET" in name}
        for server in system.processes("tritonserver") + system.processes("controlplane.agent"):
            line = " ".join(server.cmdline())
            assert not any(secret in line for secret in secrets)
        for server in system.processes("tritonserver"):
            assert not any(name.startswith("AWS_") for name in server.environ())
    finally:
        system.down()


@pytest.mark.parametrize(
    ("registry", "said"),
    [
        pytest.param("s3://not-there/prod", "not-there", id="a bucket that is not there"),
        pytest.param("s3://x/prod", "x", id="a name that no bucket can have"),
        pytest.param("ftp://host/prod", "ftp", id="another kind of address"),
    ],
)
def test_a_registry_that_can_not_be_used_is_told(tmp_path: Path, s3: S3Server, registry: str, said: str) -> None:
    system = System(tmp_path, f"registry: {registry}", environment=dict(s3.environment))
    (tmp_path / "system.yaml").write_text(system.definition + "\ngateway: {grpc_port: 0, http_port: 0}\n")
    try:
        done = system.ctl("up", "-d", "-f", "system.yaml", "--timeout", "30")
        assert done.status == 2, done.err
        assert said in done.err
        assert "Traceback" not in done.err
    finally:
        system.down()


def test_the_single_replica_example(tmp_path: Path) -> None:
    system = System(tmp_path / "single")
    system.folder.mkdir()
    definition = (ROOT / "examples" / "single-replica" / "system.yaml").read_text()
    (system.folder / "system.yaml").write_text(definition + "\ngateway: {grpc_port: 0, http_port: 0}\n")
    folder = models.prepare("single-replica", tmp_path / "models")
    try:
        system.up()
        system.ok("register", "magika", str(folder))
        system.ok("promote", "magika", "1")
        config = system.ok("render", "magika@1").out
        assert "dynamic_batching" not in config and "count: 1" in config
        with system.client() as client:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("magika")
            for name in ("README.md", "Makefile", "controlplane/core/plan.py"):
                given = triton_grpc.InferInput("bytes", [1, 2048], "INT32")
                given.set_data_from_numpy(features((ROOT / name).read_bytes())[None, :])
                scores = client.infer("magika", [given]).as_numpy("target_label")
                label, _ = best(np.asarray(scores)[0], labels_of(folder / "labels.txt"))
                assert label == {"README.md": "markdown", "Makefile": "makefile"}.get(name, "python")
        with triton_http.InferenceServerClient(system.http) as http:
            assert http.is_server_live() and http.is_server_ready()
        line = eventually(
            lambda: next((each for each in access_log(system) if "ModelInfer" in str(each)), None),
            what="no request in the access log",
        )
        assert float(line["duration_ms"]) >= 0
        assert (line["version"], line["replica"]) == ("1", "cpu-0")
        system.ok("infer", "magika", "--input", f"bytes=@{ROOT / 'README.md'}")
        # The server starts anew: the model is loaded at its start, without anybody asking.
        system.down()
        system.up()
        eventually(lambda: system.holders("magika", 1) == {"cpu-0"})
    finally:
        system.down()


def test_an_ensemble_reads_a_line_of_text(tmp_path: Path) -> None:
    system = System(tmp_path / "ocr", "fleets: [{name: cpu, replicas: 2, memory_bytes: 2Gi}]")
    try:
        system.up()
        for name in ("ocr-recognition", "ocr-line-image", "ocr-line-text", "ocr-line"):
            system.ok("register", name, str(models.prepare(name, tmp_path / "models")))
            system.ok("promote", name, "1")
        with system.client() as client:
            pixels = image("HELLO 12")[None]
            given = triton_grpc.InferInput("image", list(pixels.shape), "UINT8")
            given.set_data_from_numpy(pixels)
            read = client.infer("ocr-line", [given], client_timeout=60).as_numpy("text")
        assert read.tolist() == [[b"HELLO 12"]]
        for replica in system.holders("ocr-line", 1):
            assert replica in system.holders("ocr-recognition", 1), "its steps are beside it"
        refused = system.ctl("delete", "ocr-recognition@1")
        assert refused.status == 5
    finally:
        system.down()


def access_log(system: System) -> list[dict[str, str]]:
    file = system.home.gateway / "access.log"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
