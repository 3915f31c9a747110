"""Whether a server runs a model as it was told to: what was rendered against what it says it has."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2


def differences(config_text: str, served: model_config_pb2.ModelConfig) -> tuple[str, ...]:
    """What the served configuration has otherwise than the rendered text says, one sentence each.

    Triton completes a configuration: what the text leaves open (names of instance groups, preferred batch sizes, pinned
    memory) is not compared.
    """
    return tuple(_differences("", text_format.Parse(config_text, model_config_pb2.ModelConfig()), served))


def _differences(path: str, wanted: Message, has: Message) -> Iterator[str]:
    for field, value in wanted.ListFields():
        at, other = f"{path}.{field.name}".lstrip("."), getattr(has, field.name)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            if value != other:
                yield f"{at} is {other!r} instead of {value!r}"
        elif not field.is_repeated:
            yield from _differences(at, value, other)
        elif len(value) != len(other):
            yield f"{at} has {len(other)} items instead of {len(value)}"
        else:
            for index, (mine, theirs) in enumerate(zip(value, other, strict=True)):
                yield from _differences(f"{at}[{index}]", mine, theirs)
