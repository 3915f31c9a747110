"""A real Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager. Without a node, no pod ever runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from controlplane.local import processes
from tests.kubernetes import programs
from tests.kubernetes.certificates import Authority, Pair, kubeconfig, signing_key
from tests.waiting import until

ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a control plane listens, and how a process gets there."""

    address: str = "127.0.0.1"
    port: int | None = None
    """None: one that is free."""
    service_cidr: str = "10.96.0.0/16"
    service_address: str = "10.96.0.1"
    enter: tuple[str, ...] = ()
    """Words before each command: `nsenter …`."""
    has_node: bool = False


@dataclass(slots=True)
class ControlPlane:
    """One that runs, with RBAC and service-account tokens, empty at its start. Its files lie in `folder`."""

    folder: Path
    place: Place = field(default_factory=Place)
    url: str = ""
    etcd: str = ""
    """The base URL of the store, which asks for no credentials."""
    ca: Path = field(init=False)
    kubeconfig: Path = field(init=False)
    """An administrator's."""
    authority: Authority = field(init=False)
    programs: dict[str, Path] = field(init=False)
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _apiserver: list[str] = field(default_factory=list)
    _manager: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Start everything; returns when the API is ready and controllers work."""
        self.programs = programs.programs(*(programs.NODE if self.place.has_node else programs.CONTROL_PLANE))
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            try:
                self._begin()
                return
            except PortTaken:
                processes.sweep(self.folder)
                shutil.rmtree(self.folder / "etcd", ignore_errors=True)
        raise AssertionError("no port stayed free for the control plane")

    def _begin(self) -> None:
        pki = self.folder / "pki"
        pki.mkdir(exist_ok=True)
        port, etcd_port, peers_port = processes.free_ports(3)
        port = self.place.port or port
        self.url = f"https://{self.place.address}:{port}"
        self.authority = authority = Authority(pki, "ca")
        self.ca = authority.pair.certificate
        self.kubeconfig = self._kubeconfig(authority.issue("admin", group="system:masters"), "admin")
        self.etcd = etcd = f"http://127.0.0.1:{etcd_port}"
        peers = f"http://127.0.0.1:{peers_port}"
        # It begins empty each time, so nothing is lost by not waiting for the disk.
        self.run(
            "etcd",
            "--data-dir=etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )
        private, public = signing_key(pki, "service-accounts")
        self._apiserver = self._apiserver_options(etcd, port, private, public)
        self.start()
        manager = self.kubeconfig_for("kube-controller-manager")
        # There is one of each, so an election would only delay it.
        self._manager = [
            f"--kubeconfig={manager}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            f"--root-ca-file={self.ca}",
            f"--cluster-signing-cert-file={self.ca}",
            f"--cluster-signing-key-file={authority.pair.key}",
            f"--service-account-private-key-file={private}",
            f"--flex-volume-plugin-dir={self.folder / 'volume-plugins'}",
        ]
        if self.place.has_node:
            # A node that is gone is noticed sooner than by default, which is after 50 s.
            self._manager += ["--node-monitor-grace-period=20s", "--node-monitor-period=1s"]
        self.run("kube-controller-manager", *self._manager)
        self.until_there("kube-controller-manager", "serviceaccount/default")

    def _apiserver_options(self, etcd: str, port: int, private: Path, public: Path) -> list[str]:
        place, authority = self.place, self.authority
        front_authority = Authority(self.folder / "pki", "front-proxy-ca")
        front = front_authority.issue("front-proxy")
        names = ["kubernetes", *(f"kubernetes.default{end}" for end in ("", ".svc", ".svc.cluster.local"))]
        serving = authority.issue(
            "kube-apiserver",
            hosts=[*names, "localhost", "127.0.0.1", place.address, place.service_address],
        )
        options = [
            f"--etcd-servers={etcd}",
            f"--bind-address={place.address}",
            f"--advertise-address={place.address}",
            f"--secure-port={port}",
            f"--service-cluster-ip-range={place.service_cidr}",
            f"--authorization-mode={'Node,RBAC' if place.has_node else 'RBAC'}",
            f"--client-ca-file={self.ca}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            f"--requestheader-client-ca-file={front_authority.pair.certificate}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={front.certificate}",
            f"--proxy-client-key-file={front.key}",
        ]
        if place.has_node:
            to_kubelet = authority.issue("apiserver-kubelet", group="system:masters")
            return [
                *options,
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged",
                f"--kubelet-certificate-authority={self.ca}",
                "--kubelet-preferred-address-types=InternalIP",
                f"--kubelet-client-certificate={to_kubelet.certificate}",
                f"--kubelet-client-key={to_kubelet.key}",
            ]
        # The address of `kubernetes.default` would have to be one that is not a loopback's.
        return [*options, "--endpoint-reconciler-type=none"]

    def kubeconfig_for(self, part: str) -> Path:
        """A kubeconfig file of one of Kubernetes' own parts."""
        return self._kubeconfig(self.authority.issue(f"system:{part}"), part)

    def _kubeconfig(self, client: Pair, name: str) -> Path:
        return kubeconfig(self.folder / f"{name}.kubeconfig", url=self.url, ca=self.ca, client=client)

    # The API server, for tests of what happens without it.

    def start(self) -> None:
        """Start the API server, and wait until it is ready. The controllers start anew with it: each time they lose it,
        they wait longer before they look again, in the end for longer than a test does."""
        self.run("kube-apiserver", *self._apiserver)
        self.until("kube-apiserver", "get", "--raw=/readyz")
        if "kube-controller-manager" in self.daemons:
            self.restart_manager()

    def restart_manager(self) -> None:
        """Have the controllers start anew, as they do everywhere when they could not renew their own Lease for long."""
        manager = self.daemons["kube-controller-manager"]
        manager.kill()
        manager.wait(10)
        self.run("kube-controller-manager", *self._manager)

    def stop(self) -> None:
        """Ask the API server to end, which closes what it listens on, and end it. Left alone it would wait a minute for
        clients that watch."""
        daemon = self.daemons["kube-apiserver"]
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(3)
        self.kill()

    def kill(self) -> None:
        """End the API server at once."""
        self.daemons["kube-apiserver"].kill()
        self.daemons["kube-apiserver"].wait(10)

    def pause(self) -> None:
        """Have it answer nothing, with its connections open."""
        freeze(self.daemons["kube-apiserver"])

    def go_on(self) -> None:
        self.daemons["kube-apiserver"].send_signal(signal.SIGCONT)

    def compact(self) -> int:
        """Have etcd forget what was before now; the version that is the first one left."""
        listed = json.loads(self.kubectl("get", "--raw=/api/v1/namespaces"))
        version = int(listed["metadata"]["resourceVersion"])
        httpx2.post(f"{self.etcd}/v3/kv/compaction", json={"revision": version, "physical": True}).raise_for_status()
        return version

    # Using it.

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl, as the administrator, prints; `given` is its standard input. AssertionError when it fails."""
        done = self._kubectl(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` finds, as JSON."""
        return json.loads(self.kubectl("get", "--output=json", *arguments))

    def objects(self, namespace: str) -> set[str]:
        """Everything in a namespace, of whatever kind, but for events: those end by themselves, after an hour."""
        kinds = self.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
        kept = sorted({each for each in kinds if each.partition(".")[0] != "events"})
        found = self.get(",".join(kept), f"--namespace={namespace}")["items"]
        return {f"{each['kind']}/{each['metadata']['name']}" for each in found}

    def token(self, namespace: str, account: str, *, audience: str | None = None, pod: str | None = None) -> str:
        """A service account's token by the TokenRequest API, bound to a pod if one is named."""
        return self.kubectl(
            "create",
            "token",
            account,
            f"--namespace={namespace}",
            *([f"--audience={audience}"] if audience else []),
            *(["--bound-object-kind=Pod", f"--bound-object-name={pod}"] if pod else []),
        ).strip()

    def kubeconfig_of(self, namespace: str, account: str) -> Path:
        """A kubeconfig file of a service account: what it may not do, RBAC refuses."""
        path = self.folder / f"{namespace}-{account}.kubeconfig"
        return kubeconfig(path, url=self.url, ca=self.ca, token=self.token(namespace, account))

    def _kubectl(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.place.enter, self.programs["kubectl"], f"--kubeconfig={self.kubeconfig}", *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**self.environment, "HOME": str(self.folder)},
        )

    # Its parts.

    @property
    def environment(self) -> dict[str, str]:
        """What a daemon inherits: no proxies, no credentials."""
        return processes.scrubbed_environment(self.folder)

    def run(self, name: str, *options: str, command: Sequence[str] | None = None) -> None:
        """Start a daemon in the control plane's place and in its folder; its log is NAME.log there."""
        self.daemons[name], _ = processes.start(
            [*self.place.enter, *(command or [str(self.programs[name])]), *options],
            home=self.folder,
            log_file=self.log(name),
            environment=self.environment,
            folder=self.folder,
        )

    def until(self, name: str, *arguments: str, timeout_s: float = 60.0) -> None:
        """Wait until kubectl succeeds with `arguments`, `name`'s work. AssertionError when a daemon has ended."""

        def succeeds() -> bool:
            for daemon, process in self.daemons.items():
                if process.poll() is not None:
                    last = self.log(daemon).read_text(errors="replace")[-3000:]
                    if "address already in use" in last:
                        raise PortTaken(daemon)
                    raise AssertionError(f"{daemon} ended with {process.returncode}:\n{last}")
            return self._kubectl("--request-timeout=6s", *arguments).returncode == 0

        what = f"{name}: {' '.join(arguments)} is not so after {timeout_s} s; its log is {self.log(name)}"
        until(succeeds, timeout_s=timeout_s, every_s=0.1, what=what)

    def until_there(self, name: str, what: str, *options: str) -> None:
        """Wait until an object is there: kubectl watches for it."""
        self.until(name, "wait", "--for=create", "--timeout=5s", what, *options)

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def end(self) -> None:
        """End everything; logs stay."""
        processes.sweep(self.folder)
        for process in self.daemons.values():
            process.wait(10)
        self.daemons.clear()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)


