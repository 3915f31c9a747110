"""Controllers in processes of their own, as ServiceAccounts with the permissions that the chart gives them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from tests.kubernetes.control_plane import ControlPlane
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "serving"

PERMISSIONS = """\
apiVersion: v1
kind: ServiceAccount
metadata: {{name: serving-controller, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: serving-controller, namespace: {namespace}}}
rules:
  - {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update, patch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: serving-controller, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: serving-controller}}
subjects: [{{kind: ServiceAccount, name: serving-controller, namespace: {namespace}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {namespace}-serving-controller}}
rules:
  - {{apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {namespace}-serving-controller}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {namespace}-serving-controller}}
subjects: [{{kind: ServiceAccount, name: serving-controller, namespace: {namespace}}}]
"""


def permissions(api_server: ControlPlane, namespace: str) -> Path:
    """The controller's ServiceAccount with its permissions; its kubeconfig file."""
    api_server.kubectl("apply", "--filename=-", given=PERMISSIONS.format(namespace=namespace))
    return api_server.kubeconfig_of(namespace, "serving-controller")


class Candidate:
    """A controller's process. Its wall clock is `clock_offset_s` off."""

    def __init__(
        self, folder: Path, name: str, namespace: str, kubeconfig: Path, *, clock_offset_s: float = 0.0
    ) -> None:
        self.name = name
        self._out, self.log = folder / f"{name}.out", folder / f"{name}.log"
        command = [sys.executable, "-m", "tests.kubernetes.candidate", f"--kubeconfig={kubeconfig}"]
        command += [f"--namespace={namespace}", f"--name={name}", f"--registry={folder / 'registry'}"]
        command += [f"--clock-offset={clock_offset_s}"]
        with self._out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=log)
        until(lambda: self.last("listens") or self._ended(), what=f"{name} does not start")

    def _ended(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return False

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has told, complete lines only."""
        return [json.loads(line) for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def events_of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    def last(self, event: str) -> dict[str, Any] | None:
        return next(reversed(self.events_of(event)), None)

    def at(self, event: str) -> float:
        """When that happened last, by the machine's monotonic clock."""
        found = self.last(event)
        assert found is not None, f"{self.name} has not told of {event!r}"
        return float(found["at"])

    def looks(self, since: float) -> int:
        """How often it has looked at the Lease from `since` on (the machine's monotonic clock) until it led."""
        return sum(since < each["at"] <= self.at("leads") for each in self.events_of("looks"))

    @property
    def leads(self) -> bool:
        """Whether it leads, as it says itself."""
        told = [each["event"] for each in self.events if each["event"] in ("serves", "stops")]
        return bool(told) and told[-1] == "serves"

    @property
    def url(self) -> str:
        return str((self.last("listens") or {})["url"])

    def get(self, path: str, token: str = "") -> httpx2.Response:
        return httpx2.get(
            f"{self.url}{path}", headers={"authorization": f"Bearer {token}"} if token else {}, timeout=10
        )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)
