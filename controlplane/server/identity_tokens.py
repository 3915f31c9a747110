"""Callers known by their ServiceAccount's token, which the API server checks (TokenReview)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
from kubernetes.client import ApiException, AuthenticationV1Api, Configuration
from urllib3.exceptions import HTTPError

from controlplane.core.errors import Busy, ControlPlaneError, Unauthenticated, Unavailable
from controlplane.fleet.cluster import client_of, told
from controlplane.server.identity import Caller, Forbidden

log = structlog.get_logger(__name__)

AUDIENCE = "triton-controlplane"
POD_NAME = "authentication.kubernetes.io/pod-name"
SCHEME = b"bearer "

KNOWN_S = 60.0
"""How long a caller is known by one review, at most: so long may a token go on that was revoked."""
FRESH_S = 30.0
"""From then on he is reviewed again, but known while the API server is away."""
REFUSED_S = 5.0
MOST_KNOWN, MOST_REFUSED = 10_000, 1_000
MOST_WAITING = 1_000
LONGEST_TOKEN = 16 << 10
TIMEOUT_S = 3.0
RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What the API server says of a token. `problem`: why it is not accepted."""

    authenticated: bool
    audiences: frozenset[str] = frozenset()
    user: str = ""
    pod: str = ""
    problem: str = ""


Ask = Callable[[str], Review]
"""Has a token reviewed. Blocks; raises ControlPlaneError when there is no answer."""


