"""One registry, two installations of one name: who is there keeps it."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from controlplane.core.errors import Conflict
from controlplane.registry import Registry
from controlplane.server.claiming import claim
from tests.server.conftest import Service
from tests.waiting import until

LONG_S = 300.0
"""Nobody waits so long here."""


def test_who_lives_keeps_it_and_says_who_came(registry: Registry, service: Service, http: httpx2.Client) -> None:
    before = registry.control_plane()
    assert before is not None and before.installation == "first"
    with pytest.raises(Conflict, match=r"in use by another installation of test .*the uid first.*a prefix of its own"):
        asyncio.run(claim(registry, "test", "second", contest_s=LONG_S))
    present = registry.control_plane()
    assert present is not None
    assert (present.epoch, present.installation, present.contender) == (before.epoch, "first", "")
    assert service.ended is None
    until(lambda: "the uid second" in http.get("/v1/status").json()["problems"].get("registry", ""))


async def test_who_is_gone_is_followed(registry: Registry) -> None:
    registry.claim("test", "first")
    assert await claim(registry, "test", "second", contest_s=0.6) == 2
    present = registry.control_plane()
    assert present is not None and (present.installation, present.contender) == ("second", "")
    with pytest.raises(Conflict, match="the uid second"):
        registry.claim("test", "first")


async def test_the_same_one_and_what_earlier_releases_have_claimed_is_taken_at_once(registry: Registry) -> None:
    registry.store.put("control-plane.json", b'{"format": 1, "id": "test", "epoch": 7}')
    assert await claim(registry, "test", "first", contest_s=LONG_S) == 8
    assert await claim(registry, "test", "first", contest_s=LONG_S) == 9
    assert await claim(registry, "test", contest_s=LONG_S) == 10, "by who can't know which installation it is"
    present = registry.control_plane()
    assert present is not None and present.installation == "first"


def test_a_standby_that_takes_over_meanwhile_lives_too(registry: Registry) -> None:
    registry.claim("test", "first")
    assert registry.contend("test", "second")
    registry.check_contest("second")
    registry.claim("test", "first")
    with pytest.raises(Conflict):
        registry.check_contest("second")
    with pytest.raises(Conflict):
        registry.claim("test", "second")


def test_only_the_present_controller_refuses(registry: Registry) -> None:
    epoch = registry.claim("test", "first")
    assert not registry.contend("test", "first")
    assert not registry.contend("another", "second"), "that is told by the claim itself"
    assert registry.contend("test", "second")
    registry.defend(epoch - 1)
    registry.check_contest("second")
    registry.defend(epoch)
    with pytest.raises(Conflict):
        registry.check_contest("second")
