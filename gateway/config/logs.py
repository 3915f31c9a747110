"""What Envoy writes down of each request: a line of JSON in the access log, and counters by model and version."""

from __future__ import annotations

from gateway.config.names import METADATA, ROUTE_KEY, Files, Json, Protocol, typed

MODEL, VERSION = f"%DYNAMIC_METADATA({METADATA}:model)%", f"%DYNAMIC_METADATA({METADATA}:version)%"


def access_logs(protocol: Protocol, files: Files) -> list[Json]:
    """The loggers of one listener."""
    return [
        {
            "name": "file",
            "typed_config": typed(
                "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                path=str(files.access_log),
                log_format={"json_format": line(protocol), "omit_empty_values": True},
            ),
        },
        {
            # Only what took a route of the table: a label that clients choose freely would make series without end.
            "name": "stats",
            "filter": {
                "metadata_filter": {
                    "matcher": {
                        "filter": METADATA,
                        "path": [{"key": "version"}],
                        "value": {"present_match": True},
                    },
                    "match_if_key_not_found": False,
                }
            },
            "typed_config": statistics(protocol),
        },
    ]


def line(protocol: Protocol) -> Json:
    """The fields of one line of the access log; times in ms, sizes in bytes."""
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "protocol": protocol,
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "asked": f"%FILTER_STATE({ROUTE_KEY}:PLAIN)%",
        "model": MODEL,
        "version": VERSION,
        "replica": "%UPSTREAM_HOST_NAME_WITHOUT_PORT%",
        "side_replica": f"%DYNAMIC_METADATA({METADATA}:replica)%",
        "upstream": "%UPSTREAM_HOST%",
        "code": "%RESPONSE_CODE%",
        "duration_ms": "%DURATION%",
        "request_bytes": "%BYTES_RECEIVED%",
        "response_bytes": "%BYTES_SENT%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    }
    return {**fields, "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%"} if protocol == "grpc" else fields


def statistics(protocol: Protocol) -> Json:
    """Requests and their latency by model, version and code, for `/stats/prometheus` of Envoy's admin port."""
    tags = [{"name": "model", "value_format": MODEL}, {"name": "version", "value_format": VERSION}]
    code = "%GRPC_STATUS(SNAKE_STRING)%" if protocol == "grpc" else "%RESPONSE_CODE%"
    own = [{"name": "protocol", "value_format": protocol}]
    return typed(
        "envoy.extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": "model"},
        counters=[
            {
                "stat": {"name": "requests", "tags": [*tags, *own, {"name": "code", "value_format": code}]},
                "value_fixed": 1,
            }
        ],
        histograms=[
            {"stat": {"name": "duration", "tags": tags}, "unit": "Milliseconds", "value_format": "%DURATION%"},
        ],
    )
