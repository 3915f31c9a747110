"""Whether the files that a configuration names are in the artifact."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.core.errors import InvalidInput
from controlplane.render.backends import BACKENDS, SERVE_ONNX
from controlplane.render.checks.case import Case


def model_file(case: Case) -> Iterator[InvalidInput]:
    """Each version needs the file that the backend opens."""
    if case.entry.backend == "ensemble":
        return
    wanted = case.served.model_filename
    for number, manifest in sorted(case.versions.items()):
        paths = {file.path for file in manifest.files}
        needed = [wanted, *(wanted.rsplit(".", 1)[0] + suffix for suffix in BACKENDS[case.entry.backend].companions)]
        for path in needed:
            if path not in paths and not any(there.startswith(f"{path}/") for there in paths):
                yield InvalidInput(
                    f"version {number} has no file {path}; it has: {', '.join(sorted(paths)) or 'none'}",
                    field="default_model_filename",
                    remedy=f"name the file that {case.entry.backend} shall open, or put {path} into the artifact",
                )


def labels(case: Case) -> Iterator[InvalidInput]:
    """A label file is named by an output and lies in the artifact."""
    paths = {file.path for file in case.versions[max(case.versions)].files}
    for index, output in enumerate(case.config.output):
        name = output.label_filename
        if not name:
            continue
        where = f"[{index}].label_filename"
        if name not in paths:
            yield case.finding(
                "output",
                where,
                f"there is no file {name} in the artifact",
                "add it beside the model file, one label a line",
            )
        elif not any(tensor.label_filename == name for tensor in case.entry.outputs):
            yield case.finding(
                "output",
                where,
                "a label file named only in the raw `config` is not put where Triton looks for it",
                "name it in the entry's `outputs`",
            )
        elif name.split("/")[0].isdigit() or name == "config.pbtxt":
            yield case.finding("output", where, f"{name} would lie in Triton's own place", "give the file another name")


def reserved(case: Case) -> Iterator[InvalidInput]:
    """A file of the artifact may not take the place of one that is written here."""
    if not case.served.stand_in:
        return
    for number, manifest in sorted(case.versions.items()):
        if any(file.path == SERVE_ONNX for file in manifest.files):
            yield InvalidInput(
                f"version {number} has a file {SERVE_ONNX}, which is where the control plane puts its own",
                remedy="give the file another name",
            )
