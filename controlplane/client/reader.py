"""Reads the controller's API, for `ctl` and for the console's tests."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx2

from controlplane.client.access import Access, read_access
from controlplane.client.following import MISDIRECTED, MOST_HOPS, Leader
from controlplane.core.errors import ControlPlaneError, Unavailable
from controlplane.local.home import Home

TIMEOUT_S = 10.0


class Reader:
    """One connection to a controller; use it as a context manager. `follows`: whether it goes where a standby says that
    the leader is; else it raises NotLeader."""

    def __init__(self, access: Access, *, follows: bool = True) -> None:
        self._url = access.url
        self._follows = follows
        self._leader = Leader()
        self._http = httpx2.Client(
            headers={"authorization": f"Bearer {access.token}"},
            timeout=httpx2.Timeout(TIMEOUT_S, connect=2.0),
            trust_env=False,  # the controller is on this machine: no proxy leads there
        )

    @classmethod
    def of(cls, home: Home) -> Self:
        """A reader for the controller of a home. Raises Unavailable when it has never been there."""
        return cls(read_access(home.controller_file, home.token_file))

    def get(self, path: str) -> Any:
        """What a GET answers, as plain data. Raises the controller's own error, or Unavailable."""
        try:
            answer = self._ask(path)
            content = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise Unavailable(
                f"the controller at {self._url} does not answer: {error}",
                remedy="look at `ctl up`'s output and the logs in its home",
            ) from error
        if answer.is_error:
            raise _error(content, answer.status_code)
        return content

    def _ask(self, path: str) -> httpx2.Response:
        """The answer of whoever leads."""
        for hop in range(MOST_HOPS + 1):
            try:
                answer = self._http.get(self._leader.url(self._url) + path)
            except httpx2.TransportError:
                self._leader.failed()
                raise
            if answer.status_code != MISDIRECTED or not self._follows:
                break
            if not self._leader.follow(answer.headers.get("location")):
                break
            if hop == MOST_HOPS:
                self._leader.failed()
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()


def _error(content: object, status: int) -> ControlPlaneError:
    details = content.get("error") if isinstance(content, dict) else None
    if not isinstance(details, dict):
        return Unavailable(f"the controller answered with HTTP status {status}")
    kinds = {kind.code: kind for kind in reversed(_kinds(ControlPlaneError))}
    kind = kinds.get(str(details.get("code")), ControlPlaneError)
    return kind(str(details.get("message")), field=details.get("field"), remedy=details.get("remedy"))


def _kinds(base: type[ControlPlaneError]) -> list[type[ControlPlaneError]]:
    """Every error that is made of a sentence, a field and a remedy; the general ones first."""
    made = [kind for kind in base.__subclasses__() if kind.__init__ is ControlPlaneError.__init__]
    return [*made, *(each for kind in made for each in _kinds(kind))]
