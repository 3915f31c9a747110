"""Where a home's gateway answers."""

from __future__ import annotations

from typing import NamedTuple

from controlplane.core.errors import Unavailable
from controlplane.local.home import Home


class Addresses(NamedTuple):
    """Host and port for each protocol, as clients write them."""

    grpc: str
    http: str


def gateway_addresses(home: Home) -> Addresses:
    """The addresses of an existing home's gateway. Raises Unavailable when it has none yet."""
    from pydantic import TypeAdapter

    from gateway.settings import read_settings
    from gateway.state import Ports

    settings = read_settings(home.gateway)
    try:
        ports = TypeAdapter(Ports).validate_json((home.gateway / "ports.json").read_bytes())
    except (OSError, ValueError):
        ports = Ports()
    grpc, http = settings.grpc_port or ports.grpc, settings.http_port or ports.http
    if not grpc or not http:
        raise Unavailable("the gateway has no ports yet", remedy="start it with `ctl up`")
    host = "127.0.0.1" if settings.address == "0.0.0.0" else settings.address  # noqa: S104 - told from, not bound to
    return Addresses(f"{host}:{grpc}", f"{host}:{http}")
