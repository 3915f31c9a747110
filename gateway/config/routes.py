"""Routes → Envoy's route configuration (RDS): one flat map from a model to where its requests go.

The text is put together from one fragment a model, since with thousands of models only few of them differ from the
table before; a fragment is made from a shape (clusters, versions, weights) that many models share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from controlplane.core.routes import Route
from gateway.config.filters import SIZE_LIMIT, without
from gateway.config.names import (
    HEALTH_CALL,
    LUA,
    MODEL_CALLS,
    PROTOCOLS,
    ROUTE_KEY,
    SERVER_CALLS,
    SERVICE,
    SIDE_KEY,
    STREAM_CALL,
    Json,
    Protocol,
    any_cluster,
    cluster,
    side_cluster,
    typed,
)

MARK = "@MODEL@"
"""Stands for the model's name in a shape's text; no name can hold it."""

RETRIES: Json = {
    # 5: Triton answers NOT_FOUND for about a second while it stops.
    "retry_on": "connect-failure,refused-stream,reset,unavailable,retriable-headers",
    "retriable_headers": [{"name": "grpc-status", "string_match": {"exact": "5"}}],
    "num_retries": 2,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
        }
    ],
    # A stopping server refuses at once, so it has the fewest requests in flight and is chosen again and again: of two,
    # fifteen times in sixteen (clusters.DRAWN). A hundred choices would leave one retry in 600 with it.
    "host_selection_retry_max_attempts": 500,
    "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
}
SAFE_RETRIES: Json = {**RETRIES, "retry_on": "connect-failure,refused-stream", "retriable_headers": []}
"""For sequences: only what surely has not reached a server is sent again."""
SIDE_RETRIES: Json = {
    "retry_on": "connect-failure,refused-stream",
    "num_retries": 8,
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
}
"""For the Python side, which may be starting again."""


class Lead(NamedTuple):
    """Where requests for one key go, and what the script is told about it (lead.lua). `base` None: the Python side.

    `high`: what the model's priority is.
    """

    base: str | None
    stable: str = ""
    here: tuple[int, ...] = ()
    there: tuple[int, ...] = ()
    high: bool = False


def leads_of(route: Route, bases: Mapping[str, str]) -> Mapping[str, Lead]:
    """Where requests go, by key: the model's main route, and one for each version that is led elsewhere than there.

    `bases` are the clusters of the pools. Thousands of models have one route each, so these are what costs.
    """
    high = route.priority == "high"
    if route.sequence_idle_s is not None:
        return {route.model: Lead(None, high=high)}  # what belongs to a sequence is led by the Python side
    pools = {target.version: target.pool for target in route.targets} | dict(route.pinned)
    led = {version: bases.get(pool) if pool is not None else None for version, pool in sorted(pools.items())}
    if not led:
        return {}
    largest = max(route.targets, key=lambda target: target.weight_percent, default=None)
    main = led[largest.version] if largest is not None else next(iter(led.values()))
    here = tuple(version for version, base in led.items() if base == main)
    there = tuple(version for version, base in led.items() if base != main)
    shares = " ".join(f"{target.weight_percent}:{target.version}" for target in route.targets)
    stable = shares if len(route.targets) != 1 else str(route.targets[0].version)
    return {
        route.model: Lead(main, stable, here, there, high),
        **{f"{route.model}/{version}": Lead(led[version], high=high) for version in there},
    }


@lru_cache(maxsize=4096)
def _shape(lead: Lead, protocol: Protocol) -> str:
    """The action for such a key, with a mark where the model's name belongs."""
    about = {"model": MARK, "stable": lead.stable, "here": _spaced(lead.here), "there": _spaced(lead.there)}
    action: Json = {"timeout": "0s", **({"priority": "HIGH"} if lead.high else {})}
    if lead.base is not None:
        action["cluster"] = cluster(lead.base, protocol)
    else:
        action["cluster"] = side_cluster(protocol)
        action["retry_policy"] = SIDE_RETRIES
    told = {name: text for name, text in about.items() if text}
    return _compact(_action(action, {"metadata": {"filter_metadata": {LUA: told}}}))


def _spaced(versions: Iterable[int]) -> str:
    text = " ".join(map(str, versions))
    return f" {text} " if text else ""


def _action(route: Json, per_route: Json | None = None) -> Json:
    action = typed("envoy.config.route.v3.Route", match={"prefix": "/"}, route=route, **(per_route or {}))
    return {"action": {"name": "route", "typed_config": action}}


def _side(more: Json | None = None) -> Json:
    route = {"cluster": side_cluster("grpc"), "timeout": "0s", "retry_policy": SIDE_RETRIES}
    return _action(route, more)


UNKNOWN = (404, "unknown model or version")
STARTING = (503, "the gateway has no route table yet: ask again in a moment")
"""How what has no route is refused, and while there are none at all: its status and a sentence."""


