"""The way to a Kubernetes API server: the client, and its errors in our words."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from controlplane.core.errors import Conflict, ControlPlaneError, InvalidInput, NotFound, Unauthenticated, Unavailable

CALL_S = 10.0
"""The longest that one call may take, in seconds."""
GONE, TOO_MANY = 410, 429
T = TypeVar("T")


def configured(kubeconfig: Path | None = None, context: str | None = None) -> Configuration:
    """How to reach the API server: as a pod's ServiceAccount, or as a kubeconfig says. Raises InvalidInput."""
    made = Configuration()
    try:
        if kubeconfig is None and context is None:
            load_incluster_config(client_configuration=made)  # type: ignore[no-untyped-call]
        else:
            load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig) if kubeconfig is not None else None,
                context=context,
                client_configuration=made,
            )
    except (ConfigException, OSError) as error:
        raise InvalidInput(
            f"it is not known how to reach the Kubernetes API server: {error}",
            remedy="run this in a pod whose ServiceAccount's token is mounted, or name a kubeconfig",
        ) from error
    return made


def client_of(configuration: Configuration) -> ApiClient:
    """A client that tells of a failure at once: the library's own retries may sleep as long as a server asks."""
    changed = copy.copy(configuration)
    changed.retries = False
    changed.client_side_validation = False  # a watch's bookmarks hold next to nothing
    return ApiClient(changed)


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
            text,
            remedy="give the ServiceAccount this right: the chart's Role has all that are needed, and `helm upgrade` "
            "restores it",
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
