"""How a controller takes a registry over."""

from __future__ import annotations

import asyncio

import structlog

from controlplane.backoff import backoff_s
from controlplane.core.errors import ControlPlaneError
from controlplane.registry.registry import Registry

log = structlog.get_logger(__name__)

CONTEST_S = 30.0
"""So long whoever has the registry has time to say that it lives: it looks every half second, at the largest registries
every ten."""
LOOK_S = 0.5
RETRY_MIN_S, RETRY_MAX_S = 0.5, 10.0


async def claim(registry: Registry, identity: str, installation: str = "", *, contest_s: float = CONTEST_S) -> int:
    """Take the registry over for the control plane `identity` and return the new epoch; waits while the registry can't
    be reached. `installation` tells those of one identity apart; empty: that is not known, and nobody is asked.

    Raises Conflict when another control plane has the registry, or another installation that has said within
    `contest_s` that it lives.
    """
    failures = 0
    while True:
        try:
            others = bool(installation) and await asyncio.to_thread(registry.contend, identity, installation)
            if others:
                await _contest(registry, installation, contest_s)
            epoch: int = await asyncio.to_thread(registry.claim, identity, installation)
            return epoch
        except ControlPlaneError as error:
            if error.code != "UNAVAILABLE":
                raise
            log.warning("the registry can't be reached; serving goes on as it is", reason=str(error))
            failures += 1
            await asyncio.sleep(backoff_s(failures, RETRY_MIN_S, RETRY_MAX_S))


async def _contest(registry: Registry, installation: str, contest_s: float) -> None:
    """Wait for an objection. Raises Conflict when there is one."""
    log.warning(
        "another installation of this name has claimed the registry; it is taken over unless that one objects",
        registry=registry.url,
        waits_s=contest_s,
    )
    end = asyncio.get_running_loop().time() + contest_s
    while asyncio.get_running_loop().time() < end:
        await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(registry.check_contest, installation)
