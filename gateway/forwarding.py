"""Who answers a request of the Python side: a sequence's own replica, or the member with the fewest requests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, replace

from controlplane.core.errors import InvalidInput, Overloaded, Unavailable
from controlplane.core.routes import Endpoint
from gateway.holding import Holding
from gateway.replicas import Replicas
from gateway.resolving import Resolved, resolve, share
from gateway.sequences import NO_SEQUENCE, Seat, SequenceMark, Sequences
from gateway.settings import RETRY_AFTER_S, Settings, in_all

MAX_KEY = 128
"""Characters of a correlation id; Triton refuses longer ones, and here they would be remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where one request goes. `once`: it must not be sent a second time, since it belongs to a sequence."""

    resolved: Resolved
    endpoint: Endpoint
    once: bool


class Forwarding:
    """Chooses destinations; shared by the gRPC and the HTTP side.

    `shed` counts by model what was refused since there was too much.
    """

    def __init__(self, settings: Settings, holding: Holding, replicas: Replicas, sequences: Sequences) -> None:
        self._settings = settings
        self.shed: Counter[str] = Counter()
        self.holding = holding
        self.replicas = replicas
        self.sequences = sequences

    async def destination(
        self,
        model: str,
        wish: str,
        *,
        mark: SequenceMark = NO_SEQUENCE,
        size_bytes: int = 0,
        remaining_s: float | None = None,
    ) -> Destination:
        """Where a request goes, as soon as it goes anywhere. Raises NotFound, Unavailable, Overloaded, InvalidInput."""
        if len(mark.key) > MAX_KEY:
            raise InvalidInput(f"the sequence's id is longer than {MAX_KEY} characters")
        now = asyncio.get_running_loop().time()
        seat = self.sequences.seat(model, mark, now) if mark.key else None
        if seat is not None and not wish:
            wish = str(seat.version)
        # By the correlation id, so that gateways agree about the version of a sequence too.
        draw = share(f"{model}\n{mark.key}") if mark.key else random.uniform(0, 100)  # noqa: S311 - a share of traffic
        resolved = resolve(self.holding.table, model, wish, draw)
        try:
            if resolved.members:
                self._check_room(resolved, goes_on=seat is not None)
            else:  # whoever has waited is let through: the bounds on waiting bound these as well
                resolved = await self.holding.route(
                    model, wish, size_bytes=size_bytes, remaining_s=remaining_s, draw=draw
                )
        except Overloaded:
            self.shed[model] += 1
            raise
        if resolved.sequences and mark.key:
            return self._sequence(resolved, mark, seat)
        endpoint = self.replicas.pick(resolved.members)
        if endpoint is None:
            raise Unavailable(f"no replica of {model} version {resolved.version} takes new requests at present")
        return Destination(resolved=resolved, endpoint=endpoint, once=resolved.sequences)

    def loaded(self, model: str, wish: str) -> bool:
        """Whether a request would go somewhere at once. Raises NotFound."""
        return bool(resolve(self.holding.table, model, wish, 0.0).members)

    def next(self, destination: Destination, tried: list[str]) -> Destination | None:
        """Another destination after a failure; None when there is none or the request must not be sent again."""
        endpoint = None if destination.once else self.replicas.pick(destination.resolved.members, tried)
        return Destination(resolved=destination.resolved, endpoint=endpoint, once=False) if endpoint else None

    def _check_room(self, resolved: Resolved, *, goes_on: bool) -> None:
        """Raises Overloaded when the replicas have as many requests in flight from here as they may have; or the
        version, if more is asked of it than they can do.

        A sequence that goes on counts as high: its beginning would have been in vain.
        """
        high = resolved.high or goes_on
        most = in_all(self._settings.per_replica(resolved.pace), len(resolved.members), high=high)
        if self.replicas.taken(resolved.members, resolved.alone) >= most:
            raise Overloaded(
                f"the replicas of {resolved.model} have as many requests in flight as they may have; "
                "this one was not passed on, ask again in a moment",
                retry_after_s=RETRY_AFTER_S,
            )

    def _sequence(self, resolved: Resolved, mark: SequenceMark, seat: Seat | None) -> Destination:
        fit = replace(resolved, members=self.replicas.well(resolved.members)) if mark.start else resolved
        replica = seat.replica if seat is not None else self.sequences.choose(fit, mark)
        endpoint = self.holding.table.endpoints.get(replica) if replica is not None else None
        if replica is None or endpoint is None:
            raise Unavailable(
                f"the replica of sequence {mark.key} of {resolved.model} is gone; begin the sequence anew"
                if seat is not None
                else f"no replica of {resolved.model} version {resolved.version} takes new sequences at present"
            )
        until = asyncio.get_running_loop().time() + resolved.sequence_idle_s
        self.sequences.keep(resolved.model, mark, Seat(replica=replica, version=resolved.version, until=until))
        return Destination(resolved=resolved, endpoint=endpoint, once=True)
