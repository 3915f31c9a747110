"""Who may call what, with tokens that a real API server makes and reviews."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from pydantic import TypeAdapter
from structlog.testing import capture_logs

from controlplane.client.access import Access
from controlplane.client.reader import Reader
from controlplane.core.errors import Busy, Unauthenticated
from controlplane.core.messages import GatewayReport, ReplicaReport
from controlplane.fleet.cluster import configured
from controlplane.server.identity import Caller, Forbidden
from controlplane.server.identity_tokens import AUDIENCE, ReviewedTokens, reviewer
from tests.kubernetes.candidate import REPLICA, SHAPE
from tests.kubernetes.candidates import RELEASE, Candidate, permissions
from tests.kubernetes.control_plane import ISSUER, ControlPlane
from tests.waiting import until

GATEWAY, OTHER = f"{RELEASE}-gateway-0", f"{RELEASE}-cpu-1"

OBJECTS = """\
apiVersion: v1
kind: ServiceAccount
metadata: {name: serving-fleet}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: serving-gateway}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: serving-ctl}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: another-fleet}
---
apiVersion: v1
kind: Pod
metadata: {name: serving-cpu-0}
spec: {serviceAccountName: serving-fleet, containers: [{name: main, image: nobody-pulls-this}]}
---
apiVersion: v1
kind: Pod
metadata: {name: serving-cpu-1}
spec: {serviceAccountName: serving-fleet, containers: [{name: main, image: nobody-pulls-this}]}
---
apiVersion: v1
kind: Pod
metadata: {name: serving-gateway-0}
spec: {serviceAccountName: serving-gateway, containers: [{name: main, image: nobody-pulls-this}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec: {serviceAccountName: another-fleet, containers: [{name: main, image: nobody-pulls-this}]}
"""


@pytest.fixture
def kubeconfig(api_server: ControlPlane, namespace: str) -> Path:
    api_server.kubectl("apply", f"--namespace={namespace}", "--filename=-", given=OBJECTS)
    return permissions(api_server, namespace)


@pytest.fixture
def controller(tmp_path: Path, namespace: str, kubeconfig: Path) -> Iterator[Candidate]:
    made = Candidate(tmp_path, "only", namespace, kubeconfig)
    try:
        until(lambda: made.leads, what="it does not lead")
        yield made
    finally:
        made.end()


class Tokens:
    """What the API server gives out here."""

    def __init__(self, api_server: ControlPlane, namespace: str) -> None:
        self._api_server, self._namespace = api_server, namespace

    def of(self, account: str, pod: str | None = None, audience: str | None = AUDIENCE) -> str:
        return self._api_server.token(self._namespace, f"{RELEASE}-{account}", audience=audience, pod=pod)


@pytest.fixture
def tokens(api_server: ControlPlane, namespace: str, kubeconfig: Path) -> Tokens:
    return Tokens(api_server, namespace)


def sync(controller: Candidate, token: str, *, replica: str = "", gateway: str = "", at: str = "") -> httpx2.Response:
    """An agent's or a gateway's call; `at`: in somebody else's place."""
    report: bytes
    if replica:
        path = f"/v1/replicas/{at or replica}/sync"
        said = ReplicaReport(replica=at or replica, fleet=SHAPE.name, incarnation="1", server="starting")
        report = TypeAdapter(ReplicaReport).dump_json(said)
    else:
        path = f"/v1/gateways/{at or gateway}/sync"
        report = TypeAdapter(GatewayReport).dump_json(GatewayReport(gateway=at or gateway, incarnation="1"))
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.post(f"{controller.url}{path}", content=report, headers=headers, timeout=10)


def refused(answer: httpx2.Response, status: int, said: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == "UNAUTHENTICATED"
    assert said in f"{error['message']} {error['remedy']}"


def test_an_agent_may_speak_for_its_own_pod_alone(controller: Candidate, tokens: Tokens) -> None:
    own = tokens.of("fleet", REPLICA)
    assert sync(controller, own, replica=REPLICA).status_code in (200, 204)
    refused(sync(controller, own, replica=REPLICA, at=OTHER), 403, f"/v1/replicas/{REPLICA}/sync")
    refused(sync(controller, own, gateway=REPLICA), 403, f"agent {REPLICA}")
    for path in ("/v1/status", "/v1/replicas", "/metrics", "/openapi.json", f"/v1/replicas/{REPLICA}/sync"):
        refused(controller.get(path, own), 403, f"agent {REPLICA}")
    refused(sync(controller, tokens.of("fleet", OTHER), replica=OTHER, at=REPLICA), 403, f"agent {OTHER}")
    refused(sync(controller, tokens.of("fleet"), replica=REPLICA), 403, "names no pod")


def test_a_gateway_may_speak_for_itself_alone(controller: Candidate, tokens: Tokens) -> None:
    own = tokens.of("gateway", GATEWAY)
    assert sync(controller, own, gateway=GATEWAY).status_code in (200, 204)
    refused(sync(controller, own, gateway=GATEWAY, at="another"), 403, f"/v1/gateways/{GATEWAY}/sync")
    refused(sync(controller, own, replica=GATEWAY), 403, f"gateway {GATEWAY}")
    refused(controller.get("/v1/routes", own), 403, f"gateway {GATEWAY}")


def test_people_read(controller: Candidate, tokens: Tokens, namespace: str) -> None:
    token = tokens.of("ctl")
    with Reader(Access(url=controller.url, token=token)) as reader:
        assert reader.get("/v1/status")["epoch"] == 1
        with pytest.raises(Unauthenticated, match="audience"):
            Reader(Access(url=controller.url, token="nonsense")).get("/v1/status")
    assert controller.get("/metrics", token).status_code == 200
    refused(sync(controller, token, replica=REPLICA), 403, f"system:serviceaccount:{namespace}:{RELEASE}-ctl may read")


def test_who_is_somebody_else_is_refused(
    api_server: ControlPlane, controller: Candidate, tokens: Tokens, namespace: str
) -> None:
    refused(controller.get("/v1/status"), 401, "needs a token")
    refused(controller.get("/v1/status", "nonsense"), 401, f"audience {AUDIENCE}")
    wrong = tokens.of("fleet", REPLICA, audience="another")
    refused(sync(controller, wrong, replica=REPLICA), 401, f"audience {AUDIENCE}")
    refused(sync(controller, tokens.of("fleet", REPLICA, audience=None), replica=REPLICA), 401, "audience")
    stranger = api_server.token(namespace, "another-fleet", audience=AUDIENCE, pod="stranger")
    refused(sync(controller, stranger, replica=REPLICA), 403, f"{namespace}:another-fleet is nobody")
    basic = httpx2.get(f"{controller.url}/v1/status", headers={"authorization": "Basic YTpi"})
    refused(basic, 401, "bearer token")


def test_an_expired_token_is_refused(
    api_server: ControlPlane, controller: Candidate, tokens: Tokens, namespace: str
) -> None:
    good = tokens.of("fleet", REPLICA)
    claims = json.loads(decoded(good.split(".")[1]))
    key = api_server.folder / "pki" / "service-accounts.key"
    assert sync(controller, signed(claims, good, key), replica=REPLICA).status_code in (200, 204), "ours are as good"
    hour_ago = {"iat": claims["iat"] - 7200, "nbf": claims["nbf"] - 7200, "exp": int(time.time()) - 3600}
    assert claims["iss"] == ISSUER
    refused(sync(controller, signed({**claims, **hour_ago}, good, key), replica=REPLICA), 401, "expired")


async def test_the_token_of_a_pod_that_is_gone_is_refused(
    api_server: ControlPlane, namespace: str, kubeconfig: Path, tokens: Tokens
) -> None:
    token = f"Bearer {tokens.of('fleet', REPLICA)}".encode()
    review = reviewer(configured(kubeconfig))
    await ReviewedTokens(review, namespace=namespace, release=RELEASE)(token)
    api_server.kubectl("delete", "pod", REPLICA, f"--namespace={namespace}", "--force", "--grace-period=0")

    def gone() -> bool:
        try:  # each time by one who knows nobody yet; the API server, too, keeps what it has reviewed for a while
            asyncio.run(ReviewedTokens(review, namespace=namespace, release=RELEASE)(token))
        except Unauthenticated:
            return True
        except Busy:
            pass  # the answer is late
        return False

    await asyncio.to_thread(until, gone, timeout_s=60, every_s=0.5, what="the token is still good")


async def test_callers_who_are_known_go_on_while_the_api_server_is_away(
    api_server: ControlPlane, namespace: str, kubeconfig: Path, tokens: Tokens
) -> None:
    known, unknown = (f"Bearer {tokens.of('fleet', pod)}".encode() for pod in (REPLICA, OTHER))
    identify = ReviewedTokens(reviewer(configured(kubeconfig)), namespace=namespace, release=RELEASE)
    assert await identify(known) == Caller(kind="agent", name=REPLICA)
    api_server.kill()
    try:
        assert await identify(known) == Caller(kind="agent", name=REPLICA)
        with pytest.raises(Busy) as busy:
            await identify(unknown)
        assert busy.value.retry_after_s > 0
    finally:
        api_server.start()
    assert await identify(unknown) == Caller(kind="agent", name=OTHER)


async def test_a_missing_permission_to_review_is_named(
    api_server: ControlPlane, namespace: str, kubeconfig: Path, tokens: Tokens
) -> None:
    api_server.kubectl("create", "serviceaccount", "powerless", f"--namespace={namespace}")
    powerless = configured(api_server.kubeconfig_of(namespace, "powerless"))
    identify = ReviewedTokens(reviewer(powerless), namespace=namespace, release=RELEASE)
    with capture_logs() as logs, pytest.raises(Busy) as busy:
        await identify(f"Bearer {tokens.of('ctl')}".encode())
    assert any("create tokenreviews" in each["reason"] for each in logs)
    assert "powerless" not in str(busy.value), "callers who are not known are not told about permissions"


async def test_a_caller_of_another_release_is_somebody_else(namespace: str, kubeconfig: Path, tokens: Tokens) -> None:
    identify = ReviewedTokens(reviewer(configured(kubeconfig)), namespace=namespace, release="another")
    with pytest.raises(Forbidden, match=f"{RELEASE}-fleet is nobody"):
        await identify(f"Bearer {tokens.of('fleet', REPLICA)}".encode())


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def signed(claims: dict[str, Any], like: str, key_file: Path) -> str:
    """A token with these claims, signed as the API server itself signs."""
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    text = f"{like.partition('.')[0]}.{encoded(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
