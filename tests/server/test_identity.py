"""Who may call what, and for how long a review of a token is believed. With a real API server: tests/kubernetes."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from typing import Any

import pytest

from controlplane.core.errors import Busy, ControlPlaneError, Unauthenticated, Unavailable
from controlplane.server import identity_tokens
from controlplane.server.identity import Caller, Forbidden, SharedToken, permit
from controlplane.server.identity_tokens import AUDIENCE, Review, ReviewedTokens, caller_of, left_s, review_of

AGENT = Caller(kind="agent", name="pod-0")
GATEWAY = Caller(kind="gateway", name="gw-0")
READER = Caller(kind="reader", name="somebody")
ALL = Caller(kind="all")


@pytest.mark.parametrize(
    ("caller", "method", "path", "may"),
    [
        (AGENT, "POST", "/v1/replicas/pod-0/sync", True),
        (AGENT, "POST", "/v1/replicas/pod-1/sync", False),
        (AGENT, "POST", "/v1/gateways/pod-0/sync", False),
        (AGENT, "POST", "/v1/replicas/pod-0/sync/", False),
        (AGENT, "POST", "/v1/replicas/pod-0/../pod-1/sync", False),
        (AGENT, "GET", "/v1/replicas/pod-0/sync", False),
        (AGENT, "GET", "/v1/status", False),
        (AGENT, "GET", "/metrics", False),
        (GATEWAY, "POST", "/v1/gateways/gw-0/sync", True),
        (GATEWAY, "POST", "/v1/gateways/gw-1/sync", False),
        (GATEWAY, "POST", "/v1/replicas/gw-0/sync", False),
        (GATEWAY, "GET", "/v1/routes", False),
        (READER, "GET", "/v1/status", True),
        (READER, "HEAD", "/v1/status", True),
        (READER, "GET", "/metrics", True),
        (READER, "POST", "/v1/replicas/pod-0/sync", False),
        (READER, "DELETE", "/v1/status", False),
        (Caller(kind="reader", name="pod-0"), "POST", "/v1/replicas/pod-0/sync", False),
        (ALL, "POST", "/v1/replicas/pod-0/sync", True),
        (ALL, "GET", "/v1/status", True),
    ],
)
def test_who_may_what(caller: Caller, method: str, path: str, may: bool) -> None:
    if may:
        permit(caller, method, path)
    else:
        with pytest.raises(Forbidden, match=method):
            permit(caller, method, path)


async def test_a_shared_token_opens_everything() -> None:
    identify = SharedToken("secret")
    assert await identify(b"Bearer secret") == ALL
    for wrong in (b"", b"secret", b"Bearer secre", b"Bearer secret2", b"bearer secret", "Bearer sécret".encode()):
        with pytest.raises(Unauthenticated):
            await identify(wrong)


def review(user: str, *, pod: str = "pod-0", audience: str = AUDIENCE, authenticated: bool = True) -> Review:
    return Review(authenticated=authenticated, audiences=frozenset({audience}), user=user, pod=pod)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (review("system:serviceaccount:ns:r-fleet"), AGENT),
        (review("system:serviceaccount:ns:r-gateway", pod="gw-0"), GATEWAY),
        (review("system:serviceaccount:ns:r-ctl"), Caller(kind="reader", name="system:serviceaccount:ns:r-ctl")),
        (review("system:serviceaccount:ns:r-fleet", pod=""), Forbidden),
        (review("system:serviceaccount:ns:r-gateway", pod=""), Forbidden),
        (review("system:serviceaccount:other:r-fleet"), Forbidden),
        (review("system:serviceaccount:ns:other-r-fleet"), Forbidden),
        (review("system:serviceaccount:ns:r-controller"), Forbidden),
        (review("system:admin"), Forbidden),
        (review("system:serviceaccount:ns:r-fleet", audience="another"), Unauthenticated),
        (review("system:serviceaccount:ns:r-fleet", authenticated=False), Unauthenticated),
        (Review(authenticated=True, user="system:serviceaccount:ns:r-fleet", pod="pod-0"), Unauthenticated),
    ],
)
def test_who_a_review_says_it_is(given: Review, found: Caller | type[ControlPlaneError]) -> None:
    if isinstance(found, Caller):
        assert caller_of(given, namespace="ns", release="r") == found
    else:
        with pytest.raises(found) as error:
            caller_of(given, namespace="ns", release="r")
        assert type(error.value) is found


def test_what_an_answer_leaves_out_grants_nothing() -> None:
    nobody = Review(authenticated=False)
    answers: list[dict[str, Any]] = [
        {},
        {"status": None},
        {"status": {}},
        {"status": {"user": None, "audiences": None}},
    ]
    for answer in answers:
        assert review_of(answer) == nobody
    assert not review_of({"status": {"authenticated": "true"}}).authenticated


def token(number: int = 0, *, good_for_s: float = 3600.0) -> str:
    claims = json.dumps({"exp": time.time() + good_for_s, "n": number}).encode()
    return f"head.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.signature"


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.!!!.c", "a.e30.c", "a.bnVsbA.c", "a." + "e" * 1001 + ".c"])
def test_a_token_that_does_not_say_how_long_it_is_good_is_not_remembered(text: str) -> None:
    assert left_s(text, 0.0) == 0.0


class Reviewer:
    """Has all tokens reviewed as the fleet's; counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away: ControlPlaneError | None = None
        self.answer = review("system:serviceaccount:ns:r-fleet")
        self.go = threading.Event()
        self.go.set()

    def __call__(self, text: str) -> Review:
        self.asked.append(text)
        assert self.go.wait(10)
        if self.away is not None:
            raise self.away
        return self.answer


