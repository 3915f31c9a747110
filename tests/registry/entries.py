"""Small entries and artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlplane.core.entry import EnsembleStep, Entry
from controlplane.registry import Registry
from controlplane.registry.versions import Registered

ACTOR = "tester@here"


def entry(name: str = "m", **fields: Any) -> Entry:
    return Entry(**{"name": name, "backend": "onnxruntime", **fields})


def ensemble(name: str, *steps: tuple[str, int | None]) -> Entry:
    made = tuple(
        EnsembleStep(model_name=model, model_version=version, input_map={"x": "x"}, output_map={"y": "y"})
        for model, version in steps
    )
    return Entry(name=name, backend="ensemble", ensemble=made)


def write(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Files with these contents below `folder`, as `register` takes them."""
    for inside, content in files.items():
        path = folder / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return {inside: folder / inside for inside in files}


def register(registry: Registry, folder: Path, name: str = "m", content: str = "weights", **fields: Any) -> Registered:
    """A version of a model with one file."""
    return registry.register(entry(name, **fields), write(folder, {"model.onnx": content}), actor=ACTOR)


def make_stable(registry: Registry, name: str, version: int) -> None:
    """Promote, and carry it out as a controller would."""
    rollout = registry.promote(name, version, actor=ACTOR)
    registry.finish_rollout(name, rollout.id, state="succeeded", reason="served", actor="controller")
