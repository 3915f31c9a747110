"""What Prometheus is told to scrape."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import httpx2
from pydantic import TypeAdapter

from controlplane.core.messages import ReplicaReport
from controlplane.core.routes import Endpoint
from tests.server.conftest import Pretender, Service
from tests.waiting import until


def report(pretender: Pretender, host: str = "127.0.0.1", server: Literal["ready", "starting"] = "ready") -> None:
    made = replace(
        pretender.report(),
        server=server,
        metrics_port=8002,
        endpoint=Endpoint(replica=pretender.replica, host=host, grpc_port=1, http_port=2),
    )
    pretender.post(f"/v1/replicas/{pretender.replica}/sync", TypeAdapter(ReplicaReport), made)


def test_ready_servers_are_listed_in_prometheus_own_form(pretender: Pretender, http: httpx2.Client) -> None:
    until(lambda: http.get("/v1/status").json()["planned_s_ago"] is not None)
    assert http.get("/v1/targets").json() == []
    report(pretender)
    answer = http.get("/v1/targets")
    assert answer.headers["content-type"] == "application/json"
    labels = {"fleet": "cpu", "replica": "cpu-0"}
    assert answer.json() == [{"targets": ["127.0.0.1:8002"], "labels": labels}]
    report(pretender, host="fd00::1")
    assert http.get("/v1/targets").json() == [{"targets": ["[fd00::1]:8002"], "labels": labels}]
    report(pretender, server="starting")
    assert http.get("/v1/targets").json() == []


def test_they_are_told_with_the_token_only(service: Service) -> None:
    assert httpx2.get(service.url + "/v1/targets").status_code == 401
