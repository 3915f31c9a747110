"""A real Kubernetes with one node: a control plane, kubelet, containerd, kube-proxy, in a network of their own.

Needs root. It has no names for services (no CoreDNS) and no way out of the machine. What it changes outside its folders
is put back at its end: also when this process is killed, and at the latest when the next one starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil
import yaml

from controlplane.local import processes
from tests.kubernetes import images
from tests.kubernetes.certificates import kubeconfig
from tests.kubernetes.control_plane import ControlPlane, Place, guarded, left_alone
from tests.kubernetes.network import Network
from tests.waiting import until

NAME = "triton-controlplane"
NODE = "node"
ADDRESS, GATEWAY = "10.123.0.1", "10.123.0.254"
SERVICES, API_SERVICE, DNS = "10.96.0.0/16", "10.96.0.1", "10.96.0.10"
PODS = "10.244.0.0/24"

RUN = Path("/run") / f"{NAME}-node"
"""Sockets and mounts, for their paths must be short."""
CGROUP = f"{NAME}-node"
"""Below it, in every hierarchy of control groups, are the pods."""
CONTAINERD = RUN / "containerd.sock"
CNI_PLUGINS = Path("/usr/lib/cni")
NEEDED = ("containerd", "runc", "ctr", "iptables", "conntrack", "ip", "nsenter", "unshare", "sysctl", "buildah")

PATIENCE_S = 1800.0

KERNEL_SETTINGS = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)
"""What a kubelet sets for the whole machine."""


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
    closed = [str(each) for each in _hierarchies() if not os.access(each, os.W_OK)]
    return f"control groups can't be made in {', '.join(closed)}" if closed else None


def folder() -> Path:
    """Where it keeps images from one run to the next, and in `cluster` what is new in each; logs stay till then."""
    return images.store().parent / "node"


class Node:
    """A running one. Its API is `api`; whoever is in its `network` reaches services and pods, and is reached by pods at
    ADDRESS."""

    def __init__(self) -> None:
        self.network = Network(RUN / "netns", ADDRESS)
        place = Place(
            address=ADDRESS,
            port=6443,
            service_cidr=SERVICES,
            service_address=API_SERVICE,
            enter=self.network.enter,
            has_node=True,
        )
        self.cluster = folder() / "cluster"
        self.api = ControlPlane(self.cluster, place)

    def start(self) -> None:
        """Start everything; returns when pods can run."""
        clear()
        RUN.mkdir()
        shutil.rmtree(self.cluster, ignore_errors=True)
        self.cluster.mkdir(parents=True)
        assert len(str(self.cluster)) < 70, f"the path of a socket below {self.cluster} would be too long"
        self.network.make(GATEWAY)
        self.api.begin()
        self._containerd()
        for daemon, options in (
            ("kube-scheduler", self._kube_scheduler()),
            ("kubelet", self._kubelet()),
            ("kube-proxy", self._kube_proxy()),
        ):
            self.api.run(daemon, *options)
        self.api.until("kubelet", "wait", "--for=condition=Ready", "--timeout=1s", f"node/{NODE}")
        # Services lead somewhere.
        self.api.until("kube-proxy", f"--server=https://{API_SERVICE}", "get", "--raw=/readyz")

    def _containerd(self) -> None:
        pause = images.from_program("pause", self.api.programs["pause"])
        config = self._write("containerd.toml", CONTAINERD_CONFIG.format(root=folder() / "containerd", pause=pause))
        cni = self.cluster / "cni"
        cni.mkdir()
        (cni / "bridge.conflist").write_text(json.dumps(_bridge(cni / "leases")))
        self.api.run("containerd", command=["containerd", f"--config={config}"])
        log = self.api.log("containerd")
        until(lambda: ctr("version"), what=f"containerd does not start; its log is {log}")
        _remove_containers()
        self.add_image(pause)

    def _kubelet(self) -> Sequence[str]:
        pair = self.api.authority.issue(
            f"system:node:{NODE}", group="system:nodes", hosts=[NODE, ADDRESS], file="kubelet"
        )
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(self.api.ca)}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pair.certificate),
            "tlsPrivateKeyFile": str(pair.key),
            "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS],
            "resolvConf": "",  # the machine's name servers can't be reached from here
            "podLogsDir": str(self.cluster / "pod-logs"),
            "volumePluginDir": str(self.cluster / "volume-plugins"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            # No image can be pulled again, so none is collected; and the machine's full disk is not the cluster's.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }
        # Each hierarchy has a tree of its own, and the kubelet wants its root in all of them.
        for hierarchy in _hierarchies():
            (hierarchy / CGROUP).mkdir(exist_ok=True)
        values = [f"{name}={_setting(name).read_text().strip()}\n" for name in KERNEL_SETTINGS]
        (RUN / "sysctl").write_text("".join(values))
        access = kubeconfig(self.cluster / "kubelet.kubeconfig", url=self.api.url, ca=self.api.ca, client=pair)
        return (
            f"--config={self._write('kubelet.yaml', yaml.safe_dump(config))}",
            f"--kubeconfig={access}",
            f"--root-dir={self.cluster / 'kubelet'}",
            f"--cert-dir={self.cluster / 'kubelet' / 'pki'}",
            f"--hostname-override={NODE}",
            f"--node-ip={ADDRESS}",
        )

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
            "hostnameOverride": NODE,
            "clusterCIDR": PODS,
            "mode": "iptables",
            # The machine's limits on connection tracking stay as they are.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        return (f"--config={self._write('kube-proxy.yaml', yaml.safe_dump(config))}",)

    def _write(self, name: str, text: str) -> Path:
        path = self.cluster / name
        path.write_text(text)
        return path

    def add_image(self, reference: str) -> None:
        """Have an image that was built here where the kubelet finds it. Pods must not ask to pull it always."""
        if (ctr("images", "list", "--quiet", f"name=={reference}") or "").strip():
            return
        with tempfile.TemporaryDirectory(dir=folder()) as beside:
            archive = Path(beside) / "image.tar"
            images.save(reference, archive)
            assert ctr("images", "import", str(archive)) is not None, f"{reference} can't be imported"
        _remove_older(reference)

    def run(self, *command: str, given: str | None = None, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's network, as its administrator; it may fail."""
        environment = {**os.environ, "KUBECONFIG": str(self.api.kubeconfig)}
        return subprocess.run(
            [*self.network.enter, *command],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=environment,
        )


