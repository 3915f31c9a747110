"""What must be right in an entry before anything can be rendered from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from controlplane.core.entry import Entry, is_name
from controlplane.core.errors import InvalidInput
from controlplane.core.models import Capabilities, Manifest


def findings_before(
    entry: Entry, versions: Mapping[int, Manifest], capabilities: Capabilities
) -> Iterator[InvalidInput]:
    """What makes an entry impossible to render."""
    if not is_name(entry.name):
        yield InvalidInput(
            f"{entry.name!r} can't be a model's name",
            field="name",
            remedy="use letters, digits, `_`, `-` and `.`, starting with a letter or digit, 128 at most, without `..`",
        )
    if any(number < 1 for number in versions):
        yield InvalidInput("versions are positive integers", remedy="number versions from 1")
    for number, manifest in sorted(versions.items()):
        for file in manifest.files:
            parts = file.path.split("/")
            if not file.path.isprintable() or "\\" in file.path or any(part in ("", ".", "..") for part in parts):
                yield InvalidInput(
                    f"version {number} has a file {file.path!r}, which would lie outside its directory",
                    remedy="register the files again under relative paths without `..`",
                )
    schedulers = [
        name
        for name, there in (
            ("dynamic_batching", entry.dynamic_batching is not None),
            ("sequence_batching", entry.sequence_batching is not None),
            ("ensemble", bool(entry.ensemble)),
        )
        if there
    ]
    if len(schedulers) > 1:
        yield InvalidInput(
            f"a model has one scheduler, but here are {' and '.join(schedulers)}",
            field=schedulers[1],
            remedy="keep one of them; to batch within sequences, use `sequence_batching` with `strategy: oldest`",
        )
    if (entry.backend == "ensemble") != bool(entry.ensemble):
        yield InvalidInput(
            "an ensemble is what has `backend: ensemble` and steps in `ensemble`, and here is only one of the two",
            field="ensemble",
            remedy="give the steps and `backend: ensemble`, or neither",
        )
    yield from _serving(entry)
    for index, step in enumerate(entry.ensemble):
        if step.model_version is None:
            yield InvalidInput(
                f"the step's version of {step.model_name} is not pinned",
                field=f"ensemble[{index}].model_version",
                remedy="name a version; `ctl register` pins what is stable at that moment",
            )
    for index, group in enumerate(entry.instances):
        if group.kind == "GPU" and capabilities.gpus == 0:
            yield InvalidInput(
                "a GPU is asked for, and the fleet's servers have none",
                field=f"instances[{index}].kind",
                remedy="say `kind: CPU` or `AUTO`, or register it for a fleet with GPUs",
            )


def _serving(entry: Entry) -> Iterator[InvalidInput]:
    if entry.serving.max_copies is not None and entry.serving.max_copies < entry.serving.min_copies:
        yield InvalidInput(
            f"at most {entry.serving.max_copies} copies are fewer than at least {entry.serving.min_copies}",
            field="serving.max_copies",
            remedy="raise it, or lower `min_copies`",
        )
    together = {entry.name, *(step.model_name for step in entry.ensemble)}
    for name in together.intersection(entry.serving.apart_from):
        yield InvalidInput(
            f"{name} is the model itself or a step of it, and can't be apart from it",
            field="serving.apart_from",
            remedy="leave it out",
        )
