"""Envoy's configuration for a table, and where its routes lead; no process runs here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

from controlplane.core.routes import Endpoint, Route, RouteTable, Target
from gateway.config.bootstrap import bootstrap
from gateway.config.clusters import assignment, cluster_list
from gateway.config.names import HEALTH_CALL, PROTOCOLS, SERVICE, Files, pool_base
from gateway.config.routes import Lead, RouteWriter, leads_of
from gateway.settings import Settings
from tests.gateway.running import route

FILES = Files(Path("/home/of/gateway"))
BASES = {"a": "pool-a", "b": "pool-b"}


@pytest.fixture
def golden(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    return snapshot.use_extension(JSONSnapshotExtension)


def test_bootstrap(golden: SnapshotAssertion) -> None:
    config = bootstrap(Settings(), FILES)
    for listener in config["static_resources"]["listeners"]:
        for each in listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]:
            if each["name"] == "lua":
                each["typed_config"]["default_source_code"] = "(lead.lua and the protocol's script)"
    assert config == golden


def test_clusters(golden: SnapshotAssertion) -> None:
    assert cluster_list({"pool-a": ("r1", "r2")}, {"grpc": 1, "http": 2}, FILES, Settings()) == golden


def test_members(golden: SnapshotAssertion) -> None:
    one = Endpoint(replica="cpu-0", host="127.0.0.1", grpc_port=1, http_port=2)
    leaving = replace(one, replica="cpu-1", grpc_port=3, http_port=4, draining=True)
    assert [assignment("pool-a-grpc", protocol, [one, leaving]) for protocol in PROTOCOLS] == golden


def test_routes(golden: SnapshotAssertion) -> None:
    canary = (Target(version=1, pool="a", weight_percent=90), Target(version=2, pool="b", weight_percent=10))
    routes = {
        "plain": route("plain", 1, pool="a"),
        "canary": Route(model="canary", targets=canary, pinned={1: "a", 2: "b"}),
        "sequences": route("sequences", 1, pool="a", idle_s=60.0),
        "cold": route("cold", 1, pool=None),
        "high": replace(route("high", 1, pool="a"), priority="high"),
    }
    texts = RouteWriter().write(routes, BASES, "v")
    assert {protocol: json.loads(text) for protocol, text in texts.items()} == golden


def test_while_all_are_asleep_only_calls_about_the_server_are_led_elsewhere() -> None:
    for protocol in PROTOCOLS:
        usual, asleep = (
            json.loads(RouteWriter().write({}, {}, "v", asleep=each)[protocol])["resources"][0]["virtual_hosts"][0]
            for each in (False, True)
        )
        elsewhere = []
        for paths in (each["matcher"]["on_no_match"]["matcher"]["matcher_tree"] for each in (usual, asleep)):
            actions = paths["exact_match_map"]["map"]
            elsewhere.append(
                {
                    path: action["action"]["typed_config"].pop("route")["cluster"]
                    for path, action in actions.items()
                    if path.startswith(("/v2", HEALTH_CALL, f"{SERVICE}Server"))
                }
            )
        assert usual == asleep
        assert set(elsewhere[0].values()) == {f"any-{protocol}"} and set(elsewhere[1].values()) == {f"side-{protocol}"}


@pytest.mark.parametrize(
    ("given", "leads"),
    [
        (route("m", 2, 1, pool="a"), {"m": Lead("pool-a", "2", (1, 2))}),
        (route("m", 2, 1, pool=None), {"m": Lead(None, "2", (1, 2))}),
        (route("m", 2, 1, pool="gone"), {"m": Lead(None, "2", (1, 2))}),
        (route("m", 1, pool="a", idle_s=1.0), {"m": Lead(None)}),
        (replace(route("m", 1, pool=None), priority="high"), {"m": Lead(None, "1", (1,), high=True)}),
        (
            Route(model="m", pinned={3: "a", 4: "b"}, priority="high"),
            {"m": Lead("pool-a", "", (3,), (4,), high=True), "m/4": Lead("pool-b", high=True)},
        ),
        (Route(model="m"), {}),
        (Route(model="m", pinned={3: "a", 4: "b"}), {"m": Lead("pool-a", "", (3,), (4,)), "m/4": Lead("pool-b")}),
        (
            Route(
                model="m",
                targets=(
                    Target(version=1, pool="a", weight_percent=40),
                    Target(version=2, pool="b", weight_percent=60),
                ),
                pinned={7: None},
            ),
            {"m": Lead("pool-b", "40:1 60:2", (2,), (1, 7)), "m/1": Lead("pool-a"), "m/7": Lead(None)},
        ),
    ],
    ids=["one-pool", "cold", "unknown-pool", "sequences", "high-cold", "high", "nothing", "no-stable", "canary"],
)
def test_where_requests_go(given: Route, leads: dict[str, Lead]) -> None:
    assert leads_of(given, BASES) == leads


def test_fragments_are_kept_and_never_stale() -> None:
    writer, routes = RouteWriter(), {f"m{i}": route(f"m{i}", 1, pool="a") for i in range(5)}
    steps: list[tuple[dict[str, Route], dict[str, str]]] = [
        (routes, BASES),
        ({**routes, "m3": route("m3", 2, pool="a")}, BASES),
        ({**routes, "m3": route("m3", 2, pool="b")}, BASES),
        (routes, {"a": "pool-new", "b": "pool-b"}),
        ({"m1": routes["m1"]}, BASES),
        ({}, BASES),
    ]
    for table, bases in steps:
        assert writer.write(table, bases, "v") == RouteWriter().write(table, bases, "v")


def test_a_clusters_name_stands_for_its_members() -> None:
    assert pool_base(("a", "b")) == pool_base(("a", "b"))
    assert len({pool_base(("a", "b")), pool_base(("a",)), pool_base(("ab",)), pool_base(())}) == 4


def test_ten_thousand_models_are_three_megabytes() -> None:
    table = RouteTable(routes={f"model-{i:05}": route(f"model-{i:05}", 1, 2, pool="a") for i in range(10_000)})
    for text in RouteWriter().write(table.routes, BASES, "v").values():
        assert len(text) < 4_000_000
        found: Any = json.loads(text)["resources"][0]["virtual_hosts"][0]["matcher"]["matcher_tree"]
        assert len(found["exact_match_map"]["map"]) == 10_001
