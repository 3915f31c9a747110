"""The JSON Schema of an entry file, for editors and for `docs/entry.schema.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from controlplane.core.entry import Entry

_READ_FROM_THE_FILE = {"Tensor": ["name"], "Entry": []}
"""What must be stated where a model's own file says the rest."""


def schema() -> dict[str, Any]:
    """The schema of a `model.yaml`: that of an entry, less what may be read from the model's file."""
    made = TypeAdapter(Entry).json_schema(mode="validation", ref_template="#/$defs/{model}")
    definitions = made["$defs"]
    for name, required in _READ_FROM_THE_FILE.items():
        (made if name == "Entry" else definitions[name])["required"] = required
    definitions["Resources"]["properties"]["memory_bytes"] = {
        "description": "Bytes, or a number with a unit such as 512Mi or 2G.",
        "anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}, {"type": "null"}],
        "default": None,
        "title": "Memory Bytes",
    }
    for name in ("parameters", "metric_tags", "labels"):
        made["properties"][name]["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "model.yaml"}


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
