"""`ctl infer`: a first request without writing a client, and the client to go on with."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from controlplane.cli.arguments import DURATION, MODEL_OR_MENTION, Mention, Reference, WholeNumber
from controlplane.cli.context import Context, Gateway, pass_context
from controlplane.cli.importing import importing
from controlplane.cli.output import note, output_option, show_one
from controlplane.core.errors import ControlPlaneError, DeadlineExceeded, InvalidInput, NotFound, Unavailable

if TYPE_CHECKING:
    from controlplane.cli.tensors import Declared, Given

SHOWN_VALUES = 20


@click.command()
@click.argument("name", metavar="NAME[@VERSION|@ALIAS]", type=MODEL_OR_MENTION)
@click.option("--input", "inputs", multiple=True, metavar="[TENSOR=]@FILE|JSON", help="An input; once for each.")
@click.option("--sequence", type=WholeNumber(min=1), help="Send it as a whole sequence with this correlation id.")
@click.option(
    "--gateway", "address", metavar="HOST:PORT", help="The gateway's gRPC address; without it, the home's or release's."
)
@click.option("--timeout", "timeout_s", type=DURATION, default="60s", show_default=True, help="How long it may take.")
@click.option("--raw", is_flag=True, help="Print numbers also where an output has labels.")
@click.option("--code/--no-code", "with_code", default=True, help="Print the Python code for it on standard error.")
@output_option
@pass_context
def infer(
    context: Context,
    *,
    name: str,
    inputs: tuple[str, ...],
    sequence: int | None,
    address: str | None,
    timeout_s: float,
    raw: bool,
    with_code: bool,
    output: str,
) -> None:
    """Send a request to the model NAME through the gateway and print the answer.

    A .npy file is an array, a .json file or JSON text nested lists; any other file's bytes are taken as raw values and
    reshaped to the input's dims. Of an output that has a label file, the labels with the highest scores are shown.
    """
    with importing():
        from tritonclient import grpc

        from controlplane.cli.tensors import Declared, read_input

    # What another gateway answers has its labels in another registry than the home's, unless one is named.
    has_labels = address is None or context.registry_url is not None
    with context.gateway(address) as gateway:
        model, version = _asked(context, name)
        with closing(grpc.InferenceServerClient(gateway.address)) as client:
            with _own_errors(model, version, gateway):
                told = client.get_model_metadata(model, version, client_timeout=timeout_s)
            declared = {
                each.name: Declared(name=each.name, data_type=each.datatype, shape=tuple(each.shape))
                for each in told.inputs
            }
            given = [read_input(text, declared) for text in inputs]
            _check_complete(given, declared)
            for each in given:
                if each.note:
                    note(each.note)
            started = time.perf_counter()
            with _own_errors(model, version, gateway):
                result = client.infer(
                    model,
                    [_tensor(grpc, each) for each in given],
                    model_version=version,
                    client_timeout=timeout_s,
                    **_sequence(sequence),
                )
            took_ms = (time.perf_counter() - started) * 1000
    answer = result.get_response()
    names = [each.name for each in answer.outputs]
    if with_code:
        note(_code(gateway.shown, model, version, given, outputs=names, sequence=sequence))
    outputs = [
        {
            "name": each.name,
            "data_type": each.datatype,
            "shape": list(each.shape),
            "data": _plain(result.as_numpy(each.name)),
        }
        for each in answer.outputs
    ]
    data = {
        "model": answer.model_name,
        "version": answer.model_version,
        "took_ms": round(took_ms, 3),
        "outputs": outputs,
    }

    def text() -> None:
        click.echo(f"{answer.model_name}@{answer.model_version} answered in {took_ms:.1f} ms")
        labels = _labels(context, answer) if has_labels and not raw else {}
        for each in outputs:
            _show(each, result.as_numpy(each["name"]), labels.get(each["name"], ()))

    show_one(data, f"{answer.model_name}@{answer.model_version}", output, text)


def _asked(context: Context, name: str) -> tuple[str, str]:
    """The model and the version (absent: empty) of `NAME`, `NAME@VERSION` or `NAME@ALIAS`."""
    from controlplane.cli.references import resolve

    model, _, version = name.partition("@")
    if version and not version.isdigit():
        version = str(resolve(context.registry(), Mention(model, version)).version)
    return model, version


def _labels(context: Context, answer: Any) -> Mapping[str, Sequence[str]]:
    from controlplane.cli.labels import labels_of

    if not answer.model_version.isdigit():
        return {}
    return labels_of(context.registry(), Reference(answer.model_name, int(answer.model_version)))


def _show(output: Mapping[str, Any], array: Any, labels: Sequence[str]) -> None:
    from controlplane.cli.labels import best, fits

    what = f"{output['name']} {output['data_type']} {output['shape']}"
    if labels and fits(array, labels):
        click.echo(f"{what}, the highest scores (all of them with -o json):")
        for line in best(array, labels):
            click.echo(line)
    else:
        click.echo(f"{what}: {_short(output['data'])}")


def _tensor(grpc: Any, given: Given) -> Any:
    tensor = grpc.InferInput(given.name, list(given.array.shape), given.data_type)
    tensor.set_data_from_numpy(given.array)
    return tensor


def _sequence(number: int | None) -> dict[str, Any]:
    return {} if number is None else {"sequence_id": number, "sequence_start": True, "sequence_end": True}


def _check_complete(given: Sequence[Given], declared: dict[str, Declared]) -> None:
    names = [each.name for each in given]
    missing = [str(each) for name, each in declared.items() if name not in names]
    if missing and not given:
        raise InvalidInput("the request has no input", field="--input", remedy="the model takes: " + ", ".join(missing))
    if missing:
        note(f"not given: {', '.join(missing)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput(f"{', '.join(twice)} is given twice", field="--input", remedy="give each input once")


def _code(
    address: str, model: str, version: str, given: Sequence[Given], *, outputs: Sequence[str], sequence: int | None
) -> str:
    lines = ["# The same request in Python:"]
    if any("json.load(" in each.code for each in given):
        lines.append("import json")
    lines += [
        "import numpy as np",
        "import tritonclient.grpc as triton",
        "",
        f'client = triton.InferenceServerClient("{address}")',
    ]
    for index, each in enumerate(given):
        lines.append(f'input{index} = triton.InferInput("{each.name}", {list(each.array.shape)}, "{each.data_type}")')
        lines.append(f"input{index}.set_data_from_numpy({each.code})")
    names = ", ".join(f"input{index}" for index in range(len(given)))
    more = f', model_version="{version}"' if version else ""
    more += "".join(f", {key}={value}" for key, value in _sequence(sequence).items())
    lines.append(f'result = client.infer("{model}", [{names}]{more})')
    lines += [f'print(result.as_numpy("{name}"))' for name in outputs]
    return "\n".join(lines) + "\n"


def _plain(array: Any) -> Any:
    values = array.tolist()
    return _decoded(values) if array.dtype.kind in "OS" else values


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _short(values: object) -> str:
    text = str(values)
    limit = SHOWN_VALUES * 12
    return text if len(text) <= limit else text[:limit] + " … (all of it with -o json)"


@contextmanager
def _own_errors(model: str, version: str, gateway: Gateway) -> Iterator[None]:
    from tritonclient.utils import InferenceServerException

    try:
        yield
    except InferenceServerException as error:
        status = str(error.status() or "").removeprefix("StatusCode.")
        if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and gateway.failure is not None:
            raise gateway.failure from error
        if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and not _is_there(gateway.address):
            raise Unavailable(
                f"nothing answers at {gateway.shown}",
                remedy="`ctl status` tells how the system is, `ctl up` starts one; --home or --gateway name another's",
            ) from error
        kinds: dict[str, type[ControlPlaneError]] = {
            "NOT_FOUND": NotFound,
            "INVALID_ARGUMENT": InvalidInput,
            "UNAVAILABLE": Unavailable,
            "DEADLINE_EXCEEDED": DeadlineExceeded,
        }
        remedy = {
            "NOT_FOUND": f"`ctl get {f'versions {model}' if version else 'models'}` lists what is there; only what is "
            "promoted or has an alias can be asked for",
            "UNAVAILABLE": f"`ctl explain {model}` says why",
        }.get(status)
        raise kinds.get(status, ControlPlaneError)(f"{gateway.shown}: {error.message()}", remedy=remedy) from error


def _is_there(address: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False
