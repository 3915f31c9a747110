"""The API server that the tests below here use is a real one, and nothing is left of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.local import processes
from tests.kubernetes.control_plane import ControlPlane
from tests.waiting import until

AUDIENCE = "some-audience"

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: somebody}
spec: {containers: [{name: main, image: nobody-pulls-this}]}
"""


def _review(api_server: ControlPlane, token: str, audience: str) -> dict[str, object]:
    asked = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }
    answer = api_server.kubectl("create", "--output=json", "--filename=-", given=json.dumps(asked))
    status: dict[str, object] = json.loads(answer)["status"]
    return status


def test_tokens_for_an_audience_name_their_account_and_pod(api_server: ControlPlane, namespace: str) -> None:
    api_server.kubectl("apply", f"--namespace={namespace}", "--filename=-", given=POD)
    token = api_server.token(namespace, "default", audience=AUDIENCE, pod="somebody")
    status = _review(api_server, token, AUDIENCE)
    assert status["authenticated"]
    assert status["audiences"] == [AUDIENCE]
    user = status["user"]
    assert isinstance(user, dict)
    assert user["username"] == f"system:serviceaccount:{namespace}:default"
    assert user["extra"]["authentication.kubernetes.io/pod-name"] == ["somebody"]
    assert not _review(api_server, token, "another").get("authenticated")


def test_what_an_account_may_not_do_is_refused(api_server: ControlPlane, namespace: str) -> None:
    config = api_server.kubeconfig_of(namespace, "default")
    command = [str(api_server.programs["kubectl"]), f"--kubeconfig={config}", f"--namespace={namespace}", "get", "pods"]
    denied = subprocess.run(command, capture_output=True, text=True, check=False, env=api_server.environment)
    assert "Forbidden" in denied.stderr
    api_server.kubectl(
        "create", "rolebinding", "reader", f"--namespace={namespace}", "--clusterrole=view",
        f"--serviceaccount={namespace}:default",
    )  # fmt: skip
    until(
        lambda: subprocess.run(command, capture_output=True, check=False, env=api_server.environment).returncode == 0,
        what="the role does not take effect",
    )


def test_controllers_act(api_server: ControlPlane, namespace: str) -> None:
    api_server.kubectl("create", "deployment", "some", f"--namespace={namespace}", "--image=x", "--replicas=2")
    until(lambda: len(api_server.get("pods", f"--namespace={namespace}")["items"]) == 2, what="no pods are made")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_it_comes_back_with_all_it_knew(api_server: ControlPlane, namespace: str, end: str) -> None:
    getattr(api_server, end)()
    with pytest.raises(AssertionError, match="refused"):
        api_server.get("namespace", namespace)
    api_server.start()
    assert api_server.get("namespace", namespace)["metadata"]["name"] == namespace


def test_nothing_is_left_of_one_whose_test_was_killed(tmp_path: Path) -> None:
    text = (
        "import pathlib, sys\n"
        "from tests.kubernetes.control_plane import ControlPlane, running\n"
        "with running(ControlPlane(pathlib.Path(sys.argv[1]))):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(list(processes.of_home(tmp_path))) == 3
        process.kill()
    until(lambda: not list(processes.of_home(tmp_path)), what="something is left")
