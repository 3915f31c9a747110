"""The API server as the person at the terminal may use it: calls with a deadline, and refusals said to a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes.client import (
    ApiClient,
    ApiException,
    AppsV1Api,
    AuthorizationV1Api,
    Configuration,
    CoordinationV1Api,
    CoreV1Api,
    VersionApi,
)
from kubernetes.config import ConfigException, list_kube_config_contexts

from controlplane.cli.checks.dates import date_of
from controlplane.core.errors import ControlPlaneError, InvalidInput, Unauthenticated, Unavailable
from controlplane.fleet.cluster import CALL_S, client_of, configured, told


class NobodyThere(Unavailable):
    """At this moment: a pod has gone, or a controller takes over from another."""


class Api:
    """One namespace of a cluster, with the person's own rights."""

    def __init__(self, *, kubeconfig: Path | None, context: str | None, namespace: str | None) -> None:
        """Nothing is asked yet. Raises InvalidInput where the kubeconfig does not lead anywhere."""
        found = _context(kubeconfig, context)
        self.context: str = found["name"]
        self.namespace: str = namespace or (found.get("context") or {}).get("namespace") or "default"
        try:
            self.configuration: Configuration = configured(kubeconfig, self.context)
        except InvalidInput as error:
            raise InvalidInput(
                error.what,
                field="--context",
                remedy=f"`kubectl --context {self.context} get pods` has to work with the same kubeconfig",
            ) from error
        self.client: ApiClient = client_of(self.configuration)

    @cached_property
    def core(self) -> CoreV1Api:
        """Pods, Services, ConfigMaps."""
        return CoreV1Api(self.client)

    @cached_property
    def apps(self) -> AppsV1Api:
        """Deployments."""
        return AppsV1Api(self.client)

    @cached_property
    def coordination(self) -> CoordinationV1Api:
        """Leases."""
        return CoordinationV1Api(self.client)

    @cached_property
    def authorization(self) -> AuthorizationV1Api:
        """Who may do what."""
        return AuthorizationV1Api(self.client)

    def ask(self, function: Callable[..., Any], *arguments: Any, doing: str, **options: Any) -> Any:
        """Call the API. `doing` names verb and resource. Raises ControlPlaneError."""
        try:
            return function(*arguments, _request_timeout=CALL_S, **options)
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self.told(error, doing) from error

    def told(self, error: Exception, doing: str) -> ControlPlaneError:
        """What the API server says, with what a person can do about it."""
        found = told(error, f"{doing} in namespace {self.namespace}")
        if not isinstance(found, Unauthenticated):
            return found
        if isinstance(error, ApiException) and error.status == 401:
            return Unauthenticated(
                found.what, remedy=f"log in again: context {self.context!r} has no valid credentials"
            )
        return Unauthenticated(
            found.what, remedy="ask who administers the cluster for this right; the chart's value ctl.subjects gives it"
        )

    def version(self) -> tuple[str, float | None]:
        """The API server's version, and its clock as seconds since 1970, if it tells it. Raises ControlPlaneError."""
        code, _, headers = self.ask(VersionApi(self.client).get_code_with_http_info, doing="get /version")
        return str(code.git_version), date_of(headers.get("date"))


def _context(kubeconfig: Path | None, context: str | None) -> dict[str, Any]:
    """The kubeconfig's entry of that name, or its current one."""
    where = str(kubeconfig) if kubeconfig is not None else "the kubeconfig (KUBECONFIG, or ~/.kube/config)"
    try:
        contexts, current = list_kube_config_contexts(  # type: ignore[no-untyped-call]
            str(kubeconfig) if kubeconfig is not None else None
        )
    except (ConfigException, OSError, yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(
            f"{where} can't be used: {str(error) or type(error).__name__}",
            field="--kubeconfig" if kubeconfig is not None else "--context",
            remedy="name a kubeconfig with --kubeconfig or KUBECONFIG, and one of its contexts with --context",
        ) from error
    if context is None:
        return dict(current)
    found = next((each for each in contexts if each["name"] == context), None)
    if found is None:
        raise InvalidInput(
            f"there is no context {context!r} in {where}",
            field="--context",
            remedy=f"there are: {listed([each['name'] for each in contexts])}",
        )
    return dict(found)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return ", ".join(sorted(names)) or "none"