def reviewer(configuration: Configuration, audience: str = AUDIENCE) -> Ask:
    """Asks the API server."""
    api = AuthenticationV1Api(client_of(configuration))

    def ask(token: str) -> Review:
        body = {"spec": {"token": token, "audiences": [audience]}}
        try:
            answer: Any = api.create_token_review(
                cast(Any, body),
                _preload_content=False,
                _request_timeout=TIMEOUT_S,  # it takes plain data too
            )
            return review_of(json.loads(answer.data))
        except ApiException as error:
            raise told(error, "create tokenreviews") from error
        except (HTTPError, OSError) as error:
            raise Unavailable(f"the API server does not answer: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable("the API server's answer is no TokenReview") from error

    return ask


def review_of(answer: dict[str, Any]) -> Review:
    """A TokenReview's status."""
    status = answer.get("status") or {}
    user = status.get("user") or {}
    pods = (user.get("extra") or {}).get(POD_NAME) or [""]
    return Review(
        authenticated=status.get("authenticated") is True,
        audiences=frozenset(status.get("audiences") or ()),
        user=str(user.get("username") or ""),
        pod=str(pods[0]),
        problem=str(status.get("error") or ""),
    )


def caller_of(review: Review, *, namespace: str, release: str, audience: str = AUDIENCE) -> Caller:
    """Who that is, in the release of this name. Raises Unauthenticated, Forbidden."""
    if not review.authenticated or audience not in review.audiences:
        raise Unauthenticated(
            "the API server does not accept this token" + (f": {review.problem}" if review.problem else ""),
            remedy=f"send a ServiceAccount's token for the audience {audience} that has not expired",
        )
    account = f"system:serviceaccount:{namespace}:{release}"
    if review.user == f"{account}-ctl":
        return Caller(kind="reader", name=review.user)
    if review.user not in (f"{account}-fleet", f"{account}-gateway"):
        raise Forbidden(
            f"{review.user} is nobody that this controller knows",
            remedy=f"it knows the ServiceAccounts {release}-fleet, {release}-gateway and {release}-ctl of {namespace}",
        )
    if not review.pod:
        raise Forbidden(
            f"the token of {review.user} names no pod, so it can't be told whose it is",
            remedy="use the token that is projected into the pod",
        )
    return Caller(kind="agent" if review.user.endswith("-fleet") else "gateway", name=review.pod)


@dataclass(slots=True)
class _Known:
    """The outcome of a review. `fresh_until`, `until`: by the monotonic clock."""

    outcome: Caller | ControlPlaneError
    fresh_until: float
    until: float

    def result(self) -> Caller:
        if isinstance(self.outcome, Caller):
            return self.outcome
        raise self.outcome


@dataclass(slots=True)
class _Kept:
    """What was found out, by the token's hash, bounded: who was not asked for longest goes first."""

    most: int
    found: OrderedDict[bytes, _Known] = field(default_factory=OrderedDict)

    def get(self, key: bytes, now: float) -> _Known | None:
        known = self.found.get(key)
        if known is None or now >= known.until:
            self.found.pop(key, None)
            return None
        self.found.move_to_end(key)
        return known

    def keep(self, key: bytes, known: _Known) -> None:
        self.found[key] = known
        self.found.move_to_end(key)
        while len(self.found) > self.most:
            self.found.popitem(last=False)


class ReviewedTokens:
    """Callers by their tokens. Tokens are never kept: only their hashes are.

    A caller is known for up to a minute by one review, and never longer than his token is good for. Refusals are
    remembered apart and shortly, so that bad tokens neither push out good ones nor cost the API server much.
    """

    def __init__(self, ask: Ask, *, namespace: str, release: str, audience: str = AUDIENCE) -> None:
        self._ask = ask
        self._namespace, self._release, self._audience = namespace, release, audience
        self._known, self._refused = _Kept(MOST_KNOWN), _Kept(MOST_REFUSED)
        self._under_way: dict[bytes, asyncio.Task[Caller]] = {}
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="tokens")
        self._away = False

    async def __call__(self, authorization: bytes) -> Caller:
        """The caller with this header. Raises Unauthenticated, Forbidden; Busy while that can't be found out."""
        token = authorization[len(SCHEME) :].strip()
        if authorization[: len(SCHEME)].lower() != SCHEME or not token:
            raise Unauthenticated(
                "this call needs a token",
                remedy=f"send a ServiceAccount's token for the audience {self._audience} as a bearer token",
            )
        if len(token) > LONGEST_TOKEN or not token.isascii():
            raise Unauthenticated("this is no token of a ServiceAccount")
        key, now = hashlib.sha256(token).digest(), time.monotonic()
        known = self._known.get(key, now) or self._refused.get(key, now)
        if known is not None and now < known.fresh_until:
            return known.result()
        try:
            # Many may come with the same token at once, and one may go away meanwhile.
            return await asyncio.shield(self._review_once(key, token.decode()))
        except Busy:
            if known is not None:
                return known.result()
            raise

    def _review_once(self, key: bytes, token: str) -> asyncio.Task[Caller]:
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= MOST_WAITING:
                raise Busy("too many callers are being looked at", retry_after_s=RETRY_AFTER_S)
            task = self._under_way[key] = asyncio.create_task(self._review(key, token))
            task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def _forget(self, key: bytes, done: asyncio.Task[Caller]) -> None:
        self._under_way.pop(key, None)
        with contextlib.suppress(asyncio.CancelledError):
            done.exception()  # whoever asked may be gone

    async def _review(self, key: bytes, token: str) -> Caller:
        try:
            review = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, token)
        except ControlPlaneError as error:
            if not self._away:
                log.warning("callers can't be identified; those who are known go on for a while", reason=str(error))
            self._away = True
            raise Busy(
                "the API server does not tell at present who calls",
                retry_after_s=RETRY_AFTER_S,
                remedy="ask again; the controller's log says why",
            ) from error
        if self._away:
            log.info("callers can be identified again")
        self._away = False
        now = time.monotonic()
        try:
            caller = caller_of(review, namespace=self._namespace, release=self._release, audience=self._audience)
        except ControlPlaneError as error:
            self._known.found.pop(key, None)
            self._refused.keep(key, _Known(error, now + REFUSED_S, now + REFUSED_S))
            raise
        for_s = min(KNOWN_S, left_s(token, time.time()))
        self._known.keep(key, _Known(caller, now + min(FRESH_S, for_s), now + for_s))
        return caller


def left_s(token: str, now: float) -> float:
    """For how long a token that was found good is good yet: 0 where it does not say so, or is over by this clock."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return max(float(claims["exp"]) - now, 0.0)
    except (ValueError, KeyError, TypeError, IndexError):
        return 0.0