def _refusal(how: tuple[int, str]) -> Json:
    status, text = how
    answer = {"status": status, "body": {"inline_string": text}}
    told = {"metadata": {"filter_metadata": {LUA: {"starting": text}}}} if how == STARTING else {}
    action = typed("envoy.config.route.v3.Route", match={"prefix": "/"}, direct_response=answer, **told)
    return {"action": {"name": "refusal", "typed_config": action}}


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


class RouteWriter:
    """Makes the route configuration's text again and again, and keeps the fragments that did not change."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Route, tuple[str | None, ...], Mapping[Protocol, str]]] = {}

    def write(
        self,
        routes: Mapping[str, Route],
        bases: Mapping[str, str],
        version: str,
        *,
        starting: bool = False,
        asleep: bool = False,
    ) -> Mapping[Protocol, str]:
        """The text of both files. `bases` are the clusters of the pools, `version` is what Envoy will report.
        `starting`: which models there are is not known yet; `asleep`: there is no replica that could be asked, so the
        Python side answers for them."""
        refusal = STARTING if starting else UNKNOWN
        kept: dict[str, tuple[Route, tuple[str | None, ...], Mapping[Protocol, str]]] = {}
        fragments: dict[Protocol, list[str]] = {protocol: [] for protocol in PROTOCOLS}
        for name, route in sorted(routes.items()):
            pools = (*(target.pool for target in route.targets), *route.pinned.values())
            used = tuple(bases.get(pool) if pool is not None else None for pool in pools)
            before = self._kept.get(name)
            if before is None or before[1] != used or before[0] != route:
                before = (route, used, _fragments(route, bases))
            kept[name] = before
            for protocol, text in before[2].items():
                if text:
                    fragments[protocol].append(text)
        self._kept = kept
        return {
            protocol: _file(fragments[protocol], protocol, version, refusal, asleep=asleep) for protocol in PROTOCOLS
        }


def _fragments(route: Route, bases: Mapping[str, str]) -> Mapping[Protocol, str]:
    leads = leads_of(route, bases)
    return {
        protocol: ",".join(
            f"{json.dumps(key)}:{_shape(lead, protocol).replace(MARK, route.model)}" for key, lead in leads.items()
        )
        for protocol in PROTOCOLS
    }


def _file(
    fragments: Iterable[str],
    protocol: Protocol,
    version: str,
    refusal: tuple[int, str],
    *,
    asleep: bool,
) -> str:
    """The discovery response that holds the route configuration."""
    by_key = {
        "matcher_tree": {
            "input": {
                "name": "route-key",
                "typed_config": typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=ROUTE_KEY),
            },
            "exact_match_map": {"map": {MARK: MARK}},
        },
        "on_no_match": {"matcher": _by_path(protocol, refusal, asleep=asleep)},
    }
    host = {"name": "all", "domains": ["*"], "retry_policy": RETRIES, "matcher": by_key}
    resource = typed(
        "envoy.config.route.v3.RouteConfiguration",
        name=f"routes-{protocol}",
        virtual_hosts=[host],
        # Triton compresses its answers when it is asked to, at a price. The length changes with the version's field.
        request_headers_to_remove=["accept-encoding", *(["content-length"] if protocol == "grpc" else [])],
    )
    before, after = _compact({"version_info": version, "resources": [resource]}).split(f'"{MARK}":"{MARK}"')
    side = f"{json.dumps(SIDE_KEY)}:{_compact(_side() if refusal == UNKNOWN else _refusal(refusal))}"
    return f"{before}{','.join((side, *fragments))}{after}"


def _by_path(protocol: Protocol, refusal: tuple[int, str], *, asleep: bool) -> Json:
    """What has no route of its own: calls about the server, streams without a header, unknown models."""
    servers: Json = {"cluster": any_cluster(protocol)}
    if asleep:
        servers = {"cluster": side_cluster(protocol), "retry_policy": SIDE_RETRIES}
    anywhere = _action({**servers, "timeout": "10s"})
    paths: dict[str, Json]
    if protocol == "http":
        paths = dict.fromkeys(("/v2", "/v2/", "/v2/health/live", "/v2/health/ready"), anywhere)
    else:
        paths = {
            **{SERVICE + call: anywhere for call in SERVER_CALLS},
            HEALTH_CALL: anywhere,
            SERVICE + STREAM_CALL: _side(without(SIZE_LIMIT)) if refusal == UNKNOWN else _refusal(refusal),
            **{SERVICE + call: _refusal(refusal) for call in MODEL_CALLS},
        }
    path_input = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=":path")
    return {
        "matcher_tree": {
            "input": {"name": "path", "typed_config": path_input},
            "exact_match_map": {"map": paths},
        },
        "on_no_match": _refusal(refusal),
    }