class PortTaken(Exception):
    """Somebody else was given a port between our asking and our using it."""


Made = TypeVar("Made", bound=ControlPlane)


@contextlib.contextmanager
def running(made: Made) -> Iterator[Made]:
    """Start one, and end it afterwards: also when this process is killed."""
    with guarded("tests.kubernetes.control_plane", made.folder):
        try:
            made.begin()
            yield made
        finally:
            made.end()


def freeze(daemon: subprocess.Popen[bytes]) -> None:
    """Stop a process; returns when none of its threads runs. On a busy machine one may go on for a moment."""
    daemon.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{daemon.pid}/task")

    def are_stopped() -> bool:
        try:
            return {(each / "stat").read_text().rpartition(") ")[2][0] for each in threads.iterdir()} == {"T"}
        except FileNotFoundError:  # one that has just ended
            return False

    until(are_stopped)


@contextlib.contextmanager
def guarded(module: str, folder: Path, *, keep: Sequence[int] = ()) -> Iterator[None]:
    """Have `python -m MODULE FOLDER` clear away when this process ends without having left the context.

    It learns that from the end of a pipe, which the kernel closes however this process ends. `keep` are open files that
    it holds open as long as it lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    guard = subprocess.Popen(
        [sys.executable, "-m", module, str(folder.resolve())],
        stdin=subprocess.PIPE,
        start_new_session=True,
        pass_fds=keep,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert guard.stdin is not None
    try:
        yield
        guard.stdin.write(b"done")
    finally:
        guard.stdin.close()
        guard.wait(60)


def left_alone() -> bool:
    """In the guard: wait for the end of the guarded process's context; whether it ended without clearing away."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return not os.read(0, 4)


if __name__ == "__main__" and left_alone():
    processes.sweep(Path(sys.argv[1]))
