"""Replicas that answer errors, hang or are slow: the others take their share, and they get it back."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import pytest
from tritonclient.utils import InferenceServerException

from controlplane.core.messages import Failing
from controlplane.metrics.program import SCRAPE_INTERVAL_S
from gateway.service import ENVOYS_PAGE_S
from tests.gateway.asking import ask, ask_http, grpc_input
from tests.gateway.running import Running, route, table
from tests.gateway.triton import Triton
from tests.gateway.waiting import wait_for

ROW = 30
"""Errors in a row after which a replica is put away."""


@pytest.fixture(autouse=True)
def served(gateway: Running, tritons: tuple[Triton, Triton]) -> Iterator[None]:
    """A pool that is new to Envoy, and servers in a good mood again afterwards."""
    gateway.controller.put(table())
    wait_for(lambda: not _hosts(gateway, "grpc"), "the clusters of the test before to go")
    gateway.controller.put(table(*(each.endpoint for each in tritons), moody=route("moody"), echo=route("echo", 2)))
    yield
    for each in tritons:
        _mood(each, None)


def _mood(triton: Triton, mood: str | None) -> None:
    file = triton.models / "moody" / "mood"
    if mood is None:
        file.unlink(missing_ok=True)
    else:
        beside = file.with_suffix(".new")
        beside.write_text(mood)
        beside.replace(file)


def _hosts(gateway: Running, protocol: str) -> dict[str, dict[str, Any]]:
    """What Envoy knows of a pool's replicas: their health, and their statistics by name."""
    clusters = httpx2.get(f"{gateway.admin}/clusters?format=json").json()["cluster_statuses"]
    return {
        host["hostname"]: {
            **host.get("health_status", {}),
            **{stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]},
        }
        for cluster in clusters
        if cluster["name"].startswith("pool-") and cluster["name"].endswith(protocol)
        for host in cluster.get("host_statuses", [])
    }


def _away(gateway: Running, protocol: str) -> set[str]:
    return {name for name, host in _hosts(gateway, protocol).items() if host.get("failed_outlier_check")}


def _failures(gateway: Running, protocol: str, count: int) -> int:
    """How many of so many requests fail."""
    failed = 0
    with gateway.grpc() as grpc, gateway.http() as http:
        for _ in range(count):
            try:
                ask(grpc, "moody") if protocol == "grpc" else ask_http(http, "moody")
            except InferenceServerException as error:
                assert "in a bad mood" in str(error)
                failed += 1
    return failed


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_replica_that_answers_errors_is_put_away_and_comes_back(
    gateway: Running, tritons: tuple[Triton, Triton], protocol: str
) -> None:
    broken = tritons[0]
    _mood(broken, "fail")
    wait_for(lambda: _failures(gateway, protocol, 1) and _away(gateway, protocol) == {broken.name}, "it to be put away")
    # It is live, and answers at once; the one that is well answers all the same.
    assert _hosts(gateway, protocol)[broken.name].get("failed_active_health_check") is None
    asked = _hosts(gateway, protocol)[broken.name]["rq_total"]
    assert asked <= 2 * ROW
    _mood(broken, None)
    wait_for(lambda: not _away(gateway, protocol), "it to be tried again", timeout_s=60)
    assert _failures(gateway, protocol, 50) == 0
    assert _hosts(gateway, protocol)[broken.name]["rq_total"] > asked


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_python_side_puts_it_away_too(gateway: Running, tritons: tuple[Triton, Triton], protocol: str) -> None:
    endpoints = [each.endpoint for each in tritons]
    gateway.controller.put(table(*endpoints, moody=route("moody", idle_s=60.0)))
    _mood(tritons[0], "fail")
    assert _failures(gateway, protocol, 20) > 0
    wait_for(lambda: _failures(gateway, protocol, 20) == 0, "the other one to take all", timeout_s=60)
    _mood(tritons[0], None)


def test_they_are_never_all_put_away(gateway: Running, tritons: tuple[Triton, Triton]) -> None:
    for each in tritons:
        _mood(each, "fail")
    assert _failures(gateway, "grpc", 6 * ROW) == 6 * ROW
    assert len(_away(gateway, "grpc")) <= 1
    for each in tritons:
        _mood(each, None)
    assert _failures(gateway, "grpc", 20) == 0
    wait_for(lambda: not _away(gateway, "grpc"), "the one of the two to be tried again", timeout_s=60)

    gateway.controller.put(table(tritons[0].endpoint, moody=route("moody")))
    wait_for(lambda: len(_hosts(gateway, "grpc")) == 1, "the pool of two to go")
    _mood(tritons[0], "fail")
    assert _failures(gateway, "grpc", 3 * ROW) == 3 * ROW  # with the replica's own words
    assert not any(host.get("failed_outlier_check") for host in _hosts(gateway, "grpc").values())


def test_a_model_that_often_fails_puts_no_replica_away(gateway: Running, tritons: tuple[Triton, Triton]) -> None:
    for each in tritons:
        _mood(each, "fail")
    with gateway.grpc() as client:
        for _ in range(3 * ROW):
            assert _failures(gateway, "grpc", 3) == 3
            assert [ask(client, "echo") for _ in range(2)] == [2, 2]
    assert not _away(gateway, "grpc")


