"""The way to a Kubernetes API server: the client, and its errors in our words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from controlplane.core.errors import Conflict, ControlPlaneError, InvalidInput, NotFound, Unauthenticated, Unavailable

CALL_S = 10.0
"""The longest that one call may take, in seconds."""
GONE, TOO_MANY = 410, 429
T = TypeVar("T")


def connect(kubeconfig: str | None = None, context: str | None = None) -> client.ApiClient:
    """A client: with the pod's own ServiceAccount, or by a kubeconfig. Raises InvalidInput where there is neither."""
    settings = client.Configuration()
    try:
        if kubeconfig is None and context is None:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, context=context, client_configuration=settings
            )
    except config.ConfigException as error:
        raise InvalidInput(
            f"there is no way to a Kubernetes API server: {error}",
            remedy="run it in a pod with a ServiceAccount's token, or name a kubeconfig",
        ) from error
    settings.retries = False  # who calls decides; the library would try again without a pause
    settings.client_side_validation = False  # bookmarks hold next to nothing, and newer servers new fields
    return client.ApiClient(settings)


async def call(function: Callable[..., T], *arguments: Any, doing: str, **options: Any) -> T:
    """Call the API in a thread. Raises ControlPlaneError with what was being done."""
    try:
        return await asyncio.to_thread(function, *arguments, _request_timeout=CALL_S, **options)
    except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
        raise told(error, doing) from error


def told(error: Exception, doing: str) -> ControlPlaneError:
    """What the API server says, as one of our errors. Its message names the verb and the resource that is refused."""
    if not isinstance(error, ApiException):
        return Unavailable(f"{doing}: the Kubernetes API server can't be reached: {error}")
    text = f"{doing}: {_message(error)}"
    if error.status in (401, 403):
        return Unauthenticated(
            text, remedy="give the ServiceAccount this right; the chart's Role has all that are needed"
        )
    if error.status == 404:
        return NotFound(text)
    if error.status == 409:
        return Conflict(text)
    if error.status in (400, 422):
        return InvalidInput(text)
    return Unavailable(text)


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return f"HTTP status {error.status} {error.reason or ''}".strip()
