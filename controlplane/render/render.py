"""Entry to model directory: template, parse back, merge the raw configuration, check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from controlplane.core.entry import Entry, InstanceGroup
from controlplane.core.errors import ControlPlaneError, InvalidEntry, InvalidInput
from controlplane.core.models import Capabilities, Manifest
from controlplane.render import layout
from controlplane.render.backends import BACKENDS, SERVE_ONNX, Served, serve
from controlplane.render.checks import Case, findings, findings_before
from controlplane.render.rendered import RenderedModel
from controlplane.render.sharing import combined, compatible
from controlplane.render.templates import environment

Known = Callable[[str, int], Manifest | None]
"""Finds the manifest of a model's version: what an ensemble's steps are."""


def render(manifest: Manifest, version: int, capabilities: Capabilities, known: Known | None = None) -> RenderedModel:
    """The model directory of one version. See `render_model`."""
    return render_model({version: manifest}, capabilities, known)


def render_model(
    versions: Mapping[int, Manifest], capabilities: Capabilities, known: Known | None = None
) -> RenderedModel:
    """The model directory that holds `versions` (at least one) of a model, for servers with these capabilities.

    The same arguments give the same bytes. `known`, where given, lets an ensemble be checked against its steps.
    Raises InvalidEntry with every finding, each with field and remedy.
    """
    highest = versions[max(versions)]
    subject = f"{highest.entry.name}@" + ",".join(str(number) for number in sorted(versions))
    for number in versions:
        if (reason := compatible(versions[number], highest)) is not None:
            clash = InvalidInput(f"versions {number} and {max(versions)} can't be on one server: {reason}")
            raise InvalidEntry(subject, (clash,))
    entry = layout.filed(combined(versions), highest)
    if early := tuple(findings_before(entry, versions, capabilities)):
        raise InvalidEntry(subject, early)
    try:
        served = serve(entry, capabilities)
    except InvalidInput as error:
        raise InvalidEntry(subject, (error,)) from error
    entry = dataclasses.replace(entry, instances=_instances(entry, capabilities))
    text = _text(entry, tuple(sorted(versions)), served)
    config = _parsed(text, subject)
    raw = _raw(entry.config, subject)
    if raw is not None:
        _merge(config, raw)
        text = "# Written from the entry with its raw `config` merged in.\n" + text_format.MessageToString(config)
    case = Case(
        config=config,
        raw=frozenset() if raw is None else frozenset(field.name for field, _ in raw.ListFields()),
        entry=entry,
        versions=versions,
        served=served,
        capabilities=capabilities,
        known=known,
    )
    if found := tuple(findings(case)):
        raise InvalidEntry(subject, found)
    return RenderedModel(
        name=entry.name,
        versions=tuple(sorted(versions)),
        config_text=text,
        files=layout.files(versions, served, entry.warmup),
        directories=tuple(str(number) for number in sorted(versions)),
        notes=_notes(highest.entry, entry, versions, served),
    )


def _instances(entry: Entry, capabilities: Capabilities) -> tuple[InstanceGroup, ...]:
    """The instance groups with nothing left to the server: without any, Triton makes one on every GPU."""
    if entry.backend == "ensemble":
        return entry.instances
    gpu = capabilities.gpus > 0 and BACKENDS[entry.backend].gpu
    if not entry.instances:
        return (InstanceGroup(kind="GPU", gpus=(0,)) if gpu else InstanceGroup(kind="CPU"),)
    resolved = []
    for group in entry.instances:
        kind = group.kind if group.kind != "AUTO" else "GPU" if gpu or group.gpus else "CPU"
        every = tuple(range(capabilities.gpus)) if kind == "GPU" else ()
        resolved.append(dataclasses.replace(group, kind=kind, gpus=group.gpus or every))
    return tuple(resolved)


def _text(entry: Entry, versions: tuple[int, ...], served: Served) -> str:
    rendered = (
        environment()
        .get_template(f"{served.folder}/config.pbtxt.j2")
        .render(
            entry=entry,
            versions=versions,
            model_filename=served.model_filename,
            server_filename=SERVE_ONNX,
            native_states=not served.stand_in,
        )
    )
    return "\n".join(line.rstrip() for line in rendered.split("\n") if line.strip()) + "\n"


def _parsed(text: str, subject: str) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:  # what no field can hold, such as a dim of 2⁷⁰
        problem = InvalidInput(f"Triton can't hold it: {error}", remedy="use a smaller number")
        raise InvalidEntry(subject, (problem,)) from error


def _raw(text: str, subject: str) -> model_config_pb2.ModelConfig | None:
    if not text.strip():
        return None
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeError) as error:
        problem: ControlPlaneError = InvalidInput(
            f"is not a Triton model configuration: {error}",
            field="config",
            remedy="write it as in config.pbtxt: snake_case fields, TYPE_FP32 for types, strings in quotes",
        )
        raise InvalidEntry(subject, (problem,)) from error


def _merge(config: model_config_pb2.ModelConfig, raw: model_config_pb2.ModelConfig) -> None:
    """Let what `raw` sets replace what is there, a repeated field as a whole."""
    for field, _ in raw.ListFields():
        config.ClearField(field.name)
    config.MergeFrom(raw)


def _notes(stated: Entry, entry: Entry, versions: Mapping[int, Manifest], served: Served) -> tuple[str, ...]:
    notes = []
    if served.stand_in:
        notes.append("served through the Python backend with the onnxruntime package; batching is Triton's own")
    if len(versions) > 1:
        notes.append(
            f"configured as version {max(versions)} says, for versions {', '.join(map(str, sorted(versions)))}"
        )
    if entry.max_batch_size != stated.max_batch_size:
        notes.append(f"batches of at most {entry.max_batch_size} while an older version with that limit is here")
    if entry.response_cache != stated.response_cache:
        notes.append("no response cache while a version that does not allow it is here")
    return tuple(notes)
