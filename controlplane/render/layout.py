"""Which file goes where in a model directory.

An artifact is a version directory, with two exceptions that Triton looks for beside it: the label files that the
entry's outputs name, and what lies in `warmup/`. Warm-up data is filed under its digest there, because each version may
bring its own, and a file that changes would make Triton load all versions again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from controlplane.core.entry import Entry, Warmup
from controlplane.core.models import ArtifactFile, Manifest
from controlplane.render.backends import SERVE_ONNX, Served
from controlplane.render.sharing import shared_paths
from controlplane.render.templates import source

WARMUP = "warmup/"


def files(
    versions: Mapping[int, Manifest], served: Served, warmup: tuple[Warmup, ...]
) -> dict[str, ArtifactFile | str]:
    """The model directory's files but config.pbtxt, by path. `warmup` as `filed` has left it."""
    placed: dict[str, ArtifactFile | str] = {}
    for number, manifest in sorted(versions.items()):
        labels = shared_paths(manifest.entry)
        for file in manifest.files:
            if file.path in labels:
                placed[file.path] = file
            elif not file.path.startswith(WARMUP):
                placed[f"{number}/{file.path}"] = file
        if served.stand_in:
            placed[f"{number}/{SERVE_ONNX}"] = source(f"{served.folder}/{SERVE_ONNX}")
    wanted = {item.file for each in warmup for item in each.inputs.values() if item.file is not None}
    for file in versions[max(versions)].files:
        if file.path.startswith(WARMUP) and filed_name(file) in wanted:
            placed[f"{WARMUP}{filed_name(file)}"] = file
    return placed


def filed(entry: Entry, manifest: Manifest) -> Entry:
    """`entry` with its warm-up files named as they are filed; those that the artifact lacks keep their names."""
    names = {file.path.removeprefix(WARMUP): filed_name(file) for file in manifest.files if _is_warmup(file)}
    return dataclasses.replace(
        entry,
        warmup=tuple(
            dataclasses.replace(
                each,
                inputs={
                    key: dataclasses.replace(item, file=names.get(item.file, item.file)) if item.file else item
                    for key, item in each.inputs.items()
                },
            )
            for each in entry.warmup
        ),
    )


def _is_warmup(file: ArtifactFile) -> bool:
    return file.path.startswith(WARMUP)


def filed_name(file: ArtifactFile) -> str:
    """The name under which a warm-up file is filed."""
    return f"{file.sha256[:16]}-{file.path.rsplit('/', 1)[-1]}"
