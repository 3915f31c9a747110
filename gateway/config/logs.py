"""What Envoy writes down of each request: a line of JSON in the access log, and counters by model and version."""

from __future__ import annotations

from gateway.config.names import LUA, METADATA, ROUTE_KEY, VERSION_KEY, Files, Json, Protocol, typed

LED = (f"%METADATA(ROUTE:{LUA}:model)%", f"%REQ({VERSION_KEY})%")
"""Model and version of what Envoy leads itself."""
DECIDED = (f"%DYNAMIC_METADATA({METADATA}:model)%", f"%DYNAMIC_METADATA({METADATA}:version)%")
"""Model and version of what the Python side decided."""


def _details(text: str) -> Json:
    """An access-log filter that matches Envoy's details of a response."""
    kind = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    config = typed(kind, expression=f"response.code_details == '{text}'")
    return {"extension_filter": {"name": "details", "typed_config": config}}


SHED: Json = {
    "and_filter": {
        "filters": [
            # The flag alone won't do: a request that fails gets it too where too many retries run already.
            {"response_flag_filter": {"flags": ["UO"]}},
            _details("upstream_reset_before_response_started{overflow}"),
        ]
    }
}
"""Matches what Envoy refuses since too many requests are in flight."""
NO_MEMORY = _details("overload")
"""Matches what Envoy refuses near `max_heap_bytes`."""


def access_logs(protocol: Protocol, files: Files) -> list[Json]:
    """The loggers of one listener."""
    return [
        _logger(
            "file",
            typed(
                "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                path=str(files.access_log),
                log_format={"json_format": line(protocol), "omit_empty_values": True},
            ),
        ),
        _logger("led", statistics(protocol, *LED), decided=False),
        _logger("decided", statistics(protocol, *DECIDED), decided=True),
        {"name": "shed", "filter": SHED, "typed_config": shed(protocol)},
    ]


def _logger(name: str, config: Json, *, decided: bool | None = None) -> Json:
    """A logger, for all requests or only for those that the Python side did or did not decide about."""
    if decided is None:
        return {"name": name, "typed_config": config}
    # Envoy asks a matcher here only where the value is there, and looks past its `invert`.
    value = {"present_match": True} if decided else {"string_match": {"exact": ""}}
    return {
        "name": name,
        "filter": {
            "metadata_filter": {
                "matcher": {"filter": METADATA, "path": [{"key": "version"}], "value": value},
                "match_if_key_not_found": not decided,
            }
        },
        "typed_config": config,
    }


def line(protocol: Protocol) -> Json:
    """The fields of one line of the access log; times in ms, sizes in bytes."""
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "protocol": protocol,
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "asked": f"%REQ({ROUTE_KEY})%",
        "model": LED[0],
        "version": LED[1],
        "replica": "%UPSTREAM_HOST_NAME_WITHOUT_PORT%",
        "side_model": DECIDED[0],
        "side_version": DECIDED[1],
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


def statistics(protocol: Protocol, model: str, version: str) -> Json:
    """Requests and their latency by model, version and code, for `/stats/prometheus` of Envoy's admin port.

    The tags are never what a client says, which could make series without end: they come from the table. What took no
    route of a model is counted with empty ones.
    """
    tags = _tags(model, version)
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


def shed(protocol: Protocol) -> Json:
    """Requests that were refused since too many are in flight, by model and version."""
    tags = [*_tags(*LED), {"name": "protocol", "value_format": protocol}]
    return typed(
        "envoy.extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": "model"},
        counters=[{"stat": {"name": "shed", "tags": tags}, "value_fixed": 1}],
    )


def _tags(model: str, version: str) -> list[Json]:
    return [{"name": "model", "value_format": model}, {"name": "version", "value_format": version}]
