"""Reads the API of a release's leader, and reaches its gateway, each through a bridge of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2

from controlplane.cli.cluster.api import NobodyThere
from controlplane.cli.cluster.bridge import Bridge
from controlplane.cli.cluster.release import GRPC_PORT, Release, Token
from controlplane.cli.cluster.tunnel import AGAIN, PodTunnel, open_tunnel
from controlplane.client.access import Access
from controlplane.client.reader import Reader
from controlplane.core.errors import ControlPlaneError, NotLeader, Unavailable

AGAIN_S = 1.0
"""The pause before who leads is looked up again."""
HAND_OVER_S = 15.0
"""Until then somebody leads, also where a leader has died without giving its lease back."""
RENEW_S = 60.0
"""A token is renewed when it is good for less than that."""


class LeaderReader:
    """What `Reader` is for a home: GETs, answered by whoever leads. Use it as a context manager.

    When the leader's pod goes, or leads no more, the call is made again, to whoever leads then, for `patience_s`;
    after any other failure to reach it, once.
    """

    def __init__(self, release: Release, *, patience_s: float = HAND_OVER_S) -> None:
        self._release = release
        self._patience_s = patience_s
        self._open = ExitStack()
        self._reader: Reader | None = None
        self._bridge: Bridge | None = None
        self._token: Token | None = None
        self._pod = ""

    def get(self, path: str) -> Any:
        """What a GET answers, as plain data. Raises the controller's own error, or what keeps it from being asked."""
        failures, end = 0, time.monotonic() + self._patience_s
        while True:
            try:
                return self._get(path)
            except (Unavailable, NotLeader) as error:
                failures += 1
                passes = isinstance(error, NobodyThere | NotLeader) and time.monotonic() < end
                if failures > 1 and not passes:
                    raise
            time.sleep(AGAIN_S)

    def _get(self, path: str) -> Any:
        try:
            reader = self._connected()
        except ControlPlaneError:
            self.close()
            raise
        try:
            return reader.get(path)
        except NotLeader:
            self.close()
            raise
        except Unavailable as error:
            why = self._bridge.failure if self._bridge is not None else None
            self.close()
            if why is not None:
                raise why from error
            if isinstance(error.__cause__, httpx2.HTTPError):
                raise NobodyThere(
                    f"the controller in pod {self._pod} does not answer: {error.__cause__}", remedy=AGAIN
                ) from error
            raise NobodyThere(error.what, remedy=error.remedy) from error  # in that controller's own words

    def _connected(self) -> Reader:
        if self._token is not None and self._token.until - time.monotonic() < RENEW_S:
            self.close()
        if self._reader is None:
            leader = self._release.leader()
            self._pod = leader.pod
            self._token = token = self._release.token()
            api = self._release.api
            self._bridge = self._open.enter_context(Bridge(lambda: open_tunnel(api, leader.pod, leader.port)))
            # Where a standby says that the leader is, only pods get: a token must not go there.
            self._reader = self._open.enter_context(
                Reader(Access(url=f"http://{self._bridge.address}", token=token.value), follows=False)
            )
        return self._reader

    def close(self) -> None:
        """Give connection, bridge and token up; another call makes them anew."""
        self._reader = self._token = self._bridge = None
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class BridgedGateway:
    """A gateway behind a bridge. `shown` is its address inside the cluster."""

    bridge: Bridge
    shown: str

    @property
    def address(self) -> str:
        """The bridge's own."""
        return self.bridge.address

    @property
    def failure(self) -> ControlPlaneError | None:
        """Why nothing gets there, where that is known."""
        return self.bridge.failure


@contextmanager
def open_gateway(release: Release) -> Iterator[BridgedGateway]:
    """The way to a gateway that is ready; when its pod goes, to another one. Raises Unavailable when none is ready."""
    known = [release.gateway()]

    def opened() -> PodTunnel:
        try:
            return open_tunnel(release.api, known[0], GRPC_PORT)
        except Unavailable:
            known[0] = release.gateway()  # that one is gone
            return open_tunnel(release.api, known[0], GRPC_PORT)

    with Bridge(opened) as bridge:
        yield BridgedGateway(bridge, f"{release.name}-gateway.{release.api.namespace}:{GRPC_PORT}")
