"""Names instead of numbers: the label files that a version's outputs have in the registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from controlplane.cli.arguments import Reference
from controlplane.cli.references import manifest_of
from controlplane.core.errors import ControlPlaneError

if TYPE_CHECKING:
    from controlplane.registry import Registry

BEST, ROWS = 5, 10
"""So many labels are shown of each row of scores, and so many rows."""


def labels_of(registry: Registry, reference: Reference) -> Mapping[str, Sequence[str]]:
    """By output, its labels in the order of its scores. Nothing where the registry can't tell."""
    try:
        manifest = manifest_of(registry, reference)
        digests = {file.path: file.sha256 for file in manifest.files}
        return {
            tensor.name: b"".join(registry.read_blob(digests[tensor.label_filename]))
            .decode(errors="replace")
            .removesuffix("\n")
            .split("\n")
            for tensor in manifest.entry.outputs
            if tensor.label_filename in digests
        }
    except ControlPlaneError:
        return {}


def fits(scores: Any, labels: Sequence[str]) -> bool:
    """Whether an array is rows of scores, one for each label."""
    return scores.dtype.kind in "fiu" and scores.size > 0 and scores.shape[-1:] == (len(labels),)


def best(scores: Any, labels: Sequence[str]) -> Iterator[str]:
    """The labels with the highest scores, a line each; rows are numbered where there are several."""
    rows = scores.reshape(-1, len(labels))
    for number, row in enumerate(rows[:ROWS]):
        chosen = [(labels[index].strip(), f"{row[index]:.4g}") for index in (-row.astype(float)).argsort()[:BEST]]
        width = max(len(label) for label, _ in chosen)
        for label, score in chosen:
            yield f"  {f'[{number}] ' if len(rows) > 1 else ''}{label.ljust(width)}  {score}"
    if len(rows) > ROWS:
        yield f"  … and {len(rows) - ROWS} more (all numbers with -o json)"
