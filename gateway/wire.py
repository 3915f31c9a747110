"""The little of a gRPC inference request that leads it, read without parsing tensors; and the forced version."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from controlplane.core.errors import InvalidInput
from gateway.sequences import NO_SEQUENCE, SequenceMark

MAX_FIELDS = 65_536
"""Top-level fields of one message that are looked at; a request with more is refused, it would only cost time."""


MAX_TAG = 2**32 - 1
"""Servers keep the lower 32 bits of a larger one: it would be another field for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a request says of itself: the model, the version it wishes (empty: none), its id, its sequence."""

    model: str
    version: str
    id: str = ""
    sequence: SequenceMark = NO_SEQUENCE


def read(message: bytes, *, inference: bool = True) -> Envelope:
    """The envelope of a ModelInferRequest, or, with `inference` False, of another request that names a model.

    Raises InvalidInput for what is no such message.
    """
    slices = b"".join(_small_fields(message, last=4 if inference else 2))
    try:
        request = service_pb2.ModelInferRequest.FromString(slices)
    except DecodeError as error:
        raise InvalidInput(f"the message is not an inference request: {error}") from error
    if not inference:
        return Envelope(model=request.model_name, version=request.model_version)
    return Envelope(
        model=request.model_name, version=request.model_version, id=request.id, sequence=_sequence(request.parameters)
    )


def forced(message: bytes, model: str, version: int) -> bytes:
    """The message, made to name this model and version: of a field that is there several times the last one counts."""
    names: bytes = service_pb2.ModelInferRequest(model_name=model, model_version=str(version)).SerializeToString()
    return message + names


def not_ready() -> bytes:
    """The answer that a model is not ready."""
    return bytes(service_pb2.ModelReadyResponse(ready=False).SerializeToString())


def stream_error(text: str, request_id: str) -> bytes:
    """An answer on a stream that says what was wrong with one message."""
    answer = service_pb2.ModelStreamInferResponse(error_message=text)
    answer.infer_response.id = request_id
    return bytes(answer.SerializeToString())


def _sequence(parameters: object) -> SequenceMark:
    values = {
        name: getattr(parameters[name], parameters[name].WhichOneof("parameter_choice") or "bool_param")  # type: ignore[index]
        for name in ("sequence_id", "sequence_start", "sequence_end")
        if name in parameters  # type: ignore[operator]
    }
    key = values.get("sequence_id")
    return SequenceMark(
        key=str(key) if key else "",
        start=bool(values.get("sequence_start", False)),
        end=bool(values.get("sequence_end", False)),
    )


def _small_fields(message: bytes, last: int) -> list[bytes]:
    """The bytes of the top-level fields 1 to `last`, in their order."""
    found: list[bytes] = []
    position, size = 0, len(message)
    for _ in range(MAX_FIELDS):
        if position >= size:
            return found
        start = position
        tag, position = _varint(message, position)
        if not 8 <= tag <= MAX_TAG or position - start > 5:
            raise InvalidInput("the message is not an inference request: a field's number is out of range")
        kind = tag & 7
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 1:
            position += 8
        elif kind == 2:
            length, position = _varint(message, position)
            position += length
        elif kind == 5:
            position += 4
        else:
            raise InvalidInput("the message is not an inference request: a group or an unknown wire type")
        if position > size:
            raise InvalidInput("the message is not an inference request: it ends inside a field")
        if 1 <= tag >> 3 <= last:
            found.append(message[start:position])
    raise InvalidInput(f"the message has more than {MAX_FIELDS} fields")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise InvalidInput("the message is not an inference request: a number in it does not end")