@contextlib.contextmanager
def node() -> Iterator[Node]:
    """The machine's one node. AssertionError when there can be none, or somebody else has it for long."""
    reason = cannot_run()
    assert reason is None, reason
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        if not _locked(lock):
            print("node: waiting for another process, which has this machine's …", file=sys.stderr, flush=True)
            until(lambda: _locked(lock), timeout_s=PATIENCE_S, every_s=0.5, what="another process has the node")
        # The guard holds the lock, too: the next node waits for it.
        with guarded("tests.kubernetes.node", folder(), keep=(lock.fileno(),)):
            made = Node()
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
    """End the node, whoever started it, and remove what it made, images and logs aside. Pods are killed, not asked."""
    home = folder() / "cluster"
    for process in processes.of_home(home):  # it would start again what is ended
        with contextlib.suppress(psutil.Error):
            if process.name() == "kubelet":
                process.kill()
                processes.wait_ended([process], timeout_s=10)
    _kill_pods()
    _remove_containers()
    processes.sweep(home)
    places = (f"{RUN}/", f"{home}/")
    for mounted in reversed(_mounts()):
        if mounted.startswith(places):
            subprocess.run(["umount", "--lazy", mounted], check=False)
    for hierarchy in _hierarchies():
        for folders, _, _ in os.walk(hierarchy / CGROUP, topdown=False):
            Path(folders).rmdir()
    _clear_fixed_places(home)
    for made in (RUN, *(home / each for each in ("kubelet", "cni", "pod-logs", "pki", "etcd"))):
        shutil.rmtree(made, ignore_errors=True)


def _clear_fixed_places(home: Path) -> None:
    """Remove what containerd, CNI and the kubelet write where nobody can tell them not to, and put settings back."""
    for socket in _read_all(RUN.glob("containerd/io.containerd.runtime.v2.task/*/*/address")):
        Path(socket.removeprefix("unix://")).unlink(missing_ok=True)
    for result in Path("/var/lib/cni/results").glob(f"{NAME}-*"):
        sandbox = result.name.removeprefix(f"{NAME}-").rpartition("-")[0]
        result.with_name(f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
        result.unlink()
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(str(home)):
            link.unlink()
    for line in _read_all([RUN / "sysctl"]):
        for name, _, value in (each.partition("=") for each in line.splitlines()):
            _setting(name).write_text(value)


def _kill_pods() -> None:
    def alive() -> list[int]:
        groups = [path for each in _hierarchies() for path in (each / CGROUP).rglob("cgroup.procs")]
        return [int(number) for text in _read_all(groups) for number in text.split()]

    def none_alive() -> bool:
        for number in set(alive()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return not alive()

    until(none_alive, what="pods can't be killed")


def _remove_containers() -> None:
    """Have containerd, if it runs, forget all containers, with their shims and what they wrote."""
    for container in (ctr("containers", "list", "--quiet") or "").split():
        ctr("tasks", "delete", "--force", container)
        ctr("containers", "delete", container)


def _remove_older(reference: str) -> None:
    """Have containerd forget earlier images of this name; what only they hold is removed by it later."""
    lines = [line.split() for line in (ctr("images", "list") or "").splitlines()[1:]]
    digests = {line[0]: line[2] for line in lines}
    name = reference.rpartition(":")[0]
    older = {each for each in digests if each.startswith(f"{name}:") and each != reference}
    # Each image has a second name, which is its number.
    held = {digest for each, digest in digests.items() if each not in older and not each.startswith("sha256:")}
    for each, digest in digests.items():
        if each in older or digest not in held:
            ctr("images", "remove", each)


def ctr(*words: str) -> str | None:
    """What containerd's client prints; None when it fails, or there is no containerd."""
    if not CONTAINERD.exists():
        return None
    command = ["ctr", f"--address={CONTAINERD}", "--connect-timeout=2s", "--namespace=k8s.io", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    return done.stdout if done.returncode == 0 else None


def _mounts() -> list[str]:
    """Mount points, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines]


def _hierarchies() -> list[Path]:
    """Where control groups are mounted: version 1 has many hierarchies, version 2 one."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(line[1]) for line in lines if line[2] in ("cgroup", "cgroup2")]


def _setting(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _read_all(paths: Iterator[Path] | Sequence[Path]) -> list[str]:
    texts = []
    for path in paths:
        with contextlib.suppress(OSError):  # it may go at any time
            texts.append(path.read_text())
    return texts


def _bridge(leases: Path) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "dataDir": str(leases),
        "ranges": [[{"subnet": PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": NAME, "plugins": [bridge, ports]}


CONTAINERD_CONFIG = f"""\
version = 2
root = "{{root}}"
state = "{RUN}/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{root}}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{pause}}"
  # Where root lacks CAP_SYS_RESOURCE, runc can't shield a pod from the kernel's killer, and every pod fails.
  restrict_oom_score_adj = true
  # Else the pods' networks are mounted among the machine's, in /run/netns.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{folder() / "cluster" / "cni"}"
"""


if __name__ == "__main__" and left_alone():
    clear()
    sys.exit()
