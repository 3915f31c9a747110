"""`ctl --context` on a real cluster: what needs a pod that runs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import tritonclient.grpc as triton

from controlplane.cli.cluster.api import Api
from controlplane.cli.cluster.bridge import Bridge
from controlplane.cli.cluster.reading import LeaderReader, open_gateway
from controlplane.cli.cluster.release import Release
from controlplane.cli.cluster.tunnel import open_tunnel
from controlplane.core.errors import Unavailable
from tests.e2e.system import infer, write_doubler
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.e2e.release import MODEL, RELEASE, Installed, installed, model
from tests.waiting import until

__all__ = ["installed", "model"]

SERVER = """\
import hashlib, http.server, socketserver

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(b"x" * int(self.path[1:]))
    def do_POST(self):
        digest = hashlib.sha256(self.rfile.read(int(self.headers["content-length"])))
        self.answer(digest.hexdigest().encode())

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    request_queue_size = 128
    daemon_threads = True

Server(("", 8000), Handler).serve_forever()
"""


@pytest.fixture
def release(installed: Installed) -> Release:
    api = Api(kubeconfig=installed.cluster.api.kubeconfig, context="test", namespace=installed.namespace)
    return Release(api, RELEASE)


def test_the_same_verbs_as_locally(installed: Installed, model: Path, tmp_path: Path) -> None:
    status = json.loads(installed.by_context("status", "-o", "json"))
    assert (status["release"], status["registry"]) == (RELEASE, installed.environment["CTL_REGISTRY"])
    assert len(json.loads(installed.by_context("get", "replicas", "-o", "json"))) == 1
    assert [each["name"] for each in json.loads(installed.by_context("get", "fleets", "-o", "json"))] == ["cpu"]
    assert "fleet cpu has" in installed.by_context("explain", "fleet", "cpu")
    assert json.loads(installed.by_context("top", "--once", "-o", "json"))["fleets"]
    (output,) = json.loads(installed.by_context("infer", MODEL, "--input=[[3]]", "-o", "json"))["outputs"]
    assert output["data"] == [[6.0]]
    installed.by_context("register", MODEL, str(write_doubler(tmp_path, 5)))
    installed.by_context("promote", MODEL, "2")
    assert "[[15.0]]" in installed.by_context("infer", MODEL, "--input=[[3]]")
    installed.by_context("rollback", MODEL)


def test_doctor_finds_nothing_wrong(installed: Installed, model: Path) -> None:
    # Where nobody answers a lookup takes a while.
    until(lambda: len(json.loads(installed.by_context("status", "-o", "json"))["names"]) == 2, timeout_s=120)
    found = json.loads(installed.by_context("doctor", "--write", "-o", "json"))
    assert {each["check"] for each in found if each["state"] != "ok"} == {"dns"}, found
    told = [each for each in found if each["check"] == "dns"]  # there is none; agents and gateways have an address
    assert {each["state"] for each in told} == {"warning"}, told
    assert any(f"{RELEASE}-controller.{installed.namespace} is not known" in each["what"] for each in told)
    assert all("controllerHostAlias" in each["what"] for each in told)


def test_reading_goes_on_when_the_leader_goes(installed: Installed, release: Release) -> None:
    with LeaderReader(release) as reader:
        before = reader.get("/v1/status")["epoch"]
        pod = release.leader().pod
        installed.kubectl("delete", "pod", pod, "--wait=false")

        def another() -> bool:
            try:
                return bool(reader.get("/v1/status")["epoch"] > before)
            except Unavailable as error:
                assert "leads at present" in error.what or "gone" in error.what or "does not answer" in error.what
                return False

        until(another, timeout_s=30, what="no other leader is found")
        assert release.leader().pod != pod
    installed.kubectl("rollout", "status", f"deployment/{RELEASE}-controller", "--timeout=120s")


def test_inference_goes_on_when_the_gateway_goes(installed: Installed, release: Release, model: Path) -> None:
    with open_gateway(release) as gateway, triton.InferenceServerClient(gateway.address) as client:
        assert infer(client, MODEL, 3.0)[0] == 6.0
        installed.kubectl("delete", "pod", release.gateway())  # returns when it has ended
        installed.kubectl("rollout", "status", f"deployment/{RELEASE}-gateway", "--timeout=120s")

        def answered() -> bool:
            try:
                return infer(client, MODEL, 3.0)[0] == 6.0
            except triton.InferenceServerException:
                return False

        until(answered, timeout_s=60, every_s=0.5, what="the other gateway is not found")


@pytest.fixture
def server(cluster: Cluster, namespace: str, images: dict[str, str]) -> Iterator[Api]:
    """The namespace of a pod `server`."""
    container = {"name": "main", "image": images["agent"], "command": ["python3", "-c", SERVER]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "server"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
    }
    cluster.api.kubectl("apply", f"--namespace={namespace}", "--filename=-", given=json.dumps(pod))
    cluster.api.kubectl("wait", "--for=condition=Ready", "pod/server", f"--namespace={namespace}", "--timeout=60s")
    api = Api(kubeconfig=cluster.api.kubeconfig, context="test", namespace=namespace)

    def listens() -> bool:
        with Bridge(lambda: open_tunnel(api, "server", 8000)) as bridge:
            try:
                return httpx2.get(f"http://{bridge.address}/1", trust_env=False).is_success
            except httpx2.HTTPError:
                return False

    until(listens, what="it does not listen")
    yield api
    assert not [each for each in threading.enumerate() if each.name in ("bridge", "bridged", "tunnel")]


def test_large_bodies_and_many_connections(server: Api) -> None:
    with Bridge(lambda: open_tunnel(server, "server", 8000)) as bridge:
        body = os.urandom(1 << 20) * 40
        with httpx2.Client(base_url=f"http://{bridge.address}", timeout=120, trust_env=False) as http:
            assert http.post("/", content=body).text == hashlib.sha256(body).hexdigest()
            assert len(http.get(f"/{len(body)}").content) == len(body)
        failures: list[str] = []

        def ask(size: int) -> None:
            try:
                answer = httpx2.get(f"http://{bridge.address}/{size}", timeout=120, trust_env=False)
                assert len(answer.content) == size
            except Exception as error:  # noqa: BLE001 - each is a failed request
                failures.append(repr(error))

        threads = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(80)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        host, _, port = bridge.address.rpartition(":")
        for _ in range(3):  # whoever leaves in the middle of an answer takes nobody along
            with socket.create_connection((host, int(port))) as leaving:
                leaving.sendall(b"GET /50000000 HTTP/1.1\r\nhost: server\r\n\r\n")
                leaving.recv(1000)
        assert httpx2.get(f"http://{bridge.address}/5", trust_env=False).content == b"x" * 5


def test_why_a_pod_can_not_be_reached(server: Api, cluster: Cluster, namespace: str) -> None:
    with Bridge(lambda: open_tunnel(server, "server", 9999)) as bridge:
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"http://{bridge.address}/5", trust_env=False)
        assert bridge.failure is not None
        assert bridge.failure.what == "port 9999 of pod server: nobody listens there"
    with Bridge(lambda: open_tunnel(server, "server", 8000)) as bridge:
        with httpx2.Client(base_url=f"http://{bridge.address}", timeout=30, trust_env=False) as http:
            http.get("/5")
            cluster.api.kubectl("delete", "pod", "server", f"--namespace={namespace}")

            def gone() -> bool:
                try:
                    return http.get("/5") is None
                except httpx2.HTTPError:
                    return bridge.failure is not None

            until(gone, timeout_s=30, what="nobody notices that the pod is gone")
        assert "pod server is gone" in str(bridge.failure)
