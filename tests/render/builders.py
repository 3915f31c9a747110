"""Short ways to an entry, a manifest and a fleet's capabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from controlplane.core.entry import Entry, Tensor
from controlplane.core.models import ArtifactFile, Capabilities, Manifest

PYTHON_ONLY = Capabilities(
    server_version="2.51.0", backends=("python",), response_cache=True, python_packages=("numpy", "onnxruntime")
)
"""The server in the pytriton wheel."""

NVIDIA = Capabilities(
    server_version="2.60.0",
    backends=("onnxruntime", "openvino", "python", "pytorch", "tensorrt"),
    gpus=2,
    response_cache=True,
)
"""A server of NVIDIA's image on a machine with two GPUs."""

X = Tensor(name="x", data_type="FP32", dims=(4,))
Y = Tensor(name="y", data_type="FP32", dims=(4,))

FILES = {
    "python": ("model.py",),
    "onnxruntime": ("model.onnx",),
    "tensorrt": ("model.plan",),
    "pytorch": ("model.pt",),
    "openvino": ("model.xml", "model.bin"),
    "ensemble": (),
}


def entry(**fields: Any) -> Entry:
    """A small entry; `fields` replace what it says."""
    return Entry(**{"name": "m", "backend": "python", "inputs": (X,), "outputs": (Y,)} | fields)


def manifest(of: Entry, files: Mapping[str, bytes] | None = None) -> Manifest:
    """A manifest of `of`, with its backend's usual files or the given ones."""
    contents = dict.fromkeys(FILES[of.backend], b"content") if files is None else files
    return Manifest(
        entry=of,
        files=tuple(
            ArtifactFile(path=path, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
            for path, data in sorted(contents.items())
        ),
    )
