"""Who calls the API, and what each may call."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Literal, Protocol

from controlplane.core.errors import Unauthenticated

SYNC = {"agent": "/v1/replicas/{name}/sync", "gateway": "/v1/gateways/{name}/sync"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who has shown who he is. `name`: an agent's or a gateway's own, which is its pod's."""

    kind: Literal["agent", "gateway", "reader", "all"]
    name: str = ""


class Forbidden(Unauthenticated):
    """The caller is known, and may not do this. HTTP status 403."""


class Identify(Protocol):
    """Finds out who calls."""

    async def __call__(self, authorization: bytes) -> Caller:
        """The caller who sent this Authorization header (empty: none). Raises Unauthenticated, Forbidden, Busy."""


class SharedToken:
    """One token for everybody, as on one machine, where whoever can read its file may do everything."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

    async def __call__(self, authorization: bytes) -> Caller:
        """Whoever shows the token. Raises Unauthenticated."""
        if not hmac.compare_digest(authorization, self._wanted):
            raise Unauthenticated("this call needs the controller's token", remedy="send it as a bearer token")
        return Caller(kind="all")


def permit(caller: Caller, method: str, path: str) -> None:
    """Raises Forbidden when the caller may not do this."""
    if caller.kind == "all":
        return
    if caller.kind == "reader":
        if method not in ("GET", "HEAD"):
            raise Forbidden(
                f"{caller.name} may read, and {method} {path} is for an agent's or a gateway's own token",
                remedy="people change things in the registry, with `ctl`; nothing is changed by this API",
            )
        return
    own = SYNC[caller.kind].format(name=caller.name)
    if (method, path) != ("POST", own):
        raise Forbidden(
            f"the {caller.kind} {caller.name} may call POST {own}, and this is {method} {path}",
            remedy="to read, use a token of the ServiceAccount for ctl",
        )
