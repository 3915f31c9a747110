"""Small real models for the Python backend."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from controlplane.core.entry import DynamicBatching, Entry, Example, InstanceGroup, Tensor
from controlplane.core.messages import Wanted
from controlplane.core.models import ArtifactFile, Manifest

ADD = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        {execute}
        inputs = [pb.get_input_tensor_by_name(each, "X").as_numpy() for each in requests]
        return [pb.InferenceResponse([pb.Tensor("Y", each + np.float32({add}))]) for each in inputs]
"""

ENTRY = Entry(
    name="add",
    backend="python",
    inputs=(Tensor(name="X", data_type="FP32", dims=(1,)),),
    outputs=(Tensor(name="Y", data_type="FP32", dims=(1,)),),
    max_batch_size=8,
    dynamic_batching=DynamicBatching(),
    instances=(InstanceGroup(kind="CPU"),),
    example=Example(inputs={"X": [[1.0]]}, outputs={"Y": [[2.0]]}),
)


def add_source(*, add: float = 1, initialize: str = "pass", execute: str = "pass") -> str:
    return ADD.format(add=add, initialize=initialize, execute=execute)


def wanted(
    folder: Path,
    *,
    model: str = "add",
    version: int = 1,
    files: Mapping[str, bytes | str] | None = None,
    url: str | None = None,
    **entry: Any,
) -> Wanted:
    """A version whose files lie in `folder`; its sources are paths, or addresses below `url`."""
    contents = {"model.py": add_source()} if files is None else files
    artifact, sources = [], {}
    for path, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        digest = hashlib.sha256(data).hexdigest()
        (folder / digest).write_bytes(data)
        artifact.append(ArtifactFile(path=path, sha256=digest, size_bytes=len(data)))
        sources[digest] = f"{url}/{digest}" if url else str(folder / digest)
    manifest = Manifest(entry=replace(ENTRY, name=model, **entry), files=tuple(artifact))
    digest = hashlib.sha256(repr(manifest).encode()).hexdigest()
    return Wanted(model=model, version=version, digest=digest, manifest=manifest, sources=sources)
