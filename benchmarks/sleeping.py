"""A model that sleeps for as long as its work takes, so that servers on one machine do not slow each other."""

from __future__ import annotations

from pathlib import Path

MODEL = """\
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        size = len(requests)
        time.sleep({takes_s})
        given = [pb_utils.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each)]) for each in given]
"""
ENTRY = """\
backend: python
inputs: [{name: x, data_type: FP32, dims: [1]}]
outputs: [{name: y, data_type: FP32, dims: [1]}]
resources: {memory_bytes: 64Mi}
"""


def write(folder: Path, takes_s: str, *, more: str = "") -> Path:
    """Write the model's folder. `takes_s`: an expression in `size`, the number of requests in a batch, for how many
    seconds it sleeps; `more`: further lines of its entry."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(MODEL.format(takes_s=takes_s))
    (folder / "model.yaml").write_text(ENTRY + more)
    return folder
