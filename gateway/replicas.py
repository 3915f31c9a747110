"""The Python side's way to the replicas: channels, requests in flight, and who gets the next one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grpc
import grpc.aio
import httpx2

from controlplane.core.names import Key
from controlplane.core.routes import Endpoint
from gateway.settings import GONE_S, Settings

ERRORS_IN_ROW = 30
AWAY_S, MOST_AWAY_S = 2.0, 30.0
"""After so many failed inferences in a row a replica is put away for so long, longer each time: as in Envoy's
clusters."""

GONE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_S // 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_S),
)
PING_S = 600
"""How often gRPC asks a server whether it is there. Triton ends connections on which that is more often than 300 s."""

LOOK_EVERY_S = 0.1


class Replicas:
    """Connections to replicas, kept while the replicas are in the table."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_request_bytes + (1 << 20)
        self._channels: dict[str, Any] = {}
        self._in_flight: Counter[str] = Counter()
        self._shared: Counter[str] = Counter()
        self._alone: Counter[Key] = Counter()
        self._errors: Counter[str] = Counter()
        self._away: dict[str, tuple[int, float]] = {}
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self._timeout = httpx2.Timeout(
            connect=2.0, read=settings.idle_timeout_s, write=settings.idle_timeout_s, pool=None
        )
        self._tls = ssl.create_default_context()  # one for all, never used: the default is one for each client

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Requests of the Python side in flight, by replica."""
        return self._in_flight

    def pick(self, members: Iterable[Endpoint], tried: Iterable[str] = ()) -> Endpoint | None:
        """The member with the fewest requests in flight from here; none that drains, none that was tried."""
        avoided = set(tried)
        free = [each for each in self.well(members) if not each.draining and each.replica not in avoided]
        if not free:
            return None
        random.shuffle(free)
        return min(free, key=lambda each: self._in_flight[each.replica])

    def well(self, members: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        """The members without those that are put away; all of them where that would be more than half."""
        known, now = tuple(members), time.monotonic()
        left = tuple(each for each in known if self._away.get(each.replica, (0, 0.0))[1] <= now)
        return left if 2 * len(left) >= len(known) else known

    def heard(self, endpoint: Endpoint, *, failed: bool) -> None:
        """A replica has answered an inference: with the error that it `failed`, or with anything else."""
        name = endpoint.replica
        if not failed:
            self._errors.pop(name, None)
            self._away.pop(name, None)
            return
        self._errors[name] += 1
        times, until = self._away.get(name, (0, 0.0))
        if self._errors[name] >= ERRORS_IN_ROW and until <= time.monotonic():
            self._errors.pop(name)
            self._away[name] = (times + 1, time.monotonic() + min(AWAY_S * (times + 1), MOST_AWAY_S))

    def taken(self, members: Iterable[Endpoint], alone: Key | None) -> int:
        """How many places these have given away from here: to the version that is `alone` there, or to all others."""
        return self._alone[alone] if alone is not None else sum(self._shared[each.replica] for each in members)

    @contextlib.contextmanager
    def request(self, endpoint: Endpoint, alone: Key | None) -> Iterator[None]:
        """Count a request while it runs. `alone`: its version, where that has places of its own."""
        place: tuple[Counter[Any], Any] = (self._alone, alone) if alone else (self._shared, endpoint.replica)
        counted: tuple[tuple[Counter[Any], Any], ...] = ((self._in_flight, endpoint.replica), place)
        for counter, name in counted:
            counter[name] += 1
        try:
            yield
        finally:
            for counter, name in counted:
                counter[name] -= 1
                if not counter[name]:
                    del counter[name]

    def channel(self, endpoint: Endpoint) -> Any:
        """The channel to a replica's gRPC port."""
        target = endpoint.grpc
        if target not in self._channels:
            self._channels[target] = grpc.aio.insecure_channel(
                target,
                options=[
                    ("grpc.max_send_message_length", -1),
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.enable_http_proxy", 0),
                    # With these it sets TCP_USER_TIMEOUT.
                    ("grpc.keepalive_time_ms", 1000 * PING_S),
                    ("grpc.keepalive_timeout_ms", 1000 * GONE_S),
                ],
            )
        return self._channels[target]

    def http(self, endpoint: Endpoint) -> httpx2.AsyncClient:
        """The client of a replica's HTTP port. Its connections are not bounded here: Envoy bounds what comes in."""
        if endpoint.replica not in self._clients:
            transport = httpx2.AsyncHTTPTransport(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=30.0),
                verify=self._tls,
                trust_env=False,
                socket_options=GONE,
            )
            self._clients[endpoint.replica] = httpx2.AsyncClient(
                timeout=self._timeout, transport=transport, follow_redirects=False, trust_env=False
            )
        return self._clients[endpoint.replica]

    async def forget_others(self, endpoints: Iterable[Endpoint]) -> None:
        """Close the channels to replicas that are gone, and forget them; calls under way there may end first.

        HTTP connections are closed to draining replicas too: a Triton that is told to stop waits for idle ones.
        """
        known = tuple(endpoints)
        serving = {each.replica for each in known if not each.draining}
        await asyncio.gather(
            *(self._close_when_idle(name) for name in self._clients.keys() - serving), self._forget_others(known)
        )

    async def _close_when_idle(self, replica: str) -> None:
        client = self._clients.pop(replica)
        try:
            while self._in_flight[replica]:  # noqa: ASYNC110 - nobody is told when a count is zero
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            await client.aclose()

    async def _forget_others(self, known: tuple[Endpoint, ...]) -> None:
        names = {each.replica for each in known}
        for name in (self._errors.keys() | self._away.keys()) - names:
            self._errors.pop(name, None)
            self._away.pop(name, None)
        wanted = {each.grpc for each in known}
        # Taken out before anything is waited for: meanwhile an address may come back, with a channel of its own.
        gone = [self._channels.pop(target) for target in self._channels.keys() - wanted]
        await asyncio.gather(*(channel.close(grace=60.0) for channel in gone))

    async def close(self) -> None:
        """Close everything."""
        for channel in self._channels.values():
            await channel.close()
        for client in self._clients.values():
            await client.aclose()
