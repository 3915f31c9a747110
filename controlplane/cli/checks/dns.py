"""Whether Services' names mean something inside a cluster: as its controller has found, or where this runs inside."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping

from controlplane.cli.checks.finding import Finding

REMEDY = "see that CoreDNS runs and may be reached (NetworkPolicies); without it, set controllerHostAlias"


def looked_up(problems: Mapping[str, str | None], *, alias: str | None) -> Iterator[Finding]:
    """What the controller has found: of each name why it is not known, or None. `alias`: the controller's address that
    agents and gateways are given, where they are given one."""
    for name, problem in problems.items():
        if problem is None:
            yield Finding("dns", "ok", f"{name} is known inside the cluster")
        elif alias is None:
            yield Finding("dns", "problem", f"{name} is not known inside the cluster: {problem}", REMEDY)
        else:
            yield Finding(
                "dns",
                "warning",
                f"{name} is not known inside the cluster: {problem}; agents and gateways reach the controller at "
                f"{alias}, by controllerHostAlias",
                "without DNS, clients need the gateway's address: gateway.service.clusterIP makes it a fixed one",
            )


def names(release: str, namespace: str) -> Iterator[Finding]:
    """Where the controller tells nothing of it: looked up from here, if this is inside of the cluster."""
    services = [f"{release}-{each}.{namespace}" for each in ("controller", "gateway")]
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        yield Finding(
            "dns",
            "unchecked",
            "Services have names inside the cluster only, this is outside, and no controller tells of them",
            f"`kubectl --namespace {namespace} run dns-check --rm --attach --restart=Never --image=busybox -- "
            f"nslookup {services[0]}` tries it",
        )
        return
    for service in services:
        if resolves(service):
            yield Finding("dns", "ok", f"{service} is known")
        else:
            yield Finding("dns", "problem", f"{service} is not known here", REMEDY)


def resolves(host: str) -> bool:
    """Whether a name means something on this machine."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False
