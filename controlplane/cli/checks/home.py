"""A system on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx2

from controlplane.cli.addresses import gateway_addresses
from controlplane.cli.checks import clocks
from controlplane.cli.checks.finding import Finding, found
from controlplane.cli.checks.prometheus import prometheus
from controlplane.cli.checks.registry import conditional_writes, readable
from controlplane.cli.checks.running import running
from controlplane.cli.context import Context
from controlplane.local.metrics import prometheus_url
from controlplane.local.supervisor import owner
from controlplane.local.system import load_system

ANSWER_S = 5.0
"""How long a gateway may take to say that it is there."""
LITTLE = 0.05
"""The share of a disk below which it is nearly full."""


class HomeCheck:
    """Looks at one home, and at what runs there."""

    def __init__(self, context: Context, *, write: bool) -> None:
        self._context = context
        self._home = context.home
        self._write = write

    def findings(self) -> Iterator[Finding]:
        """Everything, one after the other."""
        if self._home.root.is_dir():
            yield from found("home", self._supervisor)
            yield from found("controller", self._status)
            yield from found("gateway", self._gateway)
            yield from found("gpus", self._gpus)
            yield from found("prometheus", self._prometheus)
        elif self._context.registry_url is None:
            self._context.find_registry()  # raises, and says how a home is made
        yield from found("registry", self._registry)

    def _supervisor(self) -> Iterator[Finding]:
        process = owner(self._home)
        if process is None:
            yield Finding(
                "home",
                "problem",
                f"nobody looks after {self._home.root}: what ends now is not started again",
                "`ctl up` starts the system",
            )
        else:
            yield Finding("home", "ok", f"`ctl up` (process {process}) looks after {self._home.root}")
        disk = shutil.disk_usage(self._home.root)
        if disk.free < LITTLE * disk.total:
            yield Finding(
                "home",
                "warning",
                f"the disk of {self._home.root} is nearly full: {disk.free >> 20} MiB are free",
                "make room, or take another folder (--home): replicas keep what they download there",
            )

    def _status(self) -> Iterator[Finding]:
        with self._context.reader() as reader:
            yield from running(reader.get("/v1/status"))

    def _gateway(self) -> Iterator[Finding]:
        addresses = gateway_addresses(self._home)
        url = f"http://{addresses.http}/v2/health/live"
        try:
            # Whatever it answers: 503 is right for a system without a replica. On this machine: no proxy leads there.
            httpx2.get(url, timeout=ANSWER_S, trust_env=False)
        except httpx2.HTTPError as error:
            remedy = (
                f"`ctl up` starts it again by itself; gateway.log and envoy.log in {self._home.logs} say why it can't"
            )
            yield Finding("gateway", "problem", f"{url} does not answer: {error}", remedy)
        else:
            yield Finding("gateway", "ok", f"it answers: gRPC {addresses.grpc}, HTTP http://{addresses.http}")

    def _gpus(self) -> Iterator[Finding]:
        system = load_system(self._home)
        asking = [each.name for each in system.fleets if each.gpus] if system is not None else []
        if asking and shutil.which("nvidia-smi") is None:
            yield Finding(
                "gpus",
                "problem",
                f"{', '.join(asking)} asks for GPUs, and there is no nvidia-smi here",
                "install NVIDIA's driver, or take gpus out of the fleet",
            )

    def _prometheus(self) -> Iterator[Finding]:
        system = load_system(self._home)
        if system is not None:
            yield from prometheus(prometheus_url(system.metrics, self._home), ours=True)

    def _registry(self) -> Iterator[Finding]:
        url = self._context.find_registry()
        yield from readable(url)
        yield from conditional_writes(url, write=self._write)
        if url.startswith("s3://"):
            yield from clocks.skew("the object store", clocks.s3_time)
