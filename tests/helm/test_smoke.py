"""What `helm test` runs, on a real Triton server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from controlplane.local.processes import free_ports
from tests.gateway.triton import Triton
from tests.helm.rendering import objects, one, tiny


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Triton("smoke", tmp_path_factory.mktemp("triton"), ("echo",))
    try:
        server.wait()
        yield f"127.0.0.1:{server.grpc_port}"
    finally:
        server.stop()


def helm_test(address: str, **test: object) -> subprocess.CompletedProcess[str]:
    """Run the container's command with its environment, but for where the gateway is."""
    (container,) = one(objects(tiny(test=test)), "Pod", "serving-test")["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    return subprocess.run(
        [sys.executable, *container["command"][1:], *container["args"]],
        env={**os.environ, **given, "GATEWAY": address},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_without_a_model_it_sees_that_the_server_answers(address: str) -> None:
    ran = helm_test(address)
    assert ran.returncode == 0, ran.stderr
    assert "is live and ready" in ran.stdout


def test_a_model_is_asked_with_what_was_given_or_zeros(address: str) -> None:
    zeros = helm_test(address, model="echo")
    assert zeros.returncode == 0, zeros.stderr
    assert "answered through" in zeros.stdout
    assert "OUT [1]" in zeros.stdout
    given = helm_test(address, model="echo", inputs={"IN": [1, 2, 3]})
    assert "OUT [3]" in given.stdout


def test_what_fails_is_said(address: str) -> None:
    nobody = helm_test(address, model="nobody", timeoutSeconds=1)
    assert nobody.returncode == 1
    assert "nobody" in nobody.stderr
    wrong = helm_test(address, model="echo", inputs={"bytes": [1]})
    assert wrong.returncode == 1
    assert "['bytes']" in wrong.stderr
    (port,) = free_ports(1)
    away = helm_test(f"127.0.0.1:{port}", timeoutSeconds=1)
    assert away.returncode == 1
    assert json.dumps(port) in away.stderr
