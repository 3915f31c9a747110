"""What a controller answers that does not lead."""

from __future__ import annotations

import httpx2
import pytest

from controlplane.server.api import Serving, application, metrics_application
from controlplane.server.identity import SharedToken
from tests.server.conftest import TOKEN, Service

KNOWN = {"authorization": f"Bearer {TOKEN}"}
LEADER = "http://10.0.0.7:8080"


def client(serving: Serving) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=application(serving, SharedToken(TOKEN)))
    return httpx2.AsyncClient(transport=transport, base_url="http://standby")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/replicas/a/sync"), ("POST", "/v1/gateways/a/sync"), ("GET", "/v1/status"), ("GET", "/v1/nothing")],
)
@pytest.mark.parametrize("headers", [{}, KNOWN], ids=["without a token", "with one"])
async def test_it_says_who_leads(method: str, path: str, headers: dict[str, str]) -> None:
    async with client(Serving(leader=lambda: LEADER, ready=lambda: True)) as http:
        answer = await http.request(method, path, headers=headers)
    assert answer.status_code == 421
    assert answer.headers["location"] == LEADER
    assert answer.json()["error"]["code"] == "NOT_LEADER"


async def test_it_says_when_to_ask_again_while_nobody_leads() -> None:
    async with client(Serving()) as http:
        answer = await http.get("/v1/status", headers=KNOWN)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "location" not in answer.headers


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
async def test_probes_need_no_token(ready: bool, status: int) -> None:
    async with client(Serving(ready=lambda: ready)) as http:
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/readyz")).status_code == status


async def test_everything_else_needs_one() -> None:
    async with client(Serving(ready=lambda: True)) as http:
        for path in ("/metrics", "/openapi.json", "/nothing"):
            assert (await http.get(path)).status_code == 401
        assert (await http.get("/metrics", headers=KNOWN)).status_code == 200


async def test_a_port_for_metrics_has_nothing_else() -> None:
    transport = httpx2.ASGITransport(app=metrics_application(Serving()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://standby") as http:
        assert (await http.get("/metrics")).text.splitlines()[-1] == "ctl_controller_leads 0"
        assert (await http.get("/v1/status")).status_code == 404


def test_one_that_is_alone_leads(service: Service) -> None:
    assert httpx2.get(f"{service.url}/livez").status_code == 200
    assert httpx2.get(f"{service.url}/readyz").json() == {"status": "leader"}
