"""Names that several parts of Envoy's configuration share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

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

ROUTE_KEY = "gateway.route"
"""The filter state that leads a request: "MODEL/VERSION", nothing behind the slash for the stable version."""
METADATA = "gateway"
"""The dynamic metadata namespace that holds a request's `model` and `version` for logs and statistics."""
MODEL_HEADER, VERSION_HEADER = "x-model-name", "x-model-version"
"""What a client sends so that a stream, whose messages Envoy does not look into, can be led by Envoy itself."""
SERVED_MODEL, SERVED_VERSION, SERVED_REPLICA = "x-gateway-model", "x-gateway-version", "x-gateway-replica"
"""How the Python side tells Envoy, in response headers, what it decided; Envoy logs them and takes them off."""


def typed(kind: str, **fields: Any) -> Json:
    """A google.protobuf.Any as JSON: `kind` is the message's full name."""
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def cluster(base: str, protocol: Protocol) -> str:
    """The cluster of one protocol that leads to a pool; `base` is what `pool_base` gave it."""
    return f"{base}-{protocol}"


def pool_base(pool: str) -> str:
    """What the clusters of a pool are called, without the protocol; safe as a file's name."""
    return f"pool-{quote(pool, safe='')}"


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
        return self.folder / "envoy.json"

    @property
    def clusters(self) -> Path:
        return self.folder / "xds" / "clusters.json"

    def routes(self, protocol: Protocol) -> Path:
        return self.folder / "xds" / f"routes-{protocol}.json"

    @property
    def endpoints(self) -> Path:
        return self.folder / "xds" / "endpoints"

    def endpoints_of(self, cluster: str) -> Path:
        return self.endpoints / f"{cluster}.json"

    @property
    def admin_address(self) -> Path:
        return self.folder / "envoy-admin"

    @property
    def access_log(self) -> Path:
        return self.folder / "access.log"
