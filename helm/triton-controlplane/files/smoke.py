"""What `helm test` runs: the gateway answers as a live and ready server, and a real inference if a model is named."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def tensor(declared: Any, given: object) -> grpc.InferInput:
    """An input as it was given, else zeros of the declared shape, with 1 for what is free."""
    kind = triton_to_np_dtype(declared.datatype)
    if given is not None:
        values = np.array(given, dtype=kind)
    else:
        shape = [size if size > 0 else 1 for size in declared.shape]
        values = np.full(shape, b"", dtype=np.object_) if declared.datatype == "BYTES" else np.zeros(shape, dtype=kind)
    made = grpc.InferInput(declared.name, list(values.shape), declared.datatype)
    made.set_data_from_numpy(values)
    return made


def attempt(address: str, model: str, inputs: dict[str, object], timeout_s: float) -> str:
    """One try; says what was seen. Raises InferenceServerException."""
    with grpc.InferenceServerClient(address) as client:
        if not client.is_server_live(client_timeout=timeout_s):
            raise InferenceServerException("the server is not live")
        if not client.is_server_ready(client_timeout=timeout_s):
            raise InferenceServerException("the server is not ready")
        if not model:
            return f"{address} is live and ready; name a model in test.model for a real inference"
        declared = client.get_model_metadata(model, client_timeout=timeout_s).inputs
        unknown = set(inputs) - {each.name for each in declared}
        if unknown:
            sys.exit(f"test.inputs names {sorted(unknown)}, which {model} does not have")
        given = [tensor(each, inputs.get(each.name)) for each in declared]
        answer = client.infer(model, given, client_timeout=timeout_s).get_response()
        shapes = ", ".join(f"{each.name} {list(each.shape)}" for each in answer.outputs)
        return f"{answer.model_name}@{answer.model_version} answered through {address}: {shapes}"


def main() -> int:
    """Try until it works or the time is over."""
    address, model = os.environ["GATEWAY"], os.environ["MODEL"]
    inputs = json.loads(os.environ["INPUTS"])
    ends = time.monotonic() + float(os.environ["TIMEOUT_S"])
    while True:
        try:
            sys.stdout.write(attempt(address, model, inputs, max(1.0, ends - time.monotonic())) + "\n")
        except InferenceServerException as error:
            if time.monotonic() > ends:
                sys.stderr.write(f"{address}: {error}\n")
                return 1
            time.sleep(1)
        else:
            return 0


if __name__ == "__main__":
    sys.exit(main())
