"""Which version a request gets, and from which replicas: the table's answer to a model's name and a wish. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controlplane.core.errors import NotFound
from controlplane.core.names import Key
from controlplane.core.routes import Endpoint, Pace, Route, RouteTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The version a request gets. `members` empty: it is loaded nowhere at present, and `reason` may say why;
    `refused`: there is no use in waiting for it. `pace`: what each member does, where more is asked of it."""

    model: str
    version: int
    members: tuple[Endpoint, ...] = ()
    pace: Pace | None = None
    reason: str = ""
    refused: bool = False
    sequences: bool = False
    high: bool = False
    sequence_idle_s: float = 0.0

    @property
    def alone(self) -> Key | None:
        """The version, if it has places of its own at the members."""
        return Key(self.model, self.version) if self.pace is not None else None


def resolve(table: RouteTable, model: str, wish: str, draw: float) -> Resolved:
    """What a request for `model` gets.

    `wish` is the version it names, empty for none; `draw` in [0, 100) decides between several targets. Raises
    NotFound for what Envoy would refuse as well.
    """
    route = table.routes.get(model)
    if route is None:
        raise NotFound(f"model '{model}' is not known")
    if wish:
        pinned = {str(version): (version, pool) for version, pool in route.pinned.items()}
        targets = {str(target.version): (target.version, target.pool) for target in route.targets}
        chosen = pinned.get(wish) or targets.get(wish)
        if chosen is None:
            raise NotFound(f"version '{wish}' of model '{model}' does not exist or may not be asked for")
        version, pool = chosen
    else:
        version, pool = _by_weight(route, draw)
    names = table.pools.get(pool, ()) if pool is not None else ()
    return Resolved(
        model=model,
        version=version,
        members=tuple(table.endpoints[name] for name in names if name in table.endpoints),
        pace=table.crowded.get(pool) if pool is not None else None,
        reason=route.reasons.get(version, ""),
        refused=version in route.refused,
        sequences=route.sequence_idle_s is not None,
        high=route.priority == "high",
        sequence_idle_s=route.sequence_idle_s or 0.0,
    )


def _by_weight(route: Route, draw: float) -> tuple[int, str | None]:
    if not route.targets:
        raise NotFound(f"no version of model '{route.model}' is stable yet")
    passed = 0.0
    for target in route.targets:
        passed += target.weight_percent
        if draw < passed:
            return target.version, target.pool
    return route.targets[-1].version, route.targets[-1].pool


def share(key: str) -> float:
    """A number in [0, 100) that is the same for the same key everywhere."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56 * 100


def by_rendezvous(members: Iterable[Endpoint], key: str) -> Sequence[Endpoint]:
    """The members, the one first on which every gateway settles for `key`; few keys move when members change."""
    return sorted(members, key=lambda each: hashlib.sha256(f"{each.replica}\n{key}".encode()).digest(), reverse=True)
