"""What Envoy starts with: listeners, admin, limits, and where the rest is read from."""

from __future__ import annotations

from gateway.config.filters import connection_manager
from gateway.config.names import LIMITS, PROTOCOLS, Files, Json, Protocol, typed
from gateway.settings import Settings

HISTOGRAM_BUCKETS_MS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)


def bootstrap(settings: Settings, files: Files) -> Json:
    """Envoy's bootstrap. `settings` must hold the real ports."""
    ports: dict[Protocol, int] = {"grpc": settings.grpc_port, "http": settings.http_port}
    monitors = [
        {
            "name": "envoy.resource_monitors.fixed_heap",
            "typed_config": typed(
                "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=settings.max_heap_bytes,
            ),
        },
        {
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": typed(
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=20_000,
            ),
        },
    ]
    return {
        "node": {"id": settings.name, "cluster": "gateway"},
        # The system gives the port; Envoy writes it to a file. Loopback only: whoever reaches it can stop Envoy.
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": monitors,
            "actions": [
                {
                    "name": "envoy.overload_actions.stop_accepting_requests",
                    "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": 0.95}}],
                }
            ],
        },
        "stats_config": {
            "stats_matcher": {
                "exclusion_list": {
                    "patterns": [
                        {
                            "safe_regex": {
                                "regex": r"cluster\..*\.(lb_|upstream_cx_length|upstream_flow|http2\.|internal|ssl).*"
                            }
                        }
                    ]
                }
            },
            "histogram_bucket_settings": [
                {"match": {"prefix": "model."}, "buckets": list(HISTOGRAM_BUCKETS_MS)},
            ],
        },
        "stats_flush_interval": "60s",
        # Only scopes that allow it are looked through: failures by replica (logs.py).
        "stats_eviction_interval": "3600s",
        "layered_runtime": {
            "layers": [
                {
                    "name": LIMITS,
                    "rtds_layer": {
                        "name": LIMITS,
                        "rtds_config": {
                            "resource_api_version": "V3",
                            "path_config_source": {"path": str(files.limits)},
                        },
                    },
                }
            ]
        },
        "dynamic_resources": {
            "cds_config": {"resource_api_version": "V3", "path_config_source": {"path": str(files.clusters)}}
        },
        "static_resources": {
            "listeners": [_listener(protocol, ports[protocol], settings, files) for protocol in PROTOCOLS]
        },
    }


def _listener(protocol: Protocol, port: int, settings: Settings, files: Files) -> Json:
    manager = {"name": "connection-manager", "typed_config": connection_manager(protocol, settings, files)}
    return {
        "name": protocol,
        "address": {"socket_address": {"address": settings.address, "port_value": port}},
        "filter_chains": [{"filters": [manager]}],
        # HTTP/1 bodies that are larger than this fail where a filter or a retry holds them.
        "per_connection_buffer_limit_bytes": 32 << 20,
    }
