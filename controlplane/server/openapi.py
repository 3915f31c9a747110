"""The OpenAPI document of the controller's API, made from the message types themselves (docs/openapi.json)."""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from controlplane import __version__
from controlplane.core.messages import Assignment, GatewayOrder, GatewayReport, ReplicaReport

_READS = {
    "/v1/status": "The controller: epoch, whether it has settled, what is wrong.",
    "/v1/models": "Each model: versions by role, where they are ready, what its rollout waits for.",
    "/v1/models/{name}/explain": "Why a model is served as it is.",
    "/v1/replicas": "Each replica: its server, what it holds, when it was last heard.",
    "/v1/gateways": "Each gateway: the table it serves, what waits there.",
    "/v1/fleets": "Each fleet: its size, memory, what its servers can do.",
    "/v1/fleets/{name}/explain": "Why a fleet is as it is.",
    "/v1/routes": "The route table.",
    "/v1/targets": "The servers' metrics pages, for Prometheus' HTTP service discovery (http_sd_configs).",
    "/v1/top": "How fleets and models fare: load, queues, batches, sizes, and each fleet's next decision.",
}


@cache
def document() -> dict[str, Any]:
    """The document, as OpenAPI 3.1."""
    schemas: dict[str, Any] = {}

    def reference(message: type, mode: str) -> dict[str, str]:
        schema = TypeAdapter(message).json_schema(
            ref_template="#/components/schemas/{model}", mode="validation" if mode == "in" else "serialization"
        )
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
        schemas[message.__name__] = schema
        return {"$ref": f"#/components/schemas/{message.__name__}"}

    def sync(summary: str, report: type, order: type) -> dict[str, Any]:
        return {
            "post": {
                "summary": summary,
                "parameters": [
                    _parameter("name", "path", "string"),
                    _parameter("wait_s", "query", "number", "How long to wait for something newer, in seconds."),
                ],
                "requestBody": {"required": True, "content": _content(reference(report, "in"))},
                "responses": {
                    "200": {"description": "Something newer.", "content": _content(reference(order, "out"))},
                    "204": {"description": "Nothing newer."},
                    **_ERRORS,
                },
            }
        }

    paths: dict[str, Any] = {
        "/v1/replicas/{name}/sync": sync("An agent's report; its replica's assignment.", ReplicaReport, Assignment),
        "/v1/gateways/{name}/sync": sync("A gateway's report; its next table.", GatewayReport, GatewayOrder),
        "/livez": {"get": {"summary": "Liveness; needs no token.", "responses": {"200": {"description": "Alive."}}}},
        "/readyz": {
            "get": {
                "summary": "Readiness; needs no token.",
                "responses": {
                    "200": {"description": "It leads, or can name who does."},
                    "503": {"description": "Neither yet."},
                },
            }
        },
        "/healthz": {"get": {"summary": "Liveness; needs no token.", "responses": {"200": {"description": "Alive."}}}},
        "/metrics": {"get": {"summary": "Prometheus metrics.", "responses": {"200": {"description": "Metrics."}}}},
    }
    for path, summary in _READS.items():
        parameters = [_parameter("name", "path", "string")] if "{name}" in path else []
        answer = {"description": "As the summary says.", "content": _content({"type": ["object", "array"]})}
        paths[path] = {"get": {"summary": summary, "parameters": parameters, "responses": {"200": answer, **_ERRORS}}}
    schemas["Error"] = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "field": {"type": ["string", "null"]},
                    "remedy": {"type": ["string", "null"]},
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Triton control plane: controller",
            "version": __version__,
            "license": {"name": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _parameter(name: str, where: str, kind: str, description: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "schema": {"type": kind},
        "description": description,
    }


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_ERRORS = {
    "421": {
        "description": "Another controller leads; the header says where.",
        "headers": {"location": {"schema": {"type": "string"}, "description": "Its base URL."}},
        "content": _content({"$ref": "#/components/schemas/Error"}),
    },
    "503": {
        "description": "Nobody leads at present, or who calls can't be found out.",
        "headers": {"retry-after": {"schema": {"type": "integer"}, "description": "When to ask again, in seconds."}},
        "content": _content({"$ref": "#/components/schemas/Error"}),
    },
    "4XX": {"description": "Refused.", "content": _content({"$ref": "#/components/schemas/Error"})},
}


def document_text() -> str:
    """The document as it is published."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document_text())
