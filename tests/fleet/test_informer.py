"""How often an API server is asked that answers nothing of use."""

from __future__ import annotations

import time

import pytest
from kubernetes.client import ApiException

from controlplane.fleet.informer import Informer


@pytest.mark.parametrize("status", [403, 410, 500])
def test_a_list_that_always_fails_is_not_asked_for_in_a_hurry(status: int) -> None:
    asked = []

    def listing(**_: object) -> None:
        asked.append(status)
        raise ApiException(status=status)

    informer = Informer("pods", listing, {}, lambda: None)
    informer.start()
    time.sleep(1.0)
    informer.stop()
    assert 2 <= len(asked) < 8
    assert informer.problem is not None
