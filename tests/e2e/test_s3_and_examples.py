"""A registry in S3, and the plainest example, as their users run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from examples.file_types import best, features, labels_of
from tests.e2e.system import ROOT, System, eventually
from tests.following import follow
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
        done = system.ctl("up", "-d", "-f", "system.yaml", "--timeout", "120")
        assert done.status == 2, done.err
        assert said in done.err
        assert "Traceback" not in done.err
    finally:
        system.down()


def commands(readme: str) -> list[str]:
    """The lines in the code blocks of a README, as they stand there."""
    blocks = (ROOT / readme).read_text().split("```")[1::2]
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.timeout(900)  # more than the commands alone may take
def test_the_single_replica_example(tmp_path: Path) -> None:
    system = System(tmp_path / "single")
    system.folder.mkdir()
    definition = (ROOT / "examples" / "single-replica" / "system.yaml").read_text()
    (system.folder / "system.yaml").write_text(definition + "\ngateway: {grpc_port: 0, http_port: 0}\n")
    *lines, last = commands("examples/single-replica/README.md")
    assert last == "ctl down"
    try:
        said = follow(
            "\n".join(lines),
            {
                ".ctl-single": str(system.home.root),
                "examples/single-replica/system.yaml": str(system.folder / "system.yaml"),
                "/tmp/models": str(tmp_path / "models"),
            },
        )
        assert "magika@1 is stable" in said
        assert "markdown" in said
        logged = json.loads(next(line for line in said.splitlines() if line.startswith("{") and "ModelInfer" in line))
        assert float(logged["duration_ms"]) >= 0
        assert (logged["model"], logged["version"], logged["replica"]) == ("magika", "1", "cpu-0")
        config = system.ok("render", "magika@1").out
        assert "dynamic_batching" not in config and "count: 1" in config
        labels = labels_of(tmp_path / "models" / "single-replica" / "labels.txt")
        with system.client() as client:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("magika")
            for name in ("README.md", "Makefile", "controlplane/core/plan.py"):
                given = triton_grpc.InferInput("bytes", [1, 2048], "INT32")
                given.set_data_from_numpy(features((ROOT / name).read_bytes())[None, :])
                scores = client.infer("magika", [given]).as_numpy("target_label")
                label, _ = best(np.asarray(scores)[0], labels)
                assert label == {"README.md": "markdown", "Makefile": "makefile"}.get(name, "python")
        with triton_http.InferenceServerClient(system.http) as http:
            assert http.is_server_live() and http.is_server_ready()
        # The server starts anew: the model is loaded at its start, without anybody asking.
        system.down()
        system.up()
        eventually(lambda: system.holders("magika", 1) == {"cpu-0"})
    finally:
        system.down()


@pytest.mark.timeout(900)
def test_speech_and_ocr_as_the_readme_says(tmp_path: Path) -> None:
    system = System(tmp_path / "examples")
    system.folder.mkdir()
    (system.folder / "system.yaml").write_text("gateway: {grpc_port: 0, http_port: 0}\n")
    lines = commands("examples/README.md")
    try:
        said = follow(
            "\n".join(lines[:-1]),
            {
                "/tmp/": f"{tmp_path}/",
                ".ctl-examples": str(system.home.root),
                "ctl up -d": f"ctl up -d -f {system.folder / 'system.yaml'}",
            },
        )
        heard = [line.split() for line in said.splitlines() if re.fullmatch(r"( +\d+\.\d\d){3}", line)]
        assert max(float(voice) for _, voice, _ in heard) > 0.8, said
        assert float(heard[-1][1]) < 0.1 and float(heard[-1][2]) < 0.1, "a pause, and a hum, are no speech"
        assert "step ocr-recognition is pinned to ocr-recognition@1, which is stable" in said
        assert "text BYTES [1, 1]: [['HELLO 12']]" in said
        for replica in system.holders("ocr-line", 1):
            assert replica in system.holders("ocr-recognition", 1), "its steps are beside it"
        assert system.ctl("delete", "ocr-recognition@1").status == 5, "a step of what is there"
        assert lines[-1] == "ctl down"
    finally:
        system.down()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "without any, all of them"),
        ([], 2, "required: DIR"),
        (["DIR", "nosuch"], 2, "there is no example nosuch; there are: magika,"),
    ],
    ids=["help", "nothing", "unknown"],
)
def test_preparing_examples_explains_itself(tmp_path: Path, arguments: list[str], status: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.models", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert says in " ".join((done.stdout + done.stderr).split())
    assert list(tmp_path.iterdir()) == []
