"""Whatever a message holds and however it is cut: what reaches a server names the route's model and version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from controlplane.core.errors import InvalidInput
from controlplane.core.routes import Endpoint, Route, Target
from gateway import wire
from gateway.config.names import SERVICE
from tests.gateway.frames import call
from tests.gateway.running import Running, route, table

LONG = "long-" + "x" * 123
MODELS = ("m", LONG)
RELAXED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """A server that gives each message back as it came."""

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method.endswith("StreamInfer"):
            return grpc.stream_stream_rpc_method_handler(lambda messages, _: messages)
        return grpc.unary_unary_rpc_method_handler(lambda message, _: message)


@pytest.fixture(scope="module")
def port(gateway: Running) -> Iterator[int]:
    """The gateway's gRPC port; behind it a server that echoes raw messages. Stable is 2; 1 and 2 may be asked for."""
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Echo(),))
    behind = server.add_insecure_port("127.0.0.1:0")
    server.start()
    echo = Endpoint(replica="echo", host="127.0.0.1", grpc_port=behind, http_port=behind)
    elsewhere = Route(
        model="spread",
        targets=(Target(version=2, pool="all"),),
        pinned={1: "all", 2: "all", 3: None},
    )
    gateway.controller.put(
        table(echo, **{name: route(name, 2, 1) for name in MODELS}, other=route("other", 5), spread=elsewhere)
    )
    yield gateway.ports.grpc
    server.stop(None).wait()