def test_a_replica_that_hangs_gets_nothing_new(gateway: Running, tritons: tuple[Triton, Triton]) -> None:
    hanging = tritons[0]

    def healthy() -> bool:
        return not _hosts(gateway, "grpc")[hanging.name].get("failed_active_health_check")

    os.kill(hanging.process.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: not healthy(), "Envoy to see that it hangs", timeout_s=60)
        with gateway.grpc() as client:
            for _ in range(50):
                assert ask(client, "echo") == 2
    finally:
        os.kill(hanging.process.pid, signal.SIGCONT)
    wait_for(healthy, "it to be back", timeout_s=60)
    before = _hosts(gateway, "grpc")[hanging.name]["rq_total"]
    assert _failures(gateway, "grpc", 50) == 0
    assert _hosts(gateway, "grpc")[hanging.name]["rq_total"] > before


def test_a_slow_replica_gets_less(gateway: Running, tritons: tuple[Triton, Triton]) -> None:
    slow = tritons[0]
    _mood(slow, "0.5")
    left = iter(range(400))

    def ask_what_is_left(_: int) -> int:
        with gateway.grpc() as client:
            return sum(1 for _ in left if ask(client, "moody"))

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(ask_what_is_left, range(4))) == 400
    counts = {name: host["rq_total"] for name, host in _hosts(gateway, "grpc").items()}
    assert sum(counts.values()) == 400
    assert counts[slow.name] < 60, counts  # taken in turn it would be 200; the freer of two drawn at random, 100


def test_the_controller_is_told_what_fails_and_where(gateway: Running, tritons: tuple[Triton, Triton]) -> None:
    def told() -> dict[str, Failing]:
        return {each.model: each for each in gateway.controller.latest.failing}

    with gateway.grpc() as grpc, pytest.raises(InferenceServerException) as refused:
        grpc.infer("echo", [])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT", "the client's own fault"
    _mood(tritons[0], "fail")
    for protocol in ("grpc", "http"):
        before = _failed(gateway, protocol)
        counted = before + Counter({"r1": _failures(gateway, protocol, 20)})
        assert counted != before
        wait_for(partial(_counted, gateway, protocol, counted), "the failures to be counted, and none elsewhere")
    wait_for(lambda: "moody" in told() and "r1" in (told()["moody"].replicas or {}), "the controller to be told")
    _mood(tritons[1], "fail")
    assert _failures(gateway, "grpc", 20) == _failures(gateway, "http", 20) == 20
    wait_for(lambda: (told()["moody"].replicas or {}).keys() == {"r1", "r2"}, "the controller to be told of the other")
    assert sum((told()["moody"].replicas or {}).values()) == pytest.approx(told()["moody"].errors_per_s)
    assert "echo" not in told()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_fails_on_the_python_side_is_told_too(
    gateway: Running, tritons: tuple[Triton, Triton], protocol: str
) -> None:
    endpoints = [each.endpoint for each in tritons]
    gateway.controller.put(table(*endpoints, moody=route("moody", idle_s=60.0)))

    before = _failed(gateway, protocol)
    _mood(tritons[1], "fail")
    counted = before + Counter({"r2": _failures(gateway, protocol, 20)})
    assert counted != before
    wait_for(partial(_counted, gateway, protocol, counted), "the failures to be counted, and none elsewhere")


def test_a_client_that_goes_away_is_no_failure(gateway: Running) -> None:
    """Not in the middle of an answer either, of which Envoy makes UNKNOWN."""
    answered = threading.Event()
    with gateway.grpc() as grpc:
        grpc.start_stream(lambda result, error: answered.set(), headers={"x-model-name": "echo"})
        grpc.async_stream_infer("echo", grpc_input())
        assert answered.wait(30)
        grpc.stop_stream(cancel_requests=True)
    wait_for(lambda: 'version="2",protocol="grpc",code="UNKNOWN"' in _counts(gateway), "the stream to be counted")
    assert "envoy_model_failures{" not in "".join(line for line in _counts(gateway).splitlines() if '"echo"' in line)


def test_the_page_for_prometheus_has_what_envoy_counts(gateway: Running, tritons: tuple[Triton, Triton]) -> None:
    _mood(tritons[1], "fail")
    _failures(gateway, "grpc", 20)

    def page() -> str:
        return httpx2.get(f"{gateway.status}/metrics").text

    wait_for(lambda: 'envoy_model_failures{model="moody",version="1",replica="r2"' in page(), "the failures to be told")
    assert 'envoy_model_requests{model="moody",version="1",protocol="grpc",code="INTERNAL"}' in page()
    envoy = gateway.envoy
    envoy.suspend()
    try:
        # More than Prometheus waits, as a machine may stand still; and less than the gateway would, did it not give up.
        text = httpx2.get(f"{gateway.status}/metrics", timeout=9).text
    finally:
        envoy.resume()
    assert ENVOYS_PAGE_S < SCRAPE_INTERVAL_S
    assert "gateway_envoy_running 1.0" in text and "envoy_model_requests" not in text, "this part's goes on"


def _counts(gateway: Running) -> str:
    return httpx2.get(f"{gateway.admin}/stats/prometheus?usedonly&filter=^model").text


def _failed(gateway: Running, protocol: str) -> Counter[str]:
    """The model's failures that Envoy has counted, by replica."""
    found: Counter[str] = Counter()
    for line in _counts(gateway).splitlines():
        tags = re.match(r'envoy_model_failures\{model="moody",version="1",replica="(.*?)",protocol="(.*?)"', line)
        if tags and tags[2] == protocol:
            found[tags[1]] += int(line.rpartition(" ")[2])
    return found


def _counted(gateway: Running, protocol: str, counts: Counter[str]) -> bool:
    return _failed(gateway, protocol) == counts
