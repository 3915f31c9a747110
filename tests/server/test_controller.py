"""The controller over its API: promoting, failing, being killed, being deposed."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from pydantic import TypeAdapter

from controlplane.core.errors import NotLeader
from controlplane.core.messages import GatewayReport, ReplicaReport
from controlplane.core.models import Cost, FleetRecord, FleetShape, Goal
from controlplane.registry import Registry
from controlplane.server.acting import record_shapes
from tests.server.conftest import TOKEN, FixedFleet, Pretender, Service, register
from tests.waiting import until


def test_a_promotion_goes_through(registry: Registry, tmp_path: Path, pretender: Pretender) -> None:
    register(registry, tmp_path, "m")
    registry.promote("m", 1, actor="test")
    until(lambda: pretender.turn() and registry.model("m").stable == 1)
    assert pretender.table.routes["m"].targets[0].version == 1
    (wanted,) = pretender.assignment.wanted
    (source,) = wanted.sources.values()
    assert Path(source).read_text() == "1", "an assignment says where the files are"
    history = [each.action for each in registry.history("m")]
    assert history[-1] == "register" and len(history) == 3


def test_nobody_waits_for_a_gateway_that_has_said_goodbye(http: httpx2.Client, pretender: Pretender) -> None:
    until(pretender.turn)
    assert [each["name"] for each in http.get("/v1/gateways").json()] == ["gw"]
    gone = GatewayReport(gateway="gw", incarnation="1", gone=True)
    pretender.post("/v1/gateways/gw/sync", TypeAdapter(GatewayReport), gone)
    assert http.get("/v1/gateways").json() == []


def test_who_hangs_up_is_waited_for_no_longer(service: Service, http: httpx2.Client, pretender: Pretender) -> None:
    until(lambda: pretender.turn() and pretender.assignment.generation > 0)
    report = TypeAdapter(ReplicaReport).dump_json(pretender.report())
    address = httpx2.URL(service.url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(
            f"POST /v1/replicas/cpu-0/sync?wait_s=25 HTTP/1.1\r\nhost: controller\r\nauthorization: Bearer {TOKEN}\r\n"
            f"content-length: {len(report)}\r\n\r\n".encode()
            + report
        )
        until(lambda: service.waiting() == 1, what="a call that waits")
    until(lambda: service.waiting() == 0, timeout_s=10.0, what="nobody to wait")


def test_a_model_that_fails_ends_its_rollout(registry: Registry, tmp_path: Path, pretender: Pretender) -> None:
    pretender.failing = "no such operator"
    register(registry, tmp_path, "m")
    registry.promote("m", 1, actor="test")

    def ended() -> bool:
        pretender.turn()
        rollout = registry.model("m").rollout
        return rollout is not None and rollout.state == "failed" and "no such operator" in rollout.reason

    until(ended)
    assert registry.model("m").stable is None


def test_a_killed_controller_is_replaced_without_a_change_in_what_is_served(
    registry: Registry, tmp_path: Path, pretender: Pretender, service: Service, shape: FleetShape
) -> None:
    register(registry, tmp_path, "m")
    registry.promote("m", 1, actor="test")
    until(lambda: pretender.turn() and registry.model("m").stable == 1)
    before = pretender.table
    service.kill()
    second = Service(registry, shape, FixedFleet())
    try:
        with httpx2.Client(base_url=second.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30) as http:
            pretender.http = http

            def taken_over() -> bool:
                pretender.turn()
                assert pretender.table.routes == before.routes, "nothing is taken away meanwhile"
                return pretender.table.epoch > before.epoch

            until(taken_over)
            until(lambda: pretender.turn() and pretender.assignment.epoch > 1)
            assert [each.model for each in pretender.assignment.wanted] == ["m"]
    finally:
        second.kill()


def test_a_deposed_controller_ends(registry: Registry, service: Service) -> None:
    registry.claim("test")
    until(lambda: isinstance(service.ended, NotLeader))


def test_the_fleet_is_published(registry: Registry, pretender: Pretender) -> None:
    until(lambda: pretender.turn() and registry.fleet("cpu").capabilities is not None)
    capabilities = registry.fleet("cpu").capabilities
    assert capabilities is not None and capabilities.server_version == "2.51.0"
    assert registry.fleet("cpu").shape.memory_bytes == 1 << 30


def promoted(registry: Registry, folder: Path, pretender: Pretender) -> str:
    """Promotes a version of `m`; returns its digest."""
    register(registry, folder, "m")
    registry.promote("m", 1, actor="test")
    until(lambda: pretender.turn() and registry.model("m").stable == 1)
    return registry.model("m").versions[0].digest


@pytest.mark.parametrize("shape", [FleetShape(name="cpu", memory_bytes=1 << 30, goal=Goal(latency_ms=20))])
def test_a_goal_that_no_size_meets_is_told(
    registry: Registry, tmp_path: Path, pretender: Pretender, http: httpx2.Client, shape: FleetShape
) -> None:
    digest = promoted(registry, tmp_path, pretender)
    costs = {digest: Cost(fixed_s=0.04, each_s=0.01, executions=100)}
    registry.update_fleet("cpu", lambda known: replace(known or FleetRecord(shape=shape), costs=costs))
    until(lambda: pretender.turn() and http.get("/v1/models/m/explain").json()["capacity"])
    told = {each["code"]: each["text"] for each in http.get("/v1/models/m/explain").json()["capacity"]}
    assert (
        "answers 20 requests a second at most" in told["CAPACITY"]
        and "none within `latency_ms: 20`" in told["CAPACITY"]
    )
    assert "takes 50 ms, as measured of late" in told["GOAL_TOO_TIGHT"]
    assert "GOAL_TOO_TIGHT" in {each["code"] for each in http.get("/v1/fleets/cpu/explain").json()["reasons"]}


def test_a_memory_that_is_not_as_stated_is_told(
    registry: Registry, tmp_path: Path, pretender: Pretender, http: httpx2.Client, shape: FleetShape
) -> None:
    digest = promoted(registry, tmp_path, pretender)
    measured = {digest: 3 << 20}
    registry.update_fleet("cpu", lambda known: replace(known or FleetRecord(shape=shape), measured_bytes=measured))

    def told() -> bool:
        explained = http.get("/v1/models/m/explain").json()
        assert not any("measured" in each["text"] for each in explained["reasons"]), "no promotion waits for that"
        return any(
            "1 MiB of memory, and 3 MiB were measured on fleet cpu" in each["text"] for each in explained["memory"]
        )

    until(lambda: pretender.turn() and told())


def test_what_was_measured_of_main_memory_says_nothing_of_gpus(registry: Registry, shape: FleetShape) -> None:
    registry.update_fleet("cpu", lambda _: FleetRecord(shape=shape, measured_bytes={"d": 5 << 20}))
    asyncio.run(record_shapes(registry, [replace(shape, max_replicas=9)]))
    assert registry.fleet("cpu").measured_bytes == {"d": 5 << 20}
    asyncio.run(record_shapes(registry, [replace(shape, gpus=1)]))
    assert registry.fleet("cpu").measured_bytes == {}


def test_a_fleet_that_is_not_deployed_any_more_is_forgotten(registry: Registry, shape: FleetShape) -> None:
    old = FleetShape(name="old")
    registry.update_fleet("old", lambda _: FleetRecord(shape=old))
    service = Service(registry, shape, FixedFleet())
    try:
        assert set(registry.fleets()) == {"cpu"}
    finally:
        service.kill()


def test_a_document_from_a_newer_release_hurts_itself_alone(
    registry: Registry, tmp_path: Path, pretender: Pretender, http: httpx2.Client
) -> None:
    register(registry, tmp_path, "m")
    registry.store.put("models/newer.json", b'{"format": 99, "name": "newer"}')
    registry.promote("m", 1, actor="test")
    until(lambda: pretender.turn() and registry.model("m").stable == 1)
    explained = http.get("/v1/models/newer/explain").json()
    assert "newer" in explained["problem"]


@pytest.mark.parametrize("path", ["/v1/status", "/v1/replicas", "/metrics", "/v1/routes", "/openapi.json"])
def test_without_the_token_nothing_is_told(service: Service, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
        answer = httpx2.get(service.url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "UNAUTHENTICATED"
        assert TOKEN not in answer.text
    assert httpx2.get(service.url + "/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "content", "status", "said"),
    [
        pytest.param("/v1/replicas/cpu-0/sync", "{", 400, "JSON", id="no JSON"),
        pytest.param("/v1/replicas/cpu-0/sync", '{"replica": "cpu-0"}', 400, "fleet", id="a field is missing"),
        pytest.param(
            "/v1/replicas/cpu-1/sync",
            '{"replica": "cpu-0", "fleet": "cpu", "incarnation": "1", "server": "ready"}',
            400,
            "cpu-1",
            id="somebody else's report",
        ),
        pytest.param(
            "/v1/replicas/cpu-0/sync",
            '{"replica": "cpu-0", "fleet": "cpu", "incarnation": "1", "server": "ready", "epoch": 99}',
            421,
            "epoch",
            id="the caller has seen a newer controller",
        ),
        pytest.param(
            "/v1/replicas/cpu-7/sync",
            '{"replica": "cpu-7", "fleet": "cpu", "incarnation": "1", "server": "ready"}',
            404,
            "cpu-7",
            id="a replica that nobody deployed",
        ),
        pytest.param(
            "/v1/replicas/cpu-0/sync",
            '{"replica": "cpu-0", "fleet": "cpu", "incarnation": "1", "server": "ready",'
            ' "endpoint": {"replica": "cpu-0", "host": "not an ip", "grpc_port": 1, "http_port": 2}}',
            400,
            "endpoint.host",
            id="an endpoint that is no address",
        ),
        pytest.param(
            "/v1/gateways/gw/sync?wait_s=soon", '{"gateway": "gw", "incarnation": "1"}', 400, "wait_s", id="wait"
        ),
    ],
)
def test_a_wrong_call_is_told(http: httpx2.Client, path: str, content: str, status: int, said: str) -> None:
    answer = http.post(path, content=content)
    assert answer.status_code == status
    assert said in answer.text


def test_every_path_is_in_the_published_document(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        if "{name}" not in path and "get" in methods:
            assert http.get(path).status_code == 200, path
    assert "ReplicaReport" in document["components"]["schemas"]


def test_the_metrics_page_counts_cycles(http: httpx2.Client) -> None:
    until(lambda: "ctl_controller_cycle_seconds_count" in http.get("/metrics").text)
    assert "ctl_controller_leads 1\n" in http.get("/metrics").text


def test_a_model_that_is_not_there_is_not_found(http: httpx2.Client) -> None:
    answer = http.get("/v1/models/nobody/explain")
    assert answer.status_code == 404
    assert "ctl get models" in answer.json()["error"]["remedy"]
