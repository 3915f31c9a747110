"""Names that several parts of Envoy's configuration share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Json = dict[str, Any]
Protocol = Literal["grpc", "http"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http")

SERVICE = "/inference.GRPCInferenceService/"
MODEL_CALLS = ("ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
"""Unary calls that name a model in their body."""
STREAM_CALL = "ModelStreamInfer"
SERVER_CALLS = ("ServerLive", "ServerReady", "ServerMetadata")
HEALTH_CALL = "/grpc.health.v1.Health/Check"

HTTP_MODEL_PATH = r"/v2/models/[^/?]+(/versions/[^/?]+)?(/(infer|ready|config|stats|generate|generate_stream))?"
HTTP_SERVER_PATH = r"/v2/?|/v2/health/(live|ready)"

ROUTE_KEY = "x-gateway-route"
"""The header that leads a request: "MODEL", or "MODEL/VERSION" for versions that are led elsewhere.

The scripts set it from what the request says (and take off what a client sends by this name).
"""
VERSION_KEY = "x-gateway-version"
"""The header in which the scripts leave the version that they forced, for logs and statistics."""
SIDE_KEY = "*"
"""The key that leads to the Python side: no model can be called so."""
SIDE_HOST = "side"
"""What stands in a replica's place in logs and statistics where a request went to the Python side."""
LUA = "lua"
"""The script's filter; a route's metadata under this name tells the scripts what they need (lead.lua)."""
METADATA = "gateway"
"""The dynamic metadata namespace of what the Python side decided, for logs and statistics."""
SERVED_MODEL, SERVED_VERSION, SERVED_REPLICA = "x-gateway-model", "x-gateway-version", "x-gateway-replica"
"""How the Python side tells Envoy, in response headers, what it decided; Envoy logs them and takes them off."""

LIMITS = "limits"
"""The runtime layer with the limits that differ from their cluster's."""


def typed(kind: str, **fields: Any) -> Json:
    """A google.protobuf.Any as JSON: `kind` is the message's full name."""
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def cluster(base: str, protocol: Protocol) -> str:
    """The cluster of one protocol that leads to a pool; `base` is what `pool_base` gave it."""
    return f"{base}-{protocol}"


def pool_base(members: Sequence[str], alone: str = "") -> str:
    """What the clusters of a pool with these replicas are called, without the protocol.

    A name for its members and not for the pool's id: so a cluster never changes its members, and what was led to one
    before is never led to a replica that does not hold it. `alone`: what sets it apart from others with the same ones.
    """
    named = (*members, f"alone {alone}") if alone else members
    return "pool-" + hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]


def any_cluster(protocol: Protocol) -> str:
    """The cluster of all replicas, for calls that are about the server and not about a model."""
    return f"any-{protocol}"


def side_cluster(protocol: Protocol) -> str:
    """The cluster of the Python side."""
    return f"side-{protocol}"


@dataclass(frozen=True, slots=True)
class Files:
    """Where Envoy's files lie, below the gateway's folder."""

    folder: Path

    @property
    def bootstrap(self) -> Path:
        """What Envoy starts with."""
        return self.folder / "envoy.json"

    @property
    def clusters(self) -> Path:
        """All clusters (CDS)."""
        return self.folder / "xds" / "clusters.json"

    @property
    def limits(self) -> Path:
        """The limits that differ from their cluster's (RTDS)."""
        return self.folder / "xds" / "limits.json"

    def routes(self, protocol: Protocol) -> Path:
        """The routes of one listener (RDS)."""
        return self.folder / "xds" / f"routes-{protocol}.json"

    @property
    def endpoints(self) -> Path:
        """The folder of the clusters' members."""
        return self.folder / "xds" / "endpoints"

    def endpoints_of(self, cluster: str) -> Path:
        """One cluster's members (EDS)."""
        return self.endpoints / f"{cluster}.json"

    @property
    def admin_address(self) -> Path:
        """Where Envoy says on which port its admin interface is."""
        return self.folder / "envoy-admin"

    @property
    def access_log(self) -> Path:
        """One line of JSON a request."""
        return self.folder / "access.log"
