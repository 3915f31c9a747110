"""A release on Kubernetes, looked at from the person's machine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from controlplane.cli.checks import clocks, dns, nodes, pods, rights
from controlplane.cli.checks.finding import Finding, found
from controlplane.cli.checks.prometheus import prometheus
from controlplane.cli.checks.registry import claimed, conditional_writes, readable
from controlplane.cli.checks.running import running
from controlplane.cli.cluster.reading import LeaderReader
from controlplane.cli.cluster.release import NAME, Release, is_ready
from controlplane.core.errors import ControlPlaneError, NotFound, Unauthenticated
from controlplane.local.home import Home
from controlplane.local.system import System, read_system
from controlplane.registry.claims import of_release

LATE_S = 5.0
"""A lease that is so much older than it lasts is renewed by nobody."""


class ReleaseCheck:
    """Looks at one release. `registry`: the address that was named by hand, where one was."""

    def __init__(self, release: Release, *, registry: str | None, write: bool) -> None:
        self._release = release
        self._api = release.api
        self._registry = registry
        self._write = write
        self._clock: float | None = None
        self._told: Mapping[str, Any] = {}
        """What the controller has told of itself."""

    def findings(self) -> Iterator[Finding]:
        """Everything, one after the other; what one check misses does not stop the others."""
        server = list(found("api", self._server))
        yield from server
        if any(each.state == "problem" for each in server if each.check == "api"):
            return  # each of the others would wait for it in vain, and say the same
        yield from found("your rights", lambda: rights.person(self._api, self._release.name))
        yield from found("config", self._config)
        yield from found("controller's rights", self._controller_rights)
        yield from found("deployments", self._deployments)
        yield from found("pods", self._pods)
        yield from found("lease", self._lease)
        yield from found("controller", self._status)
        yield from found("gpus", self._gpus)
        yield from found("registry", self._bucket)
        yield from found("prometheus", self._prometheus)
        yield from found("dns", self._dns)

    @cached_property
    def _system(self) -> System:
        """The system's definition. Raises what reading or understanding it does."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self._release.name}-config"
            file.write_text(self._release.system_text)
            return read_system(file, Home(Path(folder)))

    @cached_property
    def _known(self) -> System | None:
        """The same, for checks that go on without it: what is wrong with it is told once, by its own check."""
        try:
            return self._system
        except ControlPlaneError:
            return None

    def _fleets(self) -> list[str]:
        return [each.name for each in self._known.fleets] if self._known is not None else []

    def _server(self) -> Iterator[Finding]:
        version, self._clock = self._api.version()
        yield Finding("api", "ok", f"Kubernetes {version} at {self._api.configuration.host}")
        yield from clocks.skew("the API server", lambda: self._api.version()[1])

    def _config(self) -> Iterator[Finding]:
        fleets = self._system.fleets
        yield Finding("config", "ok", f"{len(fleets)} fleets: {', '.join(each.name for each in fleets)}")

    def _controller_rights(self) -> Iterator[Finding]:
        try:
            yield from rights.controller(self._api, self._release.name, self._fleets())
        except Unauthenticated as error:
            yield Finding("controller's rights", "unchecked", error.what, "an administrator's `ctl doctor` shows them")

    def _deployment(self, name: str) -> Any | None:
        api = self._api
        try:
            return api.ask(api.apps.read_namespaced_deployment, name, api.namespace, doing=f"get deployment {name}")
        except NotFound:
            return None

    def _deployments(self) -> Iterator[Finding]:
        for part in ("controller", "gateway", *self._fleets()):
            name = f"{self._release.name}-{part}"
            yield from pods.deployment(self._deployment(name), name, self._api.namespace)

    def _own_pods(self) -> list[Any]:
        """The pods that the release's Deployments have made: two releases' names may begin alike."""
        api = self._api
        parts = "|".join(re.escape(part) for part in ("controller", "gateway", *self._fleets()))
        own = re.compile(f"{re.escape(self._release.name)}-({parts})-[a-z0-9]+-")
        items = api.ask(api.core.list_namespaced_pod, api.namespace, label_selector=NAME, doing="list pods").items
        return [each for each in items if own.fullmatch(each.metadata.generate_name or "")]

    def _pods(self) -> Iterator[Finding]:
        now = datetime.fromtimestamp(self._clock, UTC) if self._clock is not None else datetime.now(UTC)
        yield from pods.pods(self._own_pods(), now=now)

    def _lease(self) -> Iterator[Finding]:
        leader = self._release.leader()
        lease = self._release.lease().spec
        if self._clock is not None and lease.renew_time is not None:
            _, now = self._api.version()
            age_s = (now or self._clock) - lease.renew_time.timestamp()
            if age_s > (lease.lease_duration_seconds or 0) + LATE_S:
                yield Finding(
                    "lease",
                    "problem",
                    f"pod {leader.pod} holds it, and has not renewed it for {age_s:.0f} s",
                    "see why controllers don't run (pods, above), or whether their clocks and the API server's agree",
                )
                return
        holder = next((each for each in self._own_pods() if each.metadata.name == leader.pod), None)
        if holder is None:
            yield Finding(
                "lease", "warning", f"pod {leader.pod} holds it, and is gone", "another takes it when it has run out"
            )
        elif not is_ready(holder):
            yield Finding("lease", "warning", f"pod {leader.pod} holds it, and is not ready", "see pods, above")
        else:
            yield Finding("lease", "ok", f"pod {leader.pod} leads")

    def _status(self) -> Iterator[Finding]:
        try:
            with LeaderReader(self._release, patience_s=0) as reader:
                self._told = reader.get("/v1/status")
        except Unauthenticated:
            raise
        except ControlPlaneError as error:
            prefix = f"{self._release.name}-controller-"
            why = pods.why_down(each for each in self._own_pods() if each.metadata.name.startswith(prefix))
            if not why:
                raise
            remedy = "correct what it says; its log tells more"
            yield Finding("controller", "problem", f"{error.what}: {why}", remedy)
            return
        yield from running(self._told)

    def _gpus(self) -> Iterator[Finding]:
        asking = [each for each in self._known.fleets if each.gpus] if self._known is not None else []
        if not asking:
            return
        api = self._api
        try:
            there = nodes.usable(api.ask(api.core.list_node, doing="list nodes").items)
        except Unauthenticated as error:
            yield Finding("gpus", "unchecked", error.what, "an administrator's `ctl doctor` looks at the nodes")
            return
        for fleet in asking:
            deployment = self._deployment(f"{self._release.name}-{fleet.name}")
            if deployment is None:
                continue  # said above
            wish = nodes.wish_of(fleet.name, deployment, at_least=fleet.replicas.min, at_most=fleet.replicas.max)
            if wish is not None:
                yield nodes.fits(wish, there)

    def _bucket(self) -> Iterator[Finding]:
        url = self._registry or self._release.registry()
        yield from readable(url)
        yield from found("claim", lambda: self._claim(url))
        yield from conditional_writes(url, write=self._write)
        if url.startswith("s3://"):
            yield from clocks.skew("the object store", clocks.s3_time)

    def _claim(self, url: str) -> Iterator[Finding]:
        deployment = self._deployment(f"{self._release.name}-controller")
        yield from claimed(
            url,
            name=of_release(self._api.namespace, self._release.name),
            installation=deployment.metadata.uid if deployment is not None else None,
        )

    def _prometheus(self) -> Iterator[Finding]:
        if self._known is not None:
            yield from prometheus(self._known.metrics.prometheus_url, ours=False)

    def _dns(self) -> Iterator[Finding]:
        if not self._told.get("names"):
            yield from dns.names(self._release.name, self._api.namespace)
            return
        gateway = self._deployment(f"{self._release.name}-gateway")
        aliases = (gateway.spec.template.spec.host_aliases or ()) if gateway is not None else ()
        yield from dns.looked_up(self._told["names"], alias=next((each.ip for each in aliases), None))