def reviewed(ask: Reviewer) -> ReviewedTokens:
    return ReviewedTokens(ask, namespace="ns", release="r")


def header(text: str) -> bytes:
    return f"Bearer {text}".encode()


async def test_a_review_is_believed_for_a_while() -> None:
    ask = Reviewer()
    identify, one = reviewed(ask), token()
    for _ in range(5):
        assert await identify(header(one)) == AGENT
    assert await identify(b"bearer   " + one.encode() + b" ") == AGENT
    assert ask.asked == [one]


async def test_a_review_is_not_believed_longer_than_the_token_is_good() -> None:
    ask = Reviewer()
    identify, one = reviewed(ask), token(good_for_s=-60)
    for _ in range(2):
        await identify(header(one))
    assert len(ask.asked) == 2, "the API server's clock decides, and this one has nothing to go by"


async def test_the_known_go_on_for_a_while_without_an_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_tokens, "FRESH_S", 0.0)
    ask = Reviewer()
    identify, one = reviewed(ask), token()
    await identify(header(one))
    ask.away = Unavailable("away")
    assert await identify(header(one)) == AGENT
    assert len(ask.asked) == 2, "it is asked, since the review is not fresh"
    with pytest.raises(Busy):
        await identify(header(token(1)))
    monkeypatch.setattr(identity_tokens, "KNOWN_S", 0.0)
    ask.away = None
    await identify(header(one))
    ask.away = Unavailable("away")
    with pytest.raises(Busy):
        await identify(header(one))


async def test_who_is_refused_meanwhile_is_known_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_tokens, "FRESH_S", 0.0)
    ask = Reviewer()
    identify, one = reviewed(ask), token()
    await identify(header(one))
    ask.answer = Review(authenticated=False, problem="the pod is gone")
    with pytest.raises(Unauthenticated, match="the pod is gone"):
        await identify(header(one))
    ask.away = Unavailable("away")
    with pytest.raises(Unauthenticated):
        await identify(header(one))


async def test_refusals_cost_little_and_push_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_tokens, "MOST_REFUSED", 10)
    ask = Reviewer()
    identify, good, bad = reviewed(ask), token(), token(1)
    await identify(header(good))
    ask.answer = Review(authenticated=False)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await identify(header(bad))
    assert ask.asked == [good, bad]
    for number in range(2, 50):
        with pytest.raises(Unauthenticated):
            await identify(header(token(number)))
    assert await identify(header(good)) == AGENT


async def test_how_many_are_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_tokens, "MOST_KNOWN", 3)
    ask = Reviewer()
    identify, each = reviewed(ask), [token(number) for number in range(4)]
    for number in (0, 1, 2, 0, 3, 0, 3, 2, 1):
        await identify(header(each[number]))
    assert ask.asked == [each[0], each[1], each[2], each[3], each[1]], "who was silent for longest is forgotten"


async def test_many_at_once_with_one_token_are_one_review() -> None:
    ask = Reviewer()
    ask.go.clear()
    identify, one = reviewed(ask), token()
    calls = [asyncio.ensure_future(identify(header(one))) for _ in range(20)]
    await asyncio.sleep(0.05)
    calls[0].cancel()
    ask.go.set()
    found: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [AGENT] * 19
    assert len(ask.asked) == 1


async def test_too_many_at_once_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_tokens, "MOST_WAITING", 4)
    ask = Reviewer()
    ask.go.clear()
    identify = reviewed(ask)
    calls = [asyncio.ensure_future(identify(header(token(number)))) for number in range(6)]
    await asyncio.sleep(0.05)
    ask.go.set()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [Caller] * 4 + [Busy] * 2


@pytest.mark.parametrize(
    "sent", [b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"Bearer \xff\xfe", b"Bearer " + b"x" * 20_000], ids=repr
)
async def test_what_is_no_token_is_not_reviewed(sent: bytes) -> None:
    ask = Reviewer()
    with pytest.raises(Unauthenticated):
        await reviewed(ask)(sent)
    assert not ask.asked
