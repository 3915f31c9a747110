"""What a check looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2

from controlplane.core.entry import Entry
from controlplane.core.errors import InvalidInput
from controlplane.core.models import Capabilities, Manifest
from controlplane.render.backends import Served

_ENTRY_NAMES = {
    "input": "inputs",
    "output": "outputs",
    "instance_group": "instances",
    "model_warmup": "warmup",
    "ensemble_scheduling": "ensemble",
    "model_transaction_policy": "decoupled",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A finished configuration, what it was made from, and what will read it. `raw`: the fields of the raw `config`."""

    config: model_config_pb2.ModelConfig
    raw: frozenset[str]
    entry: Entry
    versions: Mapping[int, Manifest]
    served: Served
    capabilities: Capabilities
    known: Callable[[str, int], Manifest | None] | None

    def at(self, field: str, rest: str = "") -> str:
        """Where a person finds a field of the configuration: in the entry, or in its raw `config`."""
        return (f"config: {field}" if field in self.raw else _ENTRY_NAMES.get(field, field)) + rest

    def finding(self, field: str, rest: str, what: str, remedy: str) -> InvalidInput:
        """A finding about a field of the configuration."""
        return InvalidInput(what, field=self.at(field, rest), remedy=remedy)


def type_name(number: int) -> str:
    """A data type as the entry writes it."""
    name = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
