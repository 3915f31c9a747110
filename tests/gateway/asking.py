"""Requests by the official clients, and what is looked at in their answers."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient


def grpc_input(values: Any = (1.0,)) -> list[grpcclient.InferInput]:
    data = np.asarray(values, dtype=np.float32)
    given = grpcclient.InferInput("IN", list(data.shape), "FP32")
    given.set_data_from_numpy(data)
    return [given]


def ask(client: grpcclient.InferenceServerClient, model: str, version: str = "", **kwargs: Any) -> int:
    """The version that answered one gRPC request."""
    values = kwargs.pop("values", (1.0,))
    result = client.infer(model, grpc_input(values), model_version=version, client_timeout=60, **kwargs)
    assert np.array_equal(result.as_numpy("OUT"), np.asarray(values, dtype=np.float32))
    return int(result.as_numpy("VERSION")[0])


def ask_http(client: httpclient.InferenceServerClient, model: str, version: str = "", **kwargs: Any) -> int:
    """The version that answered one HTTP request."""
    data = np.asarray(kwargs.pop("values", (1.0,)), dtype=np.float32)
    binary = kwargs.pop("binary", True)
    given = httpclient.InferInput("IN", list(data.shape), "FP32")
    given.set_data_from_numpy(data, binary_data=binary)
    wanted = [httpclient.InferRequestedOutput(name, binary_data=binary) for name in ("OUT", "VERSION")]
    result = client.infer(model, [given], model_version=version, outputs=wanted, **kwargs)
    assert np.array_equal(result.as_numpy("OUT"), data)
    return int(result.as_numpy("VERSION")[0])


def stream(
    client: grpcclient.InferenceServerClient,
    messages: list[tuple[str, str, float]],
    headers: dict[str, str] | None = None,
    **kwargs: Any,
) -> list[tuple[str, str, float] | str]:
    """What comes back on one stream: (model, version, output), or an error's sentence."""
    found: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: found.put((result, error)), headers=headers, **kwargs)
    for model, version, value in messages:
        client.async_stream_infer(model, grpc_input((value,)), model_version=version, request_id="id")
    client.stop_stream()
    answers: list[tuple[str, str, float] | str] = []
    while not found.empty():
        result, error = found.get()
        if error is not None:
            answers.append(str(error))
        else:
            response = result.get_response()
            answers.append((response.model_name, response.model_version, float(result.as_numpy("OUT").reshape(-1)[0])))
    return answers
