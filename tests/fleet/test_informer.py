"""How often an API server is asked that answers nothing of use."""

from __future__ import annotations

import itertools
import threading

import pytest
from kubernetes.client import ApiException

from controlplane.fleet.informer import RETRY_MIN_S, Informer


class Stopping(threading.Event):
    """Is waited for without waiting, and set after a few times; `delays` are those that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.delays.append(timeout or 0.0)
        if len(self.delays) == 6:
            self.set()
        return self.is_set()


@pytest.mark.parametrize("status", [403, 410, 500])
def test_a_list_that_always_fails_is_not_asked_for_in_a_hurry(status: int) -> None:
    asked = []

    def listing(**_: object) -> None:
        asked.append(status)
        raise ApiException(status=status)

    informer = Informer("pods", listing, {}, lambda: None)
    informer._stopped = stopping = Stopping()
    informer._run()
    assert len(asked) - len(stopping.delays) == (status == 410), (
        "what is too old is listed anew at once, the first time"
    )
    assert min(stopping.delays) >= RETRY_MIN_S / 2
    assert all(later > earlier for earlier, later in itertools.pairwise(stopping.delays[::2]))
    assert informer.problem is not None
