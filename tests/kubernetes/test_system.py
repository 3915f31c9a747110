"""The whole system on a real API server without a node: Helm installs it, and this test starts what a kubelet would.

Controllers, agent, Triton, gateway are the real programs, with the rights that the chart gives them; their pods exist,
and never run. What a node is needed for is tried by `make e2e-kubernetes`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from helm_python import Config

from controlplane.agent.settings import Settings
from controlplane.agent.triton.pod import PORTS
from controlplane.fleet.events import SOURCE
from controlplane.local import processes
from controlplane.registry import open_registry
from controlplane.registry.registry import Registry
from tests.agent.test_pod import Kubelet
from tests.e2e.system import infer, write_doubler
from tests.helm.rendering import CHART, read
from tests.kubernetes.control_plane import ControlPlane
from tests.registry.servers import ACCESS_KEY, SECRET_KEY, versitygw
from tests.waiting import until

AUDIENCE = "triton-controlplane"
S3 = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}


class Node:
    """Starts processes as a kubelet would the containers of pods that the API server holds."""

    def __init__(self, cluster: ControlPlane, namespace: str, folder: Path, s3_url: str) -> None:
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        self.s3 = {**S3, "AWS_ENDPOINT_URL_S3": s3_url}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        self.kubelet: Kubelet | None = None

    def get(self, *arguments: str) -> Any:
        return self.cluster.get(*arguments, f"--namespace={self.namespace}")

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")

    def pods(self, component: str, release: str = "serving") -> list[str]:
        of = f"app.kubernetes.io/instance={release},app.kubernetes.io/component={component}"
        found = self.get("pods", f"--selector={of}")["items"]
        return sorted(each["metadata"]["name"] for each in found if "deletionTimestamp" not in each["metadata"])

    def replicas(self) -> int:
        return int(self.get("deployment", "serving-cpu")["spec"]["replicas"])

    def start(self, pod: str, module: str, *arguments: str, **environment: str) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with (self.folder / f"{pod}.log").open("ab") as log:
            self.running[pod] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env={**kept, **environment}, stdout=log, stderr=log
            )

    def controller(self, pod: str, release: str = "serving") -> None:
        config = self.folder / f"{release}.yaml"
        config.write_text(self.get("configmap", f"{release}-config")["data"]["system.yaml"])
        self.ports[pod], metrics_port = processes.free_ports(2)
        self.start(
            pod,
            "controlplane.server",
            "--kubernetes",
            f"--config={config}",
            f"--kubeconfig={self.cluster.kubeconfig_of(self.namespace, f'{release}-controller')}",
            POD_NAME=pod,
            POD_NAMESPACE=self.namespace,
            POD_IP="127.0.0.1",
            PORT=str(self.ports[pod]),
            METRICS_PORT=str(metrics_port),
            RELEASE=release,
            **self.s3,
        )

    def role(self, pod: str) -> str:
        """Whether a controller leads or stands by; empty while it does not answer."""
        try:
            return str(httpx2.get(f"http://127.0.0.1:{self.ports[pod]}/readyz").json()["status"])
        except (httpx2.HTTPError, ValueError):
            return ""

    def token(self, account: str, pod: str) -> Path:
        file = self.folder / f"{pod}.token"
        file.write_text(self.cluster.token(self.namespace, account, audience=AUDIENCE, pod=pod))
        return file

    def replica(self, pod: str, controller: str) -> None:
        """The containers of a fleet's pod: the agent first, then the server."""
        (port,) = processes.free_ports(1)
        settings = Settings(home=self.folder / "data", replica=pod, fleet="cpu", response_cache_bytes=0)
        self.start(
            pod,
            "controlplane.agent",
            f"--home={settings.home}",
            f"--replica={pod}",
            "--fleet=cpu",
            f"--controller-url={self.url(controller)}",
            f"--token-file={self.token('serving-fleet', pod)}",
            "--pod-ip=127.0.0.1",
            f"--port={port}",
            "--response-cache-bytes=0",
        )
        until((settings.home / "replicas" / pod / "models").is_dir, what="the agent has not started")
        self.kubelet = Kubelet(settings, PORTS, self.folder / "triton")
        self.kubelet.start()

    def gateway(self, pod: str, controller: str) -> None:
        grpc, http = processes.free_ports(2)
        self.ports[pod] = grpc
        settings = self.folder / "gateway.json"
        settings.write_text(json.dumps({"address": "127.0.0.1", "grpc_port": grpc, "http_port": http, "threads": 1}))
        self.start(
            pod,
            "gateway",
            f"--home={self.folder / 'gateway'}",
            f"--name={pod}",
            f"--controller-url={self.url(controller)}",
            f"--token-file={self.token('serving-gateway', pod)}",
            f"--settings={settings}",
        )

    def explained(self, controller: str) -> str:
        """What `ctl explain fleet cpu` is answered; by the same way, but for the port-forward."""
        token = self.cluster.token(self.namespace, "serving-ctl", audience=AUDIENCE)
        headers = {"authorization": f"Bearer {token}"}
        try:
            answer = httpx2.get(f"{self.url(controller)}/v1/fleets/cpu/explain", headers=headers).raise_for_status()
        except httpx2.HTTPError:  # it does not lead at present
            return ""
        told = answer.json()
        return "\n".join(each["text"] for each in told["reasons"])

    def events(self, reason: str) -> list[str]:
        """On the fleet's Deployment."""
        found = self.get("events")["items"]
        return [
            each["message"]
            for each in found
            if (each["reason"], each["involvedObject"]["name"]) == (reason, "serving-cpu")
        ]

    def url(self, controller: str) -> str:
        return f"http://127.0.0.1:{self.ports[controller]}"

    def ask(self, value: float = 3.0) -> tuple[float, str]:
        import tritonclient.grpc as triton

        (pod,) = self.pods("gateway")
        with triton.InferenceServerClient(f"127.0.0.1:{self.ports[pod]}") as client:
            return infer(client, "doubler", value)

    def end(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        if self.kubelet is not None:
            self.kubelet.end()
        processes.sweep(self.folder / "gateway")


@pytest.fixture
def node(api_server: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Node]:
    # A path of its own: sockets' names are short.
    with tempfile.TemporaryDirectory(prefix="node-") as folder, versitygw(tmp_path / "s3") as s3:
        made = Node(api_server, namespace, Path(folder).resolve(), s3.endpoint)
        try:
            yield made
        finally:
            made.end()


def values() -> dict[str, Any]:
    tiny = read(CHART / "ci" / "tiny-values.yaml")
    fleet = {**tiny["fleets"][0], "replicas": {"min": 1, "max": 3}, "scaling": {"down_after_s": 2}}
    return {**tiny, "registry": "s3://registry/fleet", "fleets": [fleet], "controller": {"replicas": 2}}


def registered(registry: Registry, folder: Path) -> None:
    from controlplane.cli.main import main

    write_doubler(folder)
    assert main([f"--registry={registry.url}", "register", "doubler", str(folder)]) == 0
    assert main([f"--registry={registry.url}", "promote", "doubler", "1", "--no-wait"]) == 0


def test_from_helm_install_to_an_answer_and_past_a_dead_leader(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.cluster.kubectl(
        "create", "secret", "generic", "bucket", "--from-literal=AWS_ACCESS_KEY_ID=x", f"--namespace={node.namespace}"
    )
    before = node.cluster.objects(node.namespace)
    with Config(kubeconfig_path=node.cluster.kubeconfig, namespace=node.namespace) as helm:
        helm.install(CHART, "serving", values(), namespace=node.namespace)
        until(lambda: len(node.pods("controller")) == 2 and node.pods("fleet") and node.pods("gateway"))
        first, second = node.pods("controller")
        node.controller(first)
        until(lambda: node.role(first) == "leader")
        node.controller(second)
        until(lambda: node.role(second) == "standby")
        (pod,), (gateway,) = node.pods("fleet"), node.pods("gateway")
        node.replica(pod, second)  # the standby says who leads
        node.gateway(gateway, first)
        for name, value in node.s3.items():
            monkeypatch.setenv(name, value)
        registry = open_registry("s3://registry/fleet")
        until(lambda: "cpu" in registry.fleets() and registry.fleets()["cpu"].capabilities is not None, timeout_s=60)
        registered(registry, tmp_path / "doubler")
        until(lambda: registry.model("doubler").stable == 1, timeout_s=60, what="the promotion does not end")
        assert node.ask() == (6.0, "1")

        # By hand, and back: who edits the Deployment is followed.
        node.cluster.kubectl("scale", "deployment/serving-cpu", "--replicas=2", f"--namespace={node.namespace}")
        hand = "kubectl set serving-cpu to 2 at "  # which may be over before anybody has looked at pods
        until(lambda: hand in node.explained(first))
        until(lambda: [each for each in node.events("ScaledByHand") if hand in each])
        until(lambda: node.replicas() == 1, timeout_s=60, what="the load needs no more than one")
        until(lambda: node.pods("fleet") == [pod], what="the one that serves stays")
        until(lambda: hand in node.explained(first) and "it is not so any more" in node.explained(first))

        node.kubectl("set", "env", "deployment/serving-cpu", "--containers=triton", "A=b")
        hand = "kubectl-set changed serving-cpu (env of container triton) at "
        until(lambda: hand in node.explained(first))
        until(lambda: [each for each in node.events("EditedByHand") if hand in each])
        helm.upgrade(CHART, "serving", values(), namespace=node.namespace)
        node.kubectl("set", "env", "deployment/serving-cpu", "--containers=triton", "A-")
        until(lambda: "it is not so any more" in node.explained(first))
        assert pod in node.pods("fleet"), "no pod that would take its place is ready"
        assert node.ask() == (6.0, "1")

        node.running[first].kill()
        until(lambda: node.role(second) == "leader", timeout_s=30)
        assert node.ask() == (6.0, "1")

        labels = node.get("deployment", "serving-controller")["metadata"]["labels"]
        ours = {**labels, "app.kubernetes.io/managed-by": SOURCE}
        del ours["helm.sh/chart"]
        assert node.get("lease", "serving-controller")["metadata"]["labels"] == ours
        told = [each for each in node.get("events")["items"] if each["source"].get("component") == SOURCE]
        assert told
        assert all(each["metadata"]["labels"] == ours for each in told)

        # With a controller that leads until its rights are gone.
        helm.uninstall("serving")
        left = node.cluster.objects
        until(lambda: left(node.namespace) == before, timeout_s=60, every_s=0.2, what="something is left")


def test_a_second_release_on_the_same_prefix_is_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Config(kubeconfig_path=node.cluster.kubeconfig, namespace=node.namespace) as helm:
        for release in ("serving", "second"):
            helm.install(CHART, release, values(), namespace=node.namespace)
        until(lambda: len(node.pods("controller")) == len(node.pods("controller", "second")) == 2)
        first, second = node.pods("controller")[0], node.pods("controller", "second")[0]
        node.controller(first)
        until(lambda: node.role(first) == "leader")
        node.controller(second, "second")
        until(lambda: node.running[second].poll() is not None, what="it does not end")
        assert node.running[second].poll() == 5, "as a conflict does"
        belongs = f"belongs to another control plane (kubernetes:{node.namespace}/serving)"
        assert belongs in (node.folder / f"{second}.log").read_text()
        for name, value in node.s3.items():
            monkeypatch.setenv(name, value)

        def claims(release: str) -> list[tuple[str, str]]:
            from controlplane.cli.main import main

            capsys.readouterr()
            where = [f"--kubeconfig={node.cluster.kubeconfig}", "--context=test", f"--namespace={node.namespace}"]
            main([*where, f"--release={release}", "doctor", "-o", "json"])
            found = json.loads(capsys.readouterr().out)
            return [(each["state"], each["what"]) for each in found if each["check"] == "claim"]

        ((state, what),) = claims("second")
        assert state == "problem"
        assert belongs in what
        ((state, what),) = claims("serving")
        assert (state, f"claimed by kubernetes:{node.namespace}/serving" in what) == ("ok", True)
        assert node.role(first) == "leader"
        helm.uninstall("second")
        helm.uninstall("serving")


def test_definitions_that_no_pod_can_use_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "system.yaml"
    config.write_text(yaml.safe_dump({"registry": "./here"}))
    done = subprocess.run(
        [sys.executable, "-m", "controlplane.server", "--kubernetes", f"--config={config}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pods share none" in done.stdout + done.stderr
