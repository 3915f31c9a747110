"""What Envoy writes down of each request: a line of JSON in the access log, and counters by model and version."""

from __future__ import annotations

from gateway.config.names import LUA, METADATA, ROUTE_KEY, VERSION_KEY, Files, Json, Protocol, typed
from gateway.failures import CLIENTS

LED = (f"%METADATA(ROUTE:{LUA}:model)%", f"%REQ({VERSION_KEY})%", "%UPSTREAM_HOST_NAME_WITHOUT_PORT%")
"""Model, version and replica of what Envoy leads itself."""
DECIDED = tuple(f"%DYNAMIC_METADATA({METADATA}:{name})%" for name in ("model", "version", "replica"))
"""Model, version and replica of what the Python side decided."""
CODE: dict[Protocol, str] = {"grpc": "%GRPC_STATUS(SNAKE_STRING)%", "http": "%RESPONSE_CODE%"}
MOST_FAILURE_SERIES = 50_000
"""Of one logger. What fails beyond them is not told as a failure, until old ones have gone."""


def _matches(expression: str) -> Json:
    """An access-log filter that asks a CEL expression."""
    config = typed("envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter", expression=expression)
    return {"extension_filter": {"name": "details", "typed_config": config}}


def _details(text: str) -> Json:
    """An access-log filter that matches Envoy's details of a response."""
    return _matches(f"response.code_details == '{text}'")


OVERFLOW = "upstream_reset_before_response_started{overflow}"
SHED: Json = {
    "and_filter": {
        "filters": [
            # The flag alone won't do: a request that fails gets it too where too many retries run already.
            {"response_flag_filter": {"flags": ["UO"]}},
            _details(OVERFLOW),
        ]
    }
}
"""Matches what Envoy refuses since too many requests are in flight."""
NO_MEMORY = _details("overload")
"""Matches what Envoy refuses near `max_heap_bytes`."""


def _status(op: str, number: int) -> Json:
    value = {"default_value": number, "runtime_key": "unset"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


GONE = ("http2.remote_reset", "downstream_remote_disconnect")
"""Envoy's details of what ended because the client went away. It makes UNKNOWN of a stream that had begun to answer."""
FAILED: dict[Protocol, Json] = {
    "grpc": {
        "and_filter": {
            "filters": [
                {"grpc_status_filter": {"statuses": sorted({"OK", *CLIENTS} - {"CANCELLED"}), "exclude": True}},
                # The dear one comes last: it is asked only about what did not go well.
                _matches(f"response.code != 0 && !(response.code_details in {[*GONE, OVERFLOW]})"),
            ]
        }
    },
    "http": {
        "and_filter": {
            "filters": [
                {"or_filter": {"filters": [_status("EQ", 500), _status("GE", 502), _status("EQ", 429)]}},
                _matches(f"response.code_details != '{OVERFLOW}'"),
            ]
        }
    },
}
"""Matches what failed: codes that `gateway.failures.is_failure` calls so, of clients that are still there. Not what
Envoy refuses since too many are in flight: it names the replica then that it would have asked."""


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
        _logger("led", statistics(protocol, *LED[:2]), decided=False),
        _logger("decided", statistics(protocol, *DECIDED[:2]), decided=True),
        _logger("led-failures", failures(protocol, *LED), FAILED[protocol], decided=False),
        _logger("decided-failures", failures(protocol, *DECIDED), FAILED[protocol], decided=True),
        {"name": "shed-failures", "filter": SHED, "typed_config": failures(protocol, *LED[:2], DECIDED[2])},
        {"name": "shed", "filter": SHED, "typed_config": shed(protocol)},
    ]


def _logger(name: str, config: Json, only: Json | None = None, *, decided: bool | None = None) -> Json:
    """A logger, for all requests, or only for those that the Python side did or did not decide about and that `only`
    matches."""
    if decided is None:
        return {"name": name, "typed_config": config}
    # Envoy asks a matcher here only where the value is there, and looks past its `invert`.
    value = {"present_match": True} if decided else {"string_match": {"exact": ""}}
    whose: Json = {
        "metadata_filter": {
            "matcher": {"filter": METADATA, "path": [{"key": "version"}], "value": value},
            "match_if_key_not_found": not decided,
        }
    }
    matched = whose if only is None else {"and_filter": {"filters": [only, whose]}}
    return {"name": name, "filter": matched, "typed_config": config}


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
        "replica": LED[2],
        "side_model": DECIDED[0],
        "side_version": DECIDED[1],
        "side_replica": DECIDED[2],
        "upstream": "%UPSTREAM_HOST%",
        "code": CODE["http"],
        "duration_ms": "%DURATION%",
        "request_bytes": "%BYTES_RECEIVED%",
        "response_bytes": "%BYTES_SENT%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    }
    return {**fields, "grpc_status": CODE["grpc"]} if protocol == "grpc" else fields


def statistics(protocol: Protocol, model: str, version: str) -> Json:
    """Requests and their latency by model, version and code, for `/stats/prometheus` of Envoy's admin port.

    The tags are never what a client says, which could make series without end: they come from the table. What took no
    route of a model is counted with empty ones.
    """
    tags = _tags(model=model, version=version)
    return typed(
        "envoy.extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": "model"},
        counters=[
            {
                "stat": {"name": "requests", "tags": [*tags, *_tags(protocol=protocol, code=CODE[protocol])]},
                "value_fixed": 1,
            }
        ],
        histograms=[
            {"stat": {"name": "duration", "tags": tags}, "unit": "Milliseconds", "value_format": "%DURATION%"},
        ],
    )


def failures(protocol: Protocol, model: str, version: str, replica: str) -> Json:
    """Requests that failed, by model, version, code, and the replica that was asked last.

    Replicas come and go, and there may be many: so they are a tag of failures alone, at most so many series are kept,
    and one that did not grow for two of the bootstrap's `stats_eviction_interval` goes.
    """
    tags = _tags(model=model, version=version, replica=replica, protocol=protocol, code=CODE[protocol])
    return typed(
        "envoy.extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": "model", "max_counters": MOST_FAILURE_SERIES, "enable_eviction": True},
        counters=[{"stat": {"name": "failures", "tags": tags}, "value_fixed": 1}],
    )


def shed(protocol: Protocol) -> Json:
    """Requests that were refused since too many are in flight, by model and version."""
    tags = _tags(model=LED[0], version=LED[1], protocol=protocol)
    return typed(
        "envoy.extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": "model"},
        counters=[{"stat": {"name": "shed", "tags": tags}, "value_fixed": 1}],
    )


def _tags(**values: str) -> list[Json]:
    return [{"name": name, "value_format": value} for name, value in values.items()]
