"""Pools → clusters and their endpoints (CDS, EDS)."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sized

from controlplane.core.routes import Endpoint, Pace
from gateway.config.names import (
    LIMITS,
    PROTOCOLS,
    SIDE_HOST,
    Files,
    Json,
    Protocol,
    any_cluster,
    cluster,
    side_cluster,
    typed,
)
from gateway.settings import GONE_S, Settings, in_all

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
OUTLIERS: Json = {
    # Connections that fail.
    "consecutive_local_origin_failure": 2,
    "enforcing_consecutive_local_origin_failure": 100,
    "split_external_local_origin_errors": True,
    # Answers that are errors (`_errors`), as of a replica whose GPU is broken: it is live, answers at once, and would
    # be preferred for that. A pool serves many models, and one that fails everywhere must not put replicas away: so
    # there have to be many in a row. Then little else is asked there, and half of the replicas are enough for that.
    "consecutive_5xx": 30,
    "enforcing_consecutive_5xx": 100,
    "enforcing_success_rate": 0,
    "enforcing_consecutive_gateway_failure": 0,
    # Live is not well: the health check of a replica that fails all inferences goes on to pass.
    "successful_active_health_check_uneject_host": False,
    "interval": "1s",
    "base_ejection_time": "2s",
    "max_ejection_time": "30s",
    # Of one replica none, of two or three one.
    "max_ejection_percent": 50,
}
DRAWN = 4
"""Of so many replicas, drawn with replacement, the one with the fewest requests in flight is asked.

