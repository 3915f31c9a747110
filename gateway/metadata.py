"""gRPC metadata that passes through the Python side, and what it tells Envoy about a request."""

from __future__ import annotations

from typing import Any

from gateway.config.names import SERVED_MODEL, SERVED_REPLICA, SERVED_VERSION
from gateway.forwarding import Destination

NOT_PASSED = ("grpc-", "x-envoy-", "x-forwarded-", "x-gateway-", ":")
NOT_PASSED_NAMES = frozenset({"te", "content-type", "content-length", "user-agent", "host", "accept-encoding"})

Metadata = tuple[tuple[str, str | bytes], ...]


def passed_on(context: Any) -> Metadata:
    """The client's own metadata: what gRPC and Envoy add for themselves stays here."""
    return tuple(
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if key not in NOT_PASSED_NAMES and not key.startswith(NOT_PASSED)
    )


def served(destination: Destination) -> tuple[tuple[str, str], ...]:
    """What Envoy shall log of a destination."""
    return (
        (SERVED_MODEL, destination.resolved.model),
        (SERVED_VERSION, str(destination.resolved.version)),
        (SERVED_REPLICA, destination.endpoint.replica),
    )
