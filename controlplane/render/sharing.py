"""Several versions of one model on one server.

Triton reads one config.pbtxt for a model directory, whatever versions are in it. So versions can share a server only if
they agree on what decides the meaning of a request; the rest is taken from the highest of them.
Pure, without protobuf: the controller asks `compatible` for every pair that a rollout brings together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from controlplane.core.entry import Entry
from controlplane.core.models import Manifest

MUST_AGREE = (
    "backend", "inputs", "outputs", "sequence_batching", "ensemble", "optimization", "decoupled", "parameters",
    "default_model_filename", "config",
)  # fmt: skip
"""Fields that must be equal: they say what a request is, or how the model computes its answer."""

FROM_THE_HIGHEST = ("instances", "dynamic_batching", "warmup", "metric_tags")
"""Fields that steer the server only: the highest version's hold for all."""

PER_VERSION = ("name", "resources", "serving", "fleet", "labels", "example")
"""Fields that config.pbtxt knows nothing of (`name` is equal by definition)."""

COMBINED = ("max_batch_size", "response_cache")
"""The smallest batch size of all, and the cache only where every version allows it."""


def compatible(a: Manifest, b: Manifest) -> str | None:
    """Why one server can't hold two versions of a model at once; None when it can. Symmetric."""
    for name in MUST_AGREE:
        if getattr(a.entry, name) != getattr(b.entry, name):
            return f"`{name}` differs, and Triton has one configuration for all versions of a model on a server"
    if (a.entry.max_batch_size > 0) != (b.entry.max_batch_size > 0):
        return "only one of them batches (`max_batch_size` is 0 in the other), which gives `dims` another meaning"
    for path in sorted(shared_paths(a.entry) & shared_paths(b.entry)):
        if _digest(a, path) != _digest(b, path):
            return f"the label file {path} differs, and Triton has one for all versions of a model on a server"
    return None


def combined(versions: Mapping[int, Manifest]) -> Entry:
    """The entry that holds for all of `versions`, which must be compatible, two by two."""
    highest = versions[max(versions)].entry
    limit = min(manifest.entry.max_batch_size for manifest in versions.values())
    batching = highest.dynamic_batching
    if batching is not None:
        sizes = tuple(dict.fromkeys(min(size, limit) for size in batching.preferred_batch_size))
        if limit < highest.max_batch_size:
            batching = dataclasses.replace(batching, preferred_batch_size=sizes)
    warmup = highest.warmup
    if limit < highest.max_batch_size:  # a warm-up beyond the limit kills the server
        warmup = tuple(dataclasses.replace(each, batch_size=min(each.batch_size, limit)) for each in warmup)
    return dataclasses.replace(
        highest,
        max_batch_size=limit,
        dynamic_batching=batching,
        warmup=warmup,
        response_cache=all(manifest.entry.response_cache for manifest in versions.values()),
    )


def shared_paths(entry: Entry) -> frozenset[str]:
    """The label files of an entry: they lie beside the version directories, one for all versions."""
    return frozenset(tensor.label_filename for tensor in entry.outputs if tensor.label_filename is not None)


def _digest(manifest: Manifest, path: str) -> str | None:
    return next((file.sha256 for file in manifest.files if file.path == path), None)
