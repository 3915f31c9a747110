"""`ctl --context` on a real API server, without a node: up to where a pod's port is forwarded."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from controlplane.cli.checks.rights import of_person
from controlplane.cli.cluster.api import Api
from controlplane.cli.cluster.bridge import Bridge
from controlplane.cli.cluster.release import ADDRESS, AUDIENCE, Leader, Release, find_release
from controlplane.cli.cluster.tunnel import open_tunnel
from controlplane.cli.main import main
from controlplane.client.access import Access
from controlplane.client.reader import Reader
from controlplane.core.errors import InvalidInput, NotFound, NotLeader, Unauthenticated, Unavailable
from controlplane.server import identity_tokens, leases
from tests.cli.conftest import Answer
from tests.kubernetes.candidates import Candidate, permissions
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.using_ctl import (
    Ctl,
    alone,
    api,
    bind,
    ctl,
    install,
    lease,
    looked,
    may,
    person,
    states,
    told,
)
from tests.waiting import until

__all__ = ["alone", "api", "ctl", "install", "looked"]

# Which release.


def test_the_only_release_is_found_and_several_are_listed(api: Api, ctl: Ctl, install: Callable[..., None]) -> None:
    with pytest.raises(NotFound, match=f"no release in namespace {api.namespace}"):
        find_release(api, None)
    install("serving")
    assert find_release(api, None).name == "serving"
    install("other")
    with pytest.raises(InvalidInput, match=r"several releases .* other, serving"):
        find_release(api, None)
    answer = ctl("get", "models")
    assert answer.status == 2
    assert "--release" in answer.err and "other, serving" in answer.err
    assert find_release(api, "other").name == "other"
    answer = ctl("get", "fleets", "--release=wrong")
    assert answer.status == 1
    assert "there is no release wrong" in answer.err and "there are: other, serving" in answer.err


def test_the_registry_is_the_releases_unless_another_is_named(
    api: Api, ctl: Ctl, install: Callable[..., None], tmp_path: Path
) -> None:
    install()
    assert find_release(api, None).registry() == "s3://registry/fleet"
    answer = ctl("get", "models", "-o", "json", f"--registry={tmp_path / 'registry'}")
    assert (answer.status, answer.data) == (0, [])


def test_environment_variables_name_the_release(
    api_server: ControlPlane,
    namespace: str,
    install: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("serving")
    install("other")
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    monkeypatch.setenv("CTL_CONTEXT", "test")
    monkeypatch.setenv("CTL_NAMESPACE", namespace)
    monkeypatch.setenv("CTL_RELEASE", "other")
    command = [sys.executable, "-m", "controlplane.cli.main", "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"release other in namespace {namespace}" in done.stderr


def test_wrong_ways_there_are_told(api_server: ControlPlane, ctl: Ctl, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ctl("--context=nowhere", "status")
    assert answer.status == 2
    assert "no context 'nowhere'" in answer.err and "there are: test" in answer.err
    answer = ctl("status", kubeconfig=Path("missing.kubeconfig"))
    assert answer.status == 2
    assert "missing.kubeconfig" in answer.err
    for text in ("", "clusters: [", "clusters: 5\ncontexts: [{name: test}]\ncurrent-context: test", "[]"):
        file = Path("broken.kubeconfig")
        file.write_text(text)
        answer = ctl("status", kubeconfig=file)
        assert answer.status == 2, text
        assert "error[INVALID]" in answer.err and "→" in answer.err
    ways = (("up", "helm install"), ("down", "helm uninstall"), ("reload --file=x", "helm upgrade"))
    for command, way_out in ways:
        answer = ctl(*command.split())
        assert answer.status == 2
        assert way_out in answer.err
    capsys.readouterr()
    assert main(["--namespace=somewhere", "status"]) == 2
    assert "--context NAME" in capsys.readouterr().err
    assert main(["status", "--release=serving"]) == 2
    assert "--context NAME" in capsys.readouterr().err
    assert main(["--home=here", "status", "--context=test"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_a_home_that_is_named_comes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CTL_CONTEXT", "somewhere")
    monkeypatch.setenv("CTL_NAMESPACE", "models")
    for arguments in (["--home=here", "status"], ["status", "--home=here"]):
        assert main(arguments) == 1
        assert "there is no home" in capsys.readouterr().err
    monkeypatch.delenv("CTL_CONTEXT")
    assert main(["status"]) == 1
    assert "there is no home" in capsys.readouterr().err, "a namespace alone names no cluster"


# The leader, and a token for it.


def test_the_leader_is_the_lease_holders_pod(
    api: Api, api_server: ControlPlane, namespace: str, install: Callable[..., None], ctl: Ctl
) -> None:
    install()
    release = Release(api, "serving")
    with pytest.raises(Unavailable, match="no controller has led yet"):
        release.leader()
    answer = ctl("status")
    assert answer.status == 1
    assert "no controller of release serving" in answer.err and "leads at present" in answer.err
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, "serving-controller-7d4-x2_a1b2c3"))
    assert release.leader() == Leader("serving-controller-7d4-x2", 8080)
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, "odd_name_1", "http://10.0.0.1:9000"))
    assert release.leader() == Leader("odd_name", 9000)
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, ""))
    with pytest.raises(Unavailable, match="leads at present"):
        release.leader()


def test_words_that_controllers_use_too() -> None:
    assert (ADDRESS, AUDIENCE) == (leases.ADDRESS, identity_tokens.AUDIENCE)


@pytest.fixture
def candidate(tmp_path: Path, api_server: ControlPlane, namespace: str) -> Iterator[Candidate]:
    """A real controller, in a process."""
    made = Candidate(tmp_path, "first", namespace, permissions(api_server, namespace))
    until(lambda: made.leads, what="it does not lead")
    yield made
    made.end()


def test_a_token_is_good_for_reading_and_never_shown(
    api: Api, install: Callable[..., None], candidate: Candidate
) -> None:
    install()
    token = Release(api, "serving").token()
    assert 540 < token.until - time.monotonic() <= 600
    assert token.value not in repr(token)
    with Reader(Access(url=candidate.url, token=token.value)) as reader:
        assert reader.get("/v1/status")["epoch"] == 1


def test_a_token_is_not_taken_to_where_a_standby_points(
    api: Api, api_server: ControlPlane, namespace: str, install: Callable[..., None], candidate: Candidate
) -> None:
    install()
    standby = Candidate(candidate.log.parent, "second", namespace, permissions(api_server, namespace))
    try:
        until(lambda: standby.get("/readyz").status_code == 200, what="the second does not get ready")
        access = Access(url=standby.url, token=Release(api, "serving").token().value)
        with Reader(access) as reader:
            assert reader.get("/v1/status")["epoch"] == 1
        with Reader(access, follows=False) as reader, pytest.raises(NotLeader):
            reader.get("/v1/status")
    finally:
        standby.end()


# Rights.


def test_a_missing_right_is_named(
    api_server: ControlPlane, namespace: str, ctl: Ctl, install: Callable[..., None]
) -> None:
    install()
    nobody = person(api_server, namespace)
    answer = ctl("status", kubeconfig=nobody)
    assert answer.status == 4
    assert 'cannot list resource "deployments"' in answer.err and "ctl.subjects" in answer.err
    answer = ctl("--release=serving", "status", kubeconfig=nobody)
    assert answer.status == 4
    assert 'cannot get resource "leases"' in answer.err
    answer = ctl("--release=serving", "get", "models", kubeconfig=nobody)
    assert answer.status == 4
    assert 'cannot get resource "configmaps"' in answer.err
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, "serving-controller-0_x"))
    api_server.kubectl("create", "role", "half", "--verb=get", "--resource=leases", f"--namespace={namespace}")
    bind(api_server, namespace, "half")
    until(lambda: may(api_server, namespace, "get", "leases", group="coordination.k8s.io"))
    answer = ctl("--release=serving", "status", kubeconfig=nobody)
    assert answer.status == 4
    assert 'cannot create resource "serviceaccounts/token"' in answer.err


def test_these_rights_are_enough(
    api_server: ControlPlane, namespace: str, install: Callable[..., None], looked: Callable[..., Answer]
) -> None:
    install()
    somebody = person(api_server, namespace)
    rules = [
        {
            "apiGroups": [right.group],
            "resources": [right.resource],
            "verbs": [right.verb],
            **({"resourceNames": [right.name]} if right.name else {}),
        }
        for right in of_person("serving")
        if not right.everywhere
    ]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "all"}, "rules": rules}
    api_server.kubectl("apply", f"--namespace={namespace}", "--filename=-", given=json.dumps(role))
    bind(api_server, namespace, "all")
    until(lambda: may(api_server, namespace, "list", "deployments", group="apps"))
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, "serving-controller-gone_x"))
    answer = looked(kubeconfig=somebody)
    assert states(answer, "your rights") == ["warning"]
    assert "list nodes" in told(answer, "your rights")
    assert "pod serving-controller-gone is gone" in told(answer, "controller"), "nothing else is in the way"


def test_wrong_credentials_are_told(ctl: Ctl, api_server: ControlPlane, tmp_path: Path) -> None:
    made = yaml.safe_load(api_server.kubeconfig.read_text())
    made["users"][0]["user"] = {"token": "nonsense"}
    file = tmp_path / "wrong.kubeconfig"
    file.write_text(yaml.safe_dump(made))
    answer = ctl("status", kubeconfig=file)
    assert answer.status == 4
    assert "valid credentials" in answer.err


def test_an_api_server_that_is_away(ctl: Ctl, api_server: ControlPlane, looked: Callable[..., Answer]) -> None:
    api_server.kill()
    try:
        answer = ctl("--release=serving", "status")
        assert answer.status == 1
        assert "the Kubernetes API server can't be reached" in answer.err
        answer = looked("--release=serving")
        assert answer.status == 1
        assert [(each["check"], each["state"]) for each in answer.data] == [("api", "problem")]
    finally:
        api_server.start()


# The way to a pod, as far as it goes without a node.


def test_forwarding_to_pods_that_are_not_there(
    api: Api, api_server: ControlPlane, namespace: str, install: Callable[..., None], ctl: Ctl
) -> None:
    install()
    with pytest.raises(Unavailable, match="pod missing is gone"):
        open_tunnel(api, "missing", 8080)
    selector = "--selector=app.kubernetes.io/component=controller"
    until(lambda: api_server.get("pods", selector, f"--namespace={namespace}")["items"])
    (pod, *_) = api_server.get("pods", selector, f"--namespace={namespace}")["items"]
    with pytest.raises(InvalidInput, match="does not have a host assigned"):
        open_tunnel(api, pod["metadata"]["name"], 8080)
    api_server.kubectl("apply", "--filename=-", given=lease(namespace, "serving-controller-gone_x"))
    answer = ctl("get", "replicas")
    assert answer.status == 1
    assert "pod serving-controller-gone is gone" in answer.err
    assert "127.0.0.1" not in answer.err, "people are told of pods, not of what leads there"
    stranger = Api(kubeconfig=person(api_server, namespace), context="test", namespace=namespace)
    with pytest.raises(Unauthenticated, match=r'cannot .* resource "pods/portforward"'):
        open_tunnel(stranger, "missing", 8080)
    answer = ctl("infer", "doubler", "--input=[1]")
    assert answer.status == 1
    assert "no gateway of release serving" in answer.err


class Direct:
    """A tunnel that is no more than a connection: what is behind the bridge is the same."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)

    def fileno(self) -> int:
        return self.socket.fileno()

    def pending(self) -> bool:
        return False

    def receive(self) -> bytes | None:
        return self.socket.recv(1 << 16) or None

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def close(self) -> None:
        self.socket.close()


def test_a_controller_behind_a_bridge(api: Api, install: Callable[..., None], candidate: Candidate) -> None:
    install()
    port = int(candidate.url.rpartition(":")[2])
    token = Release(api, "serving").token().value
    with Bridge(lambda: Direct(port)) as bridge:
        access = Access(url=f"http://{bridge.address}", token=token)
        answers: list[int] = []

        def ask() -> None:
            with Reader(access) as reader:
                answers.extend(reader.get("/v1/status")["epoch"] for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == [1] * 100
        until(lambda: not bridge._connections, what="connections stay behind")
        left_open = Reader(access)
        assert left_open.get("/v1/status")["epoch"] == 1
    with pytest.raises(Unavailable):
        left_open.get("/v1/status")
    assert not [each for each in threading.enumerate() if each.name in ("bridge", "bridged")]


# Doctor.
