"""A release of the chart: which one is meant, its registry, its leader, its gateway, a token for it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from controlplane.cli.cluster.api import Api, NobodyThere, listed
from controlplane.core.errors import ControlPlaneError, InvalidInput, NotFound, Unavailable
from controlplane.entry.document import read_document

AUDIENCE = "triton-controlplane"
ADDRESS = "triton-controlplane.io/address"
"""The Lease's annotation with the leader's address."""
NAME = "app.kubernetes.io/name=triton-controlplane"
CONTROLLERS = f"{NAME},app.kubernetes.io/component=controller"
CONTROLLER_PORT, GRPC_PORT, HTTP_PORT = 8080, 8001, 8000
TOKEN_S = 600
"""The shortest life that the API server gives a token, in seconds."""


@dataclass(frozen=True, slots=True)
class Leader:
    """The pod of the controller that leads, and the port of its API."""

    pod: str
    port: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token for the controller's API. It is never printed. `until`: on this machine's monotonic clock."""

    value: str
    until: float

    def __repr__(self) -> str:
        return "Token(…)"


class Release:
    """One release, by the name that everything of it begins with."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name

    def __str__(self) -> str:
        return f"release {self.name} in namespace {self.api.namespace}"

    @cached_property
    def system_text(self) -> str:
        """The system's definition, as in docs/system.md. Raises NotFound and what the API server says."""
        name = f"{self.name}-config"
        api = self.api
        try:
            found = api.ask(api.core.read_namespaced_config_map, name, api.namespace, doing=f"get configmap {name}")
        except NotFound as error:
            raise self._not_there(error) from error
        text = (found.data or {}).get("system.yaml")
        if text is None:
            raise InvalidInput(
                f"configmap {name} holds no system.yaml", remedy="was it changed by hand? `helm upgrade` restores it"
            )
        return str(text)

    def registry(self) -> str:
        """The registry's address."""
        data = read_document(self.system_text.encode(), f"configmap {self.name}-config").data
        url = data.get("registry") if isinstance(data, dict) else None
        if not isinstance(url, str):
            raise InvalidInput(
                f"configmap {self.name}-config names no registry", remedy="name it with --registry or CTL_REGISTRY"
            )
        return url

    def lease(self) -> Any:
        """The Lease of the controllers."""
        api, name = self.api, f"{self.name}-controller"
        return api.ask(api.coordination.read_namespaced_lease, name, api.namespace, doing=f"get lease {name}")

    def leader(self) -> Leader:
        """Who leads. Raises Unavailable when nobody does at present."""
        try:
            lease = self.lease()
        except NotFound as error:
            deployment = self._controllers()
            if deployment is None:
                raise self._not_there(error) from error
            raise self._nobody("no controller has led yet", Unavailable) from error
        holder = (lease.spec.holder_identity if lease.spec is not None else None) or ""
        pod = holder.rpartition("_")[0]
        if not pod:
            raise self._nobody("the lease was given back, and nobody has taken it")
        return Leader(pod, _port((lease.metadata.annotations or {}).get(ADDRESS)))

    def _nobody(self, why: str, kind: type[Unavailable] = NobodyThere) -> Unavailable:
        return kind(
            f"no controller of {self} leads at present: {why}",
            remedy="ask again in some seconds; `ctl doctor` says what keeps controllers from running",
        )

    def token(self) -> Token:
        """A new token for the controller's API, of the ServiceAccount whose rights are reading ones."""
        api, account = self.api, f"{self.name}-ctl"
        began = time.monotonic()
        made = api.ask(
            api.core.create_namespaced_service_account_token,
            account,
            api.namespace,
            {"spec": {"audiences": [AUDIENCE], "expirationSeconds": TOKEN_S}},
            doing=f"create serviceaccounts/token {account}",
        )
        return Token(str(made.status.token), began + TOKEN_S)

    def gateway(self) -> str:
        """A pod of the gateway that is ready. Raises Unavailable when none is."""
        api, service = self.api, f"{self.name}-gateway"
        try:
            found = api.ask(api.core.read_namespaced_service, service, api.namespace, doing=f"get service {service}")
        except NotFound as error:
            raise self._not_there(error) from error
        labels = ",".join(f"{key}={value}" for key, value in sorted((found.spec.selector or {}).items()))
        pods = api.ask(api.core.list_namespaced_pod, api.namespace, label_selector=labels, doing="list pods").items
        ready = [each.metadata.name for each in pods if is_ready(each)]
        if not ready:
            raise Unavailable(
                f"no gateway of {self} is ready ({len(pods)} pods)", remedy="`ctl doctor` says what they wait for"
            )
        return str(ready[0])

    def _controllers(self) -> Any | None:
        """The controllers' Deployment; None where there is none."""
        api, name = self.api, f"{self.name}-controller"
        try:
            return api.ask(api.apps.read_namespaced_deployment, name, api.namespace, doing=f"get deployment {name}")
        except NotFound:
            return None

    def _not_there(self, error: ControlPlaneError) -> NotFound:
        try:
            there = releases(self.api)
        except ControlPlaneError:
            return NotFound(
                f"there is no {self}: {error.what}", remedy="name it with --release, its namespace with --namespace"
            )
        return NotFound(f"there is no {self}", remedy=_others(self.api, there))


def releases(api: Api) -> list[str]:
    """The names of the releases in the namespace."""
    found = api.ask(
        api.apps.list_namespaced_deployment, api.namespace, label_selector=CONTROLLERS, doing="list deployments"
    )
    names = (each.metadata.name for each in found.items)
    return sorted(name.removesuffix("-controller") for name in names if name.endswith("-controller"))


def find_release(api: Api, name: str | None) -> Release:
    """The release of that name, or the only one that there is. Raises NotFound, and InvalidInput where several are."""
    if name is not None:
        return Release(api, name)
    there = releases(api)
    if not there:
        raise NotFound(f"there is no release in namespace {api.namespace}", remedy=_others(api, there))
    if len(there) > 1:
        raise InvalidInput(
            f"there are several releases in namespace {api.namespace}: {listed(there)}",
            field="--release",
            remedy="name one with --release or CTL_RELEASE",
        )
    return Release(api, there[0])


def is_ready(pod: Any) -> bool:
    """Whether a pod is ready, and not about to end."""
    conditions = (pod.status.conditions if pod.status is not None else None) or ()
    ready = any(each.type == "Ready" and each.status == "True" for each in conditions)
    return ready and pod.metadata.deletion_timestamp is None


def _others(api: Api, there: list[str]) -> str:
    if there:
        return f"there are: {listed(there)}"
    return f"namespace {api.namespace} has none; another one is named with --namespace, `helm install` makes one"


def _port(address: str | None) -> int:
    try:
        return urlsplit(address or "").port or CONTROLLER_PORT
    except ValueError:
        return CONTROLLER_PORT