def field(number: int, payload: bytes) -> bytes:
    length, encoded = len(payload), b""
    while length >= 128:
        encoded += bytes([length % 128 + 128])
        length //= 128
    return bytes([number * 8 + 2]) + encoded + bytes([length]) + payload


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def cut(body: bytes, places: list[int]) -> list[bytes]:
    """The body in pieces that end at these places (modulo its length), none larger than a frame may be."""
    ends = sorted({place % (len(body) + 1) for place in places} | {*range(0, len(body), 16_384), len(body)})
    return [body[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]


names = st.sampled_from([b"m", b"other", b"", LONG.encode(), b"nobody"])
versions = st.sampled_from([b"", b"1", b"2", b"3", b"02", b"x"])
contents = st.sampled_from([0, 1, 100, 127, 128, 300, 511, 512, 2047, 2048, 3000]).map(lambda size: b"\x07" * size)
fields = st.one_of(
    names.map(lambda text: field(1, text)),
    versions.map(lambda text: field(2, text)),
    st.text(max_size=8).map(lambda text: field(3, text.encode())),
    contents.map(lambda data: field(7, data)),
    st.integers(0, 2**64 - 1).map(lambda number: b"\x50" + _varint(number)),  # an unknown field 10, a number
    st.binary(min_size=8, max_size=8).map(lambda data: b"\x59" + data),  # an unknown field 11, 8 bytes
    st.binary(min_size=4, max_size=4).map(lambda data: b"\x65" + data),  # an unknown field 12, 4 bytes
)


def _varint(number: int) -> bytes:
    data = b""
    while number >= 128:
        data += bytes([number % 128 + 128])
        number //= 128
    return data + bytes([number])


def disguised(number: int, text: bytes, *, more: int = 1, encoded_bytes: int = 5) -> bytes:
    """A field that is another one for readers that keep 32 bits of its tag, or do not count the tag's bytes."""
    tag = number * 8 + 2 + more * 2**32
    encoded = bytes([tag >> 7 * place & 127 | 128 for place in range(encoded_bytes - 1)])
    return encoded + bytes([tag >> 7 * (encoded_bytes - 1)]) + bytes([len(text)]) + text


disguises = st.builds(
    disguised,
    st.sampled_from([0, 1, 2, 7]),
    st.sampled_from([b"m", b"other", b"1", b"3"]),
    more=st.integers(1, 7),
)
overlong = st.builds(
    disguised, st.integers(1, 2), st.sampled_from([b"m", b"3"]), more=st.just(0), encoded_bytes=st.integers(6, 10)
)

usual = st.tuples(st.sampled_from([b"m", LONG.encode()]), st.sampled_from([b"", b"2"]), contents).map(
    lambda parts: field(1, parts[0]) + (field(2, parts[1]) if parts[1] else b"") + field(7, parts[2])
)
sound = st.one_of(usual, st.lists(fields, max_size=12).map(b"".join))
unsound = st.tuples(usual, st.one_of(disguises, overlong), st.one_of(st.just(b""), usual)).map(b"".join)
messages = st.one_of(sound, unsound, st.binary(max_size=600))
places = st.lists(st.integers(0, 20_000), max_size=30)


def parsed(message: bytes) -> Any:
    try:
        return service_pb2.ModelInferRequest.FromString(message)
    except DecodeError:
        return None


@RELAXED
@given(message=messages, where=places)
@example(message=b"", where=[])
@example(message=field(1, b"m") + field(7, b"\x07" * 3000) + field(2, b"1") + field(1, b"other"), where=[3])
@example(message=field(1, LONG.encode()), where=[])
def test_unary_messages(port: int, message: bytes, where: list[int]) -> None:
    answers = call(port, f"{SERVICE}ModelInfer", {}, cut(framed(message), where))
    request = parsed(message)
    if not answers:  # refused: unknown, not to be asked for, or no message of this protocol
        known = request is not None and request.model_name in {*MODELS, "other"}
        offered = {"", "5"} if request is not None and request.model_name == "other" else {"", "1", "2"}
        assert not (known and request.model_version in offered)
        return
    (arrived,) = answers
    assert request is not None
    got = parsed(arrived)
    assert got.model_name == request.model_name
    assert got.model_version == (request.model_version or ("5" if request.model_name == "other" else "2"))
    assert arrived.startswith(message)


@RELAXED
@given(
    sent=st.one_of(st.lists(sound, max_size=6), st.lists(messages, max_size=6).map(tuple)),
    where=places,
    model=st.sampled_from(MODELS),
    pin=st.sampled_from(["", "1"]),
)
@example(sent=[b""], where=[1, 2, 3, 4], model="m", pin="")
@example(sent=(b"", b"", b"\x0a"), where=[4, 5, 6], model="m", pin="")
def test_messages_of_a_stream(port: int, sent: Sequence[bytes], where: list[int], model: str, pin: str) -> None:
    all_sound = isinstance(sent, list)
    headers = {"x-model-name": model, **({"x-model-version": pin} if pin else {})}
    body = b"".join(framed(message) for message in sent)
    answers = call(port, f"{SERVICE}ModelStreamInfer", headers, cut(body, where))
    assert len(answers) == len(sent) if all_sound else len(answers) <= len(sent)
    version = pin or "2"
    forced = field(1, model.encode()) + field(2, version.encode())
    for before, after in zip(sent, answers, strict=False):
        assert after.startswith(before)
        tail = after[len(before) :]
        assert tail == forced or tail.startswith(b"\x0a")
        got = parsed(after)
        if got is not None:  # what can't be read, no server answers
            assert (got.model_name, got.model_version) == (model, version) or got.model_name.startswith("(")
        if before.startswith(field(1, model.encode()) + b"\x3a"):
            assert tail == forced  # an ordinary message without a version


@RELAXED
@given(missing=st.integers(1, 400), where=places)
def test_a_message_can_not_swallow_what_is_appended(port: int, missing: int, where: list[int]) -> None:
    hidden = field(7, b"\x07" * 400) + field(1, b"other") + field(2, b"5")
    message = hidden + b"\x3a" + _varint(missing)
    body = framed(field(1, b"m")) + framed(message) + framed(field(1, b"m"))
    for path, headers in ((f"{SERVICE}ModelStreamInfer", {"x-model-name": "m"}), (f"{SERVICE}ModelInfer", {})):
        sent = body if headers else framed(message)
        for arrived in call(port, path, headers, cut(sent, where)):
            assert parsed(arrived).model_name == "m"


@pytest.mark.parametrize(
    "hidden",
    [
        b"\x8a\x80\x80\x80\x10\x05other",
        b"\x92\x80\x80\x80\x10\x013",
        b"\x8a\x80\x80\x80\x70\x05other",
        b"\x8a\x80\x80\x80\x80\x00\x05other",
        b"\x92\x80\x80\x80\x80\x80\x80\x80\x80\x00\x013",
        b"\x02\x05other",
        b"\x00\x00",
    ],
    ids=["name", "version", "name-all-bits", "name-six-bytes", "version-ten-bytes", "field-0", "end"],
)
@pytest.mark.parametrize("before", [b"", field(7, b"\x07" * 3000)], ids=["near", "far"])
def test_a_field_that_others_read_as_another_is_refused(port: int, before: bytes, hidden: bytes) -> None:
    message = field(1, b"m") + before + hidden
    assert not call(port, f"{SERVICE}ModelInfer", {}, [framed(message)])
    sent = framed(field(1, b"m")) + framed(message) + framed(field(1, b"m"))
    assert len(call(port, f"{SERVICE}ModelStreamInfer", {"x-model-name": "m"}, [sent])) <= 1
    with pytest.raises(InvalidInput):
        wire.read(message)


@pytest.mark.parametrize(
    ("model", "version", "arrives"),
    [("spread", "1", "1"), ("spread", "", "2"), ("m", "1", "1"), ("m", "3", None), ("m/1", "", None), ("m/", "", None)],
)
def test_which_version_arrives(port: int, model: str, version: str, arrives: str | None) -> None:
    message = service_pb2.ModelInferRequest(model_name=model, model_version=version).SerializeToString()
    answers = call(port, f"{SERVICE}ModelInfer", {}, [framed(message)])
    assert [parsed(each).model_version for each in answers] == ([arrives] if arrives else [])


@pytest.mark.parametrize("header", ["x-gateway-route", "x-gateway-version"])
def test_a_client_can_not_lead_by_the_gateways_own_headers(port: int, header: str) -> None:
    message = service_pb2.ModelInferRequest(model_name="nobody").SerializeToString()
    assert not call(port, f"{SERVICE}ModelInfer", {header: "m"}, [framed(message)])
    assert not call(port, f"{SERVICE}RepositoryModelLoad", {header: "m", "x-model-name": "m"}, [framed(message)])


@pytest.mark.parametrize("flag", [1, 2, 255])
def test_a_message_that_is_flagged_as_compressed_is_never_passed_on_as_it_is(port: int, flag: int) -> None:
    message = service_pb2.ModelInferRequest(model_name="m", model_version="9").SerializeToString()
    body = bytes([flag]) + framed(message)[1:]
    assert not call(port, f"{SERVICE}ModelInfer", {}, [body])
    assert not call(port, f"{SERVICE}ModelStreamInfer", {"x-model-name": "m"}, [body])


def test_a_message_of_very_many_fields_is_refused_at_once(port: int) -> None:
    message = field(1, b"m") + b"\x50\x01" * 200_000
    assert not call(port, f"{SERVICE}ModelInfer", {}, cut(framed(message), [i * 16_000 for i in range(30)]))


@pytest.mark.parametrize("call_name", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_questions_are_forced_too(port: int, call_name: str) -> None:
    message = service_pb2.ModelReadyRequest(name="m").SerializeToString()
    (arrived,) = call(port, f"{SERVICE}{call_name}", {}, [framed(message)])
    assert service_pb2.ModelReadyRequest.FromString(arrived).version == "2"
