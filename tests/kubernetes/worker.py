"""A node of a test's cluster: containerd, a kubelet, and pods in a subnet of their own, in the cluster's network."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from controlplane.local import processes
from tests.kubernetes import images
from tests.kubernetes.certificates import kubeconfig
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.network import Network
from tests.waiting import until

NAME = "triton-controlplane"
RUN = Path("/run") / f"{NAME}-node"
"""Sockets and mounts, for their paths must be short."""
CNI_PLUGINS = Path("/usr/lib/cni")
DNS = "10.96.0.10"

KERNEL_SETTINGS = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)
"""What a kubelet sets for the whole machine."""


def folder() -> Path:
    """Where nodes keep images from one run to the next, and in `cluster` what is new in each; logs stay till then."""
    return images.store().parent / "node"


@dataclass(frozen=True, slots=True)
class Worker:
    """One, by its name and number."""

    name: str
    number: int

    @property
    def address(self) -> str:
        return f"10.123.0.{1 + self.number}"

    @property
    def pods(self) -> str:
        """Its pods' addresses."""
        return f"10.244.{self.number}.0/24"

    @property
    def _run(self) -> Path:
        return RUN / self.name

    @property
    def _socket(self) -> Path:
        return self._run / "containerd.sock"

    @property
    def _root(self) -> Path:
        return folder() / "containerd" / self.name

    @property
    def _group(self) -> str:
        """Below it, in every hierarchy of control groups, are the pods."""
        return f"{NAME}-{self.name}"

    def start(self, api: ControlPlane) -> None:
        """Start it, in a network that has its address; it is not ready yet when this returns."""
        home = api.folder / self.name
        home.mkdir(exist_ok=True)
        self._run.mkdir(exist_ok=True)
        pause = images.from_program("pause", api.programs["pause"])
        cni = home / "cni"
        cni.mkdir(exist_ok=True)
        (cni / "bridge.conflist").write_text(json.dumps(self._bridge(cni / "leases")))
        config = home / "containerd.toml"
        config.write_text(CONTAINERD_CONFIG.format(root=self._root, run=self._run, cni=cni, pause=pause))
        daemon = f"containerd-{self.name}"
        api.run(daemon, command=["containerd", f"--config={config}"])
        until(lambda: self.ctr("version"), what=f"containerd does not start; its log is {api.log(daemon)}")
        self._remove_containers()
        self.add_image(pause)
        api.run(f"kubelet-{self.name}", *self._kubelet(api, home), command=[str(api.programs["kubelet"])])

    def _kubelet(self, api: ControlPlane, home: Path) -> Iterable[str]:
        pair = api.authority.issue(
            f"system:node:{self.name}",
            group="system:nodes",
            hosts=[self.name, self.address],
            file=f"kubelet-{self.name}",
        )
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "healthzBindAddress": self.address,
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(api.ca)}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pair.certificate),
            "tlsPrivateKeyFile": str(pair.key),
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "clusterDomain": "cluster.local",
            "clusterDNS": [DNS],
            "resolvConf": "",  # the machine's name servers can't be reached from here
            "podLogsDir": str(home / "pod-logs"),
            "volumePluginDir": str(home / "volume-plugins"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._group}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "nodeLeaseDurationSeconds": 8,  # it is renewed each 2 s
            # No image can be pulled again, so none is collected; and the machine's full disk is not the cluster's.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }
        # Each hierarchy has a tree of its own, and the kubelet wants its root in all of them.
        for hierarchy in hierarchies():
            (hierarchy / self._group).mkdir(exist_ok=True)
        file = home / "kubelet.yaml"
        file.write_text(yaml.safe_dump(config))
        access = kubeconfig(home / "kubelet.kubeconfig", url=api.url, ca=api.ca, client=pair)
        return (
            f"--config={file}",
            f"--kubeconfig={access}",
            f"--root-dir={home / 'kubelet'}",
            f"--cert-dir={home / 'kubelet' / 'pki'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )

    def _bridge(self, leases: Path) -> dict[str, object]:
        addresses = {
            "type": "host-local",
            "dataDir": str(leases),
            "ranges": [[{"subnet": self.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": f"pods{self.number}", "isGateway": True, "hairpinMode": True}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "0.4.0", "name": NAME, "plugins": [{**bridge, "ipam": addresses}, ports]}

    def add_image(self, reference: str) -> None:
        """Have an image that was built here where the kubelet finds it. Pods must not ask to pull it always."""
        if (self.ctr("images", "list", "--quiet", f"name=={reference}") or "").strip():
            return
        with tempfile.TemporaryDirectory(dir=folder()) as beside:
            archive = Path(beside) / "image.tar"
            images.save(reference, archive)
            assert self.ctr("images", "import", str(archive)) is not None, f"{reference} can't be imported"
        self._remove_older(reference)

    def _remove_older(self, reference: str) -> None:
        """Have containerd forget earlier images of this name; what only they hold is removed by it later."""
        lines = [line.split() for line in (self.ctr("images", "list") or "").splitlines()[1:]]
        digests = {line[0]: line[2] for line in lines}
        name = reference.rpartition(":")[0]
        older = {each for each in digests if each.startswith(f"{name}:") and each != reference}
        # Each image has a second name, which is its number.
        held = {digest for each, digest in digests.items() if each not in older and not each.startswith("sha256:")}
        for each, digest in digests.items():
            if each in older or digest not in held:
                self.ctr("images", "remove", each)

    def vanish(self, api: ControlPlane, network: Network) -> None:
        """Have it be gone, as a machine without power is: nothing on it runs, and nobody is told, by no packet."""
        for rule in self._silence():
            network.run("iptables", "--insert", *rule)
        for daemon in (f"kubelet-{self.name}", f"containerd-{self.name}"):
            process = api.daemons.pop(daemon)
            process.kill()
            process.wait(10)
        shims = [each for each in processes.of_home(api.folder) if str(self._socket) in each.cmdline()]
        for shim in shims:
            shim.kill()
        processes.wait_ended(shims, timeout_s=10)
        self._kill_pods()

    def come_back(self, api: ControlPlane, network: Network) -> None:
        """Start it again after it was gone."""
        for rule in self._silence():
            network.run("iptables", "--delete", *rule)
        self.start(api)

    def _silence(self) -> list[list[str]]:
        chains = (
            ("FORWARD", "--source"),
            ("FORWARD", "--destination"),
            ("INPUT", "--source"),
            ("OUTPUT", "--destination"),
        )
        return [[chain, side, self.pods, "--jump", "DROP"] for chain, side in chains]

    def clear(self, home: Path) -> None:
        """Kill what runs of it and have it forget all containers. `home` is the control plane's folder."""
        for process in processes.of_home(home):  # it would start again what is ended
            with contextlib.suppress(psutil.Error):
                if process.name() == "kubelet":
                    process.kill()
                    processes.wait_ended([process], timeout_s=10)
        self._kill_pods()
        self._remove_containers()

    def remove_groups(self) -> None:
        """Remove its control groups, which nothing is in any more."""
        for hierarchy in hierarchies():
            for each, _, _ in os.walk(hierarchy / self._group, topdown=False):
                Path(each).rmdir()

    def _kill_pods(self) -> None:
        def alive() -> list[int]:
            # Groups go while this looks, which `os.walk` stands.
            walks = [os.walk(each / self._group) for each in hierarchies()]
            groups = [Path(place) / "cgroup.procs" for walk in walks for place, _, _ in walk]
            return [int(number) for text in read_all(groups) for number in text.split()]

        def none_alive() -> bool:
            for number in set(alive()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            return not alive()

        until(none_alive, what="pods can't be killed")

    def _remove_containers(self) -> None:
        """Have containerd, if it runs, forget all containers, with their shims and what they wrote."""
        for container in (self.ctr("containers", "list", "--quiet") or "").split():
            self.ctr("tasks", "delete", "--force", container)
            self.ctr("containers", "delete", container)

    def ctr(self, *words: str) -> str | None:
        """What containerd's client prints; None when it fails, or there is no containerd."""
        if not self._socket.exists():
            return None
        command = ["ctr", f"--address={self._socket}", "--connect-timeout=2s", "--namespace=k8s.io", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        return done.stdout if done.returncode == 0 else None


def hierarchies() -> list[Path]:
    """Where control groups are mounted: version 1 has many hierarchies, version 2 one."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(line[1]) for line in lines if line[2] in ("cgroup", "cgroup2")]


def read_all(paths: Iterable[Path]) -> list[str]:
    """The texts of those files that are there: each may go at any time."""
    texts = []
    for path in paths:
        with contextlib.suppress(OSError):
            texts.append(path.read_text())
    return texts


CONTAINERD_CONFIG = f"""\
version = 2
root = "{{root}}"
state = "{{run}}/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{{run}}/containerd.sock"
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
    conf_dir = "{{cni}}"
"""
