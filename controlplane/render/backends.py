"""What each backend is, and how a fleet's servers can serve an entry of it."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.core.entry import Backend, Entry
from controlplane.core.errors import InvalidInput
from controlplane.core.models import Capabilities

SERVE_ONNX = "serve_onnx.py"
"""The file that serves ONNX models through the Python backend; the same name in the templates and in the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendFacts:
    """What is known of a backend.

    `model_filename` is its default file, `companions` what must lie beside it (by suffix), `gpu` and `cpu` the kinds of
    instance it can have, the accelerators what `optimization` may name, `cuda_graphs` whether it takes those.
    """

    model_filename: str
    companions: tuple[str, ...] = ()
    gpu: bool = True
    cpu: bool = True
    gpu_accelerators: tuple[str, ...] = ()
    cpu_accelerators: tuple[str, ...] = ()
    cuda_graphs: bool = False
    decoupled: bool = False


BACKENDS: dict[Backend, BackendFacts] = {
    "python": BackendFacts(model_filename="model.py", decoupled=True),
    "onnxruntime": BackendFacts(
        model_filename="model.onnx", gpu_accelerators=("tensorrt", "cuda"), cpu_accelerators=("openvino",)
    ),
    "tensorrt": BackendFacts(model_filename="model.plan", cpu=False, cuda_graphs=True),
    "pytorch": BackendFacts(model_filename="model.pt"),
    "openvino": BackendFacts(model_filename="model.xml", companions=(".bin",), gpu=False),
    "ensemble": BackendFacts(model_filename="", gpu=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How a server serves an entry: the folder of the templates, and whether the Python backend stands in."""

    folder: str
    model_filename: str
    stand_in: bool = False


def serve(entry: Entry, capabilities: Capabilities) -> Served:
    """How servers with these capabilities serve `entry`. Raises InvalidInput when they can't."""
    filename = entry.default_model_filename or BACKENDS[entry.backend].model_filename
    native = Served(folder=entry.backend, model_filename=filename)
    if entry.backend == "ensemble" or entry.backend in capabilities.backends:
        return native
    has_python = "python" in capabilities.backends
    if entry.backend == "onnxruntime" and has_python and "onnxruntime" in capabilities.python_packages:
        return Served(folder="onnxruntime/python_backend", model_filename=filename, stand_in=True)
    there = ", ".join(sorted(capabilities.backends)) or "none"
    remedy = "register it for a fleet whose servers have that backend"
    if entry.backend == "onnxruntime" and has_python:
        remedy += (
            ", or install the onnxruntime package in this fleet's image: the Python backend then serves ONNX files"
        )
    raise InvalidInput(
        f"the fleet's servers have no {entry.backend} backend; they have: {there}", field="backend", remedy=remedy
    )