With two, Envoy's default, a pool of two would give a quarter of all requests to a replica however busy it is; with four
it is a sixteenth. Looking at all of them would leave nothing to chance, so no retry could be led past a replica that
refuses at once, and has the fewest for that.
"""
GONE: Json = {
    "upstream_bind_config": {
        # It has no field of its own.
        "socket_options": [
            {
                "level": socket.IPPROTO_TCP,
                "name": socket.TCP_USER_TIMEOUT,
                "int_value": 1000 * GONE_S,
                "state": "STATE_PREBIND",
            }
        ]
    },
    "upstream_connection_options": {
        "tcp_keepalive": {"keepalive_time": GONE_S // 2, "keepalive_interval": 2, "keepalive_probes": 3}
    },
}
"""How a machine that is gone is noticed (GONE_S)."""
SHARED = 16384
"""Requests in flight at the Python side, which has limits of its own for each model, or in calls about the server."""


def protocol_options(protocol: Protocol, **more: Json) -> Json:
    """HTTP/2 for gRPC, HTTP/1.1 for the rest."""
    config: Json = {"http2_protocol_options": {}} if protocol == "grpc" else {"http_protocol_options": {}}
    return {HTTP_OPTIONS: typed(HTTP_OPTIONS, explicit_http_config=config, **more)}


def _errors(protocol: Protocol) -> Json:
    """Which answers speak against a replica: those with which Triton says that an inference failed.

    Not UNAVAILABLE or 503: so it refuses what its queues can't hold, and to put away a replica that has too much to do
    would give the others even more.
    """
    header = {"name": "grpc-status", "string_match": {"safe_regex": {"regex": "2|13"}}}
    if protocol == "http":
        header = {"name": ":status", "string_match": {"exact": "500"}}
    return {"error_matcher": {"http_response_headers_match": {"headers": [header]}}}


def thresholds(normal: int, high: int) -> Json:
    """How many requests may be in flight at a cluster, by priority; each priority has counters of its own.

    What waits for a connection is counted apart from what is in flight. Connections follow the requests: with HTTP/1
    one each, and every worker thread keeps its own.
    """
    return {
        "thresholds": [
            {
                "priority": priority,
                "max_connections": max(4096, 2 * most),
                "max_pending_requests": most,
                "max_requests": most,
                "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 20},
            }
            for priority, most in (("DEFAULT", normal), ("HIGH", high))
        ]
    }


def pool_cluster(name: str, protocol: Protocol, files: Files, circuit_breakers: Json) -> Json:
    """A cluster of replicas whose members come from its own file."""
    return typed(
        "envoy.config.cluster.v3.Cluster",
        name=name,
        type="EDS",
        lb_policy="LEAST_REQUEST",
        least_request_lb_config={"choice_count": DRAWN},
        connect_timeout="1s",
        typed_extension_protocol_options=protocol_options(protocol, outlier_detection=_errors(protocol)),
        eds_cluster_config={
            "service_name": name,
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": str(files.endpoints_of(name))},
            },
        },
        ignore_health_on_host_removal=True,
        # Below this share of healthy members the health check is not believed: a busy machine fails it for all of them.
        # Envoy joins changes of health within this window; as long as that, a replica put away again gets requests.
        common_lb_config={"healthy_panic_threshold": {"value": 10}, "update_merge_window": "0.05s"},
        health_checks=[
            {
                "timeout": "1s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                # Triton under SIGTERM goes on answering on the connections that it has.
                "reuse_connection": False,
                # Live, not ready: a server that loads a model is not ready, and serves.
                "http_health_check": {"path": "/v2/health/live", "codec_client_type": "HTTP1"},
            }
        ],
        outlier_detection=OUTLIERS,
        circuit_breakers=circuit_breakers,
        **GONE,
    )


def side(protocol: Protocol, port: int) -> Json:
    """The Python side's cluster."""
    name = side_cluster(protocol)
    endpoint = {"hostname": SIDE_HOST, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}
    return typed(
        "envoy.config.cluster.v3.Cluster",
        name=name,
        type="STATIC",
        connect_timeout="1s",
        typed_extension_protocol_options=protocol_options(protocol),
        load_assignment={"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]},
        circuit_breakers=thresholds(SHARED, SHARED),
    )


def cluster_list(
    bases: Mapping[str, Sized], side_ports: Mapping[Protocol, int], files: Files, settings: Settings
) -> list[Json]:
    """All clusters: the Python side, all replicas, then those of `bases`, by protocol.

    `bases` are the pools' members. A cluster's limits follow from their number, which never changes: draining does not
    change it either, since Envoy would begin to count anew.
    """
    found: list[Json] = []
    for protocol in PROTOCOLS:
        found.append(side(protocol, side_ports[protocol]))
        found.append(pool_cluster(any_cluster(protocol), protocol, files, thresholds(SHARED, SHARED)))
        for base, members in sorted(bases.items()):
            usual = settings.per_replica(None)
            most = (in_all(usual, len(members)), in_all(usual, len(members), high=True))
            found.append(pool_cluster(cluster(base, protocol), protocol, files, thresholds(*most)))
    return found


def limits(crowded: Mapping[str, tuple[int, Pace]], settings: Settings) -> Json:
    """Of clusters for versions of which more is asked than can be done: how many requests may be in flight instead
    (RTDS). So a limit may change, and Envoy goes on counting. `crowded`: by base, the number of members, and what
    each does."""
    layer: Json = {}
    for base, (members, pace) in sorted(crowded.items()):
        for protocol in PROTOCOLS:
            for priority in ("default", "high"):
                most = in_all(settings.per_replica(pace), members, high=priority == "high")
                key = f"circuit_breakers.{cluster(base, protocol)}.{priority}"
                layer |= {f"{key}.max_requests": most, f"{key}.max_pending_requests": most}
    return typed("envoy.service.runtime.v3.Runtime", name=LIMITS, layer=layer)


def assignment(name: str, protocol: Protocol, members: Iterable[Endpoint]) -> Json:
    """The members of one cluster. A replica's name is its host name here, for the access log."""
    return typed(
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        cluster_name=name,
        endpoints=[{"lb_endpoints": [_member(endpoint, protocol) for endpoint in members]}],
    )


def _member(endpoint: Endpoint, protocol: Protocol) -> Json:
    port = endpoint.grpc_port if protocol == "grpc" else endpoint.http_port
    return {
        "endpoint": {
            "hostname": endpoint.replica,
            "address": {"socket_address": {"address": endpoint.host, "port_value": port}},
            "health_check_config": {"port_value": endpoint.http_port, "hostname": endpoint.host},
        },
        **({"health_status": "DRAINING"} if endpoint.draining else {}),
    }
