"""The filter chains of the two listeners: allow-list, size limit, the route's key, the forced version, logs."""

from __future__ import annotations

from importlib import resources

from gateway.config.logs import NO_MEMORY, SHED, access_logs
from gateway.config.names import (
    HEALTH_CALL,
    HTTP_MODEL_PATH,
    HTTP_SERVER_PATH,
    LUA,
    METADATA,
    MODEL_CALLS,
    ROUTE_KEY,
    SERVED_MODEL,
    SERVED_REPLICA,
    SERVED_VERSION,
    SERVER_CALLS,
    SERVICE,
    STREAM_CALL,
    Files,
    Json,
    Protocol,
    typed,
)
from gateway.settings import RETRY_AFTER_S, Settings

HTTP_FILTERS = "envoy.extensions.filters.http"
NOT_OFFERED = (
    "the gateway does not offer this call: only inference, metadata, config, statistics and health can be reached; "
    "loading, shared memory, tracing and logging are closed to clients"
)
SIZE_LIMIT = "size-limit"
SHED_TEXT = (
    f"the replicas of %METADATA(ROUTE:{LUA}:model)% have as many requests in flight as they may have; "
    "this one was not passed on, ask again in a moment"
)


def connection_manager(protocol: Protocol, settings: Settings, files: Files) -> Json:
    """The HTTP connection manager of one listener."""
    window = min(settings.max_request_bytes + (1 << 20), 2**31 - 1)
    return typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=protocol,
        codec_type="AUTO",
        http_filters=[
            *_filters(protocol, settings),
            {
                "name": "router",
                "typed_config": typed(f"{HTTP_FILTERS}.router.v3.Router", suppress_envoy_headers=True),
            },
        ],
        stream_idle_timeout=f"{settings.idle_timeout_s:g}s",
        request_headers_timeout="10s",
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        generate_request_id=True,
        http2_protocol_options={
            "max_concurrent_streams": 1024,
            # The field extraction may hold a whole message, and its limit is the stream's window.
            "initial_stream_window_size": window,
            "initial_connection_window_size": min(4 * window, 2**31 - 1),
        },
        rds={
            "route_config_name": f"routes-{protocol}",
            "config_source": {
                "resource_api_version": "V3",
                "path_config_source": {"path": str(files.routes(protocol))},
            },
        },
        local_reply_config=_local_replies(protocol, settings),
        access_log=access_logs(protocol, files),
    )


def _filter(name: str, config: Json) -> Json:
    return {"name": name, "typed_config": config}


def _allow(permissions: list[Json]) -> Json:
    rules = {
        "action": "ALLOW",
        "policies": {"offered": {"permissions": permissions, "principals": [{"any": True}]}},
    }
    return _filter("allow", typed(f"{HTTP_FILTERS}.rbac.v3.RBAC", rules=rules))


def _size_limit(settings: Settings) -> Json:
    return typed(f"{HTTP_FILTERS}.body_size_limit.v3.BodySizeLimit", max_request_bytes=settings.max_request_bytes)


def _served_headers() -> Json:
    """Takes what the Python side decided into the metadata that logs read."""
    rules = [
        {"header": header, "on_header_present": {"metadata_namespace": METADATA, "key": key}, "remove": True}
        for header, key in ((SERVED_MODEL, "model"), (SERVED_VERSION, "version"), (SERVED_REPLICA, "replica"))
    ]
    return _filter("served", typed(f"{HTTP_FILTERS}.header_to_metadata.v3.Config", response_rules=rules))


def _lua(protocol: Protocol) -> Json:
    folder = resources.files("gateway.config")
    text = "\n".join(folder.joinpath(name).read_text() for name in ("lead.lua", f"{protocol}.lua"))
    config = typed(f"{HTTP_FILTERS}.lua.v3.Lua", clear_route_cache=False, default_source_code={"inline_string": text})
    return _filter(LUA, config)


def _filters(protocol: Protocol, settings: Settings) -> list[Json]:
    """The filters before the router. The script comes before the allow-list, to take off what is not for clients."""
    if protocol == "grpc":
        calls = [SERVICE + call for call in (*MODEL_CALLS, STREAM_CALL, *SERVER_CALLS)] + [HEALTH_CALL]
        allowed: list[Json] = [{"url_path": {"path": {"exact": call}}} for call in calls]
    else:
        paths = (HTTP_MODEL_PATH, HTTP_SERVER_PATH)
        allowed = [{"url_path": {"path": {"safe_regex": {"regex": path}}}} for path in paths]
    return [_filter(SIZE_LIMIT, _size_limit(settings)), _lua(protocol), _allow(allowed), _served_headers()]


def without(name: str) -> Json:
    """What a route says to have a filter left out for requests that match it when they arrive."""
    off = typed("envoy.config.route.v3.FilterConfig", disabled=True)
    return {"typed_per_filter_config": {name: off}}


def _local_replies(protocol: Protocol, settings: Settings) -> Json:
    """Envoy's own answers, in Triton's form: a sentence in grpc-message, or `{"error": …}`."""

    def mapper(which: Json, text: str, grpc_status: int, *, shed: bool = False) -> Json:
        headers = {
            **({"grpc-status": str(grpc_status)} if protocol == "grpc" else {}),
            **({"retry-after": str(RETRY_AFTER_S)} if shed else {}),
        }
        body = (
            {"text_format_source": {"inline_string": text}} if protocol == "grpc" else {"json_format": {"error": text}}
        )
        added = [
            {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for name, value in headers.items()
        ]
        return {
            "filter": which,
            "body_format_override": body,
            **({"status_code": 429} if shed and protocol == "http" else {}),
            **({"headers_to_add": added} if added else {}),
        }

    def code(number: int) -> Json:
        value = {"default_value": number, "runtime_key": "unset"}
        return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}

    unknown = (
        f"no route for '%REQ({ROUTE_KEY})%': the model is not known, none of its versions "
        "is stable yet, or this version may not be asked for"
    )
    too_large = f"the request is larger than the gateway's limit of {settings.max_request_bytes} bytes"
    mappers = [
        mapper(SHED, SHED_TEXT, 8, shed=True),
        mapper(NO_MEMORY, "the gateway is short of memory and takes no new requests", 8, shed=True),
        mapper(code(403), NOT_OFFERED, 7),
        mapper(code(404), unknown, 5),
        mapper(code(413), too_large, 8),
    ]
    if protocol == "grpc":
        return {"mappers": [*mappers, mapper(code(400), "%LOCAL_REPLY_BODY%", 3)]}
    return {"mappers": mappers, "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}}
