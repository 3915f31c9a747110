"""A real Kubernetes with nodes: a control plane, and per node a kubelet and containerd, in a network of their own.

Needs root. It has no names for services (no CoreDNS) and no way out of the machine. What it changes outside its folders
is put back at its end: also when this process is killed, and at the latest when the next one starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil
import yaml

from controlplane.local import processes
from tests.kubernetes.control_plane import ControlPlane, Place, guarded, left_alone
from tests.kubernetes.network import Network
from tests.kubernetes.worker import CNI_PLUGINS, KERNEL_SETTINGS, NAME, RUN, Worker, folder, hierarchies, read_all
from tests.waiting import until

WORKERS = (Worker("one", 0), Worker("two", 1))
ADDRESS, GATEWAY = WORKERS[0].address, "10.123.0.254"
SERVICES, API_SERVICE = "10.96.0.0/16", "10.96.0.1"
PODS = "10.244.0.0/16"
NEEDED = ("containerd", "runc", "ctr", "iptables", "conntrack", "ip", "nsenter", "unshare", "sysctl", "buildah")

PATIENCE_S = 1800.0


def cannot_run() -> str | None:
    """Why there can be no node here; None if there can."""
    if os.geteuid() != 0:
        return "a node needs root: it makes network namespaces, mounts and control groups"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if not (CNI_PLUGINS / "bridge").exists():
        missing.append(str(CNI_PLUGINS / "bridge"))
    if missing:
        return f"{', '.join(missing)}: missing; tests/kubernetes/install.sh installs them"
    for needed in (
        ["unshare", "--mount", "--net", "mount", "--make-rprivate", "/"],
        ["unshare", "--net", "iptables", "-L"],
    ):
        done = subprocess.run(needed, check=False, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(needed)} fails: {done.stderr.strip()}"
    closed = [str(each) for each in hierarchies() if not os.access(each, os.W_OK)]
    return f"control groups can't be made in {', '.join(closed)}" if closed else None


class Cluster:
    """A running one. Its API is `api`; whoever is in its `network` reaches services and pods, and is reached by pods at
    ADDRESS."""

    def __init__(self) -> None:
        self.network = Network(RUN / "netns", tuple(each.address for each in WORKERS))
        place = Place(
            address=ADDRESS,
            port=6443,
            service_cidr=SERVICES,
            service_address=API_SERVICE,
            enter=self.network.enter,
            has_node=True,
        )
        self.folder = folder() / "cluster"
        self.api = ControlPlane(self.folder, place)

    def start(self) -> None:
        """Start everything; returns when pods can run."""
        clear()
        RUN.mkdir()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        assert len(str(self.folder)) < 70, f"the path of a socket below {self.folder} would be too long"
        self.network.make(GATEWAY)
        values = [f"{name}={_setting(name).read_text().strip()}\n" for name in KERNEL_SETTINGS]
        (RUN / "sysctl").write_text("".join(values))
        self.api.begin()
        for worker in WORKERS:
            worker.start(self.api)
        self.api.run("kube-scheduler", *self._kube_scheduler())
        # One is enough: the nodes share a network.
        self.api.run("kube-proxy", *self._kube_proxy())
        for worker in WORKERS:
            self.wait_ready(worker)
        # Services lead somewhere.
        self.api.until("kube-proxy", f"--server=https://{API_SERVICE}", "get", "--raw=/readyz")

    def wait_ready(self, worker: Worker) -> None:
        """Wait until a node takes pods."""
        ready = ("wait", "--for=condition=Ready", "--timeout=1s", f"node/{worker.name}")
        self.api.until(f"kubelet-{worker.name}", *ready)

    def _kube_scheduler(self) -> Sequence[str]:
        access = self.api.kubeconfig_for("kube-scheduler")
        return (
            f"--kubeconfig={access}",
            f"--authentication-kubeconfig={access}",
            f"--authorization-kubeconfig={access}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )

    def _kube_proxy(self) -> Sequence[str]:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.api.kubeconfig_for("kube-proxy"))},
            "hostnameOverride": WORKERS[0].name,
            "clusterCIDR": PODS,
            "mode": "iptables",
            # The machine's limits on connection tracking stay as they are.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        file = self.folder / "kube-proxy.yaml"
        file.write_text(yaml.safe_dump(config))
        return (f"--config={file}",)

    def add_image(self, reference: str) -> None:
        """Have an image that was built here on every node."""
        for worker in WORKERS:
            worker.add_image(reference)

    def tag_image(self, reference: str, name: str) -> None:
        """Have every node know an image, which it has, by another name too."""
        for worker in WORKERS:
            assert worker.ctr("images", "tag", "--force", reference, name) is not None, f"{reference} has no {name}"


def kill(pod_uid: str, word: str) -> list[int]:
    """Kill, as the kernel does that is out of memory, those of a pod's processes whose command line has this word."""
    killed = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            groups = Path(f"/proc/{each.pid}/cgroup").read_text()
            if f"pod{pod_uid}" in groups and any(word in part for part in each.cmdline()):
                each.kill()
                killed.append(each.pid)
    return killed


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """The machine's one. AssertionError when there can be none, or somebody else has it for long."""
    reason = cannot_run()
    assert reason is None, reason
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        if not _locked(lock):
            print("cluster: waiting for another process, which has this machine's …", file=sys.stderr, flush=True)
            until(lambda: _locked(lock), timeout_s=PATIENCE_S, every_s=0.5, what="another process has the cluster")
        # The guard holds the lock, too: the next cluster waits for it.
        with guarded("tests.kubernetes.cluster", folder(), keep=(lock.fileno(),)):
            made = Cluster()
            try:
                made.start()
                yield made
            finally:
                clear()
                made.api.end()


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def clear() -> None:
    """End the cluster, whoever started it, and remove what it made, images and logs aside. Pods are killed, not
    asked."""
    home = folder() / "cluster"
    for worker in WORKERS:
        worker.clear(home)
    processes.sweep(home)
    places = (f"{RUN}/", f"{home}/")
    for mounted in reversed(_mounts()):
        if mounted.startswith(places):
            subprocess.run(["umount", "--lazy", mounted], check=False)
    for worker in WORKERS:
        worker.remove_groups()
    _clear_fixed_places(home)
    for made in (RUN, *(home / each for each in ("pki", "etcd", *(worker.name for worker in WORKERS)))):
        shutil.rmtree(made, ignore_errors=True)


def _clear_fixed_places(home: Path) -> None:
    """Remove what containerd, CNI and the kubelet write where nobody can tell them not to, and put settings back."""
    for socket in read_all(RUN.glob("*/containerd/io.containerd.runtime.v2.task/*/*/address")):
        Path(socket.removeprefix("unix://")).unlink(missing_ok=True)
    for result in Path("/var/lib/cni/results").glob(f"{NAME}-*"):
        sandbox = result.name.removeprefix(f"{NAME}-").rpartition("-")[0]
        result.with_name(f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
        result.unlink()
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(str(home)):
            link.unlink()
    for line in read_all([RUN / "sysctl"]):
        for name, _, value in (each.partition("=") for each in line.splitlines()):
            _setting(name).write_text(value)


def _mounts() -> list[str]:
    """Mount points, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines]


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


if __name__ == "__main__" and left_alone():
    clear()
    sys.exit()
