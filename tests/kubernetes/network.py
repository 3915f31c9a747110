"""A network namespace of a cluster's own. Nothing in it reaches the machine, and nothing on the machine is changed."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Network:
    """One, held by a mount on `file`, whose nodes have `addresses`."""

    file: Path
    addresses: tuple[str, ...]

    @property
    def enter(self) -> tuple[str, ...]:
        """Words before a command that is to run in it. Not `ip netns exec`, which hides the control groups."""
        return ("nsenter", f"--net={self.file}")

    def make(self, gateway: str) -> None:
        self.file.touch()
        _run("unshare", f"--net={self.file}", "true")
        self._ip("link set lo up")
        # Something must hold the address, and not every kernel has the dummy driver: a pair with both ends in here.
        self._ip("link add node0 type veth peer name node0-peer")
        self._ip("link set node0-peer up")
        self._ip("link set node0 up")
        for address in self.addresses:
            self._ip(f"address add {address}/24 dev node0")
        # Nobody is at the gateway. But without a default route the kernel refuses addresses of services before
        # kube-proxy's rules can change them.
        self._ip(f"route add default via {gateway} dev node0")
        # Both are the namespace's own. By the second, kube-proxy's rules see what goes from pod to pod.
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        if Path("/proc/sys/net/bridge").exists():
            self.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")

    def _ip(self, words: str) -> None:
        self.run("ip", *words.split())

    def run(self, *command: str) -> None:
        """Run a command here. CalledProcessError when it fails."""
        _run(*self.enter, *command)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and the threads and processes that it starts meanwhile, are in this network."""
        with open("/proc/thread-self/ns/net") as before, self.file.open() as ours:  # noqa: PTH123
            _set_network(ours.fileno())
            try:
                yield
            finally:
                _set_network(before.fileno())


def _set_network(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
