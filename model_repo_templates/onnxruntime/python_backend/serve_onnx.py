"""Serves an ONNX file through Triton's Python backend, for servers that lack the onnxruntime backend.

Triton forms the batches; the requests of one are joined along the first dimension, run once, and split again. Where a
joint run fails, each request is run by itself, so that a bad one fails alone. Sequence states are kept here by
correlation id: the Python backend hands Triton's implicit state in, but never carries it on.
Parameters: those of the onnxruntime backend (intra_op_thread_count, inter_op_thread_count), and `onnx.*`, which the
renderer writes.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

START, END = 1, 2


def cpus() -> int:
    """The CPUs that this process may use: its affinity, less where a cgroup allows less."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return count if quota == "max" else max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):
        return count


class TritonPythonModel:
    """One instance: one ONNX session of its own, in a process of its own."""

    def initialize(self, args):
        """Open the session. An exception here fails the load, and its text reaches whoever asked for it."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self.batched = config["max_batch_size"] > 0
        self.outputs = {item["name"]: pb_utils.triton_string_to_numpy(item["data_type"]) for item in config["output"]}
        self.states = {
            key.removeprefix("onnx.state."): json.loads(value)
            for key, value in parameters.items()
            if key.startswith("onnx.state.")
        }
        # Triton ends idle sequences itself; what is twice as old can't be asked for any more.
        self.state_kept_s = 2 * int(parameters.get("onnx.max_sequence_idle_us", "0")) / 1e6
        self.kept = {}

        options = ort.SessionOptions()
        instances = sum(group["count"] for group in config["instance_group"])
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", max(1, cpus() // max(1, instances))))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
        # A thread that spins while it waits takes a CPU from the other models of this server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = {-1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, 1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED}
        options.graph_optimization_level = level.get(
            int(parameters.get("onnx.graph_level", "0")), ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        )
        providers = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise pb_utils.TritonModelException("this server's onnxruntime package can't use a GPU")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(args["model_instance_device_id"])}))
        folder = Path(args["model_repository"]) / args["model_version"]
        path = folder / parameters["onnx.model_filename"]
        self.session = ort.InferenceSession(str(path), options, providers=providers)
        self.wanted = {item.name: item for item in self.session.get_inputs()}

    def execute(self, requests):
        """Answer a batch: one response a request, in order."""
        responses = [None] * len(requests)
        groups = {}
        for index, request in enumerate(requests):
            try:
                feed = self.feed(request)
                key = tuple((name, value.shape[1:], value.dtype.str) for name, value in sorted(feed.items()))
                groups.setdefault(key if self.batched else index, []).append((index, feed))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's fault alone
                responses[index] = failure(error)
        for members in groups.values():
            for index, answer in self.run(members):
                try:
                    responses[index] = (
                        answer
                        if isinstance(answer, pb_utils.InferenceResponse)
                        else self.respond(requests[index], answer)
                    )
                except Exception as error:  # noqa: BLE001 - as above
                    responses[index] = failure(error)
        return responses

    def feed(self, request):
        """The session's inputs for one request: its tensors, and its sequence's state."""
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        feed = {}
        for name, item in self.wanted.items():
            if name in self.states:
                feed[name] = self.state_of(request, name)
                continue
            if name not in given:
                raise ValueError(f"input {name!r} is missing")
            value = given[name]
            if value.dtype == np.object_:
                value = np.array([each.decode() for each in value.ravel()], dtype=object).reshape(value.shape)
            feed[name] = value.reshape(()) if not item.shape and not self.batched else value
        return feed

    def run(self, members):
        """Yield (index, outputs by name or an error response) for requests whose inputs can be joined."""
        names = [*self.outputs, *(state["output_name"] for state in self.states.values())]
        if len(members) == 1:
            index, feed = members[0]
            try:
                yield index, dict(zip(names, self.session.run(names, feed), strict=True))
            except Exception as error:  # noqa: BLE001 - as above
                yield index, failure(error)
            return
        sizes = [len(next(iter(feed.values()))) for _, feed in members]
        try:
            joined = {name: np.concatenate([feed[name] for _, feed in members]) for name in members[0][1]}
            values = self.session.run(names, joined)
            for name, value in zip(names, values, strict=True):
                if value.ndim == 0 or len(value) != sum(sizes):
                    raise ValueError(f"output {name!r} of shape {value.shape} has no batch dimension of {sum(sizes)}")
        except Exception:  # noqa: BLE001 - then the bad one is found out
            for member in members:
                yield from self.run([member])
            return
        ends = np.cumsum(sizes)
        for (index, _), end, size in zip(members, ends, sizes, strict=True):
            yield index, {name: value[end - size : end] for name, value in zip(names, values, strict=True)}

    def respond(self, request, answer):
        """The response, with the sequence's state kept for its next request."""
        self.keep_state(request, answer)
        tensors = []
        for name in self.outputs:
            if name not in request.requested_output_names():
                continue
            value = np.asarray(answer[name])
            if value.dtype == np.object_:
                value = np.array([str(each).encode() for each in value.ravel()], dtype=object).reshape(value.shape)
            tensors.append(pb_utils.Tensor(name, value.reshape(1) if value.ndim == 0 else value))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def state_of(self, request, name):
        """The sequence's state, zeros at its start."""
        state = self.states[name]
        kept = None if request.flags() & START else self.kept.get(request.correlation_id())
        if kept is not None:
            return kept[1][name]
        shape = [1, *state["dims"]] if self.batched else state["dims"]
        return np.zeros(shape, dtype=pb_utils.triton_string_to_numpy(state["data_type"]))

    def keep_state(self, request, answer):
        """Keep what the next request of the sequence needs, and let go of what nobody can ask for."""
        if not self.states:
            return
        now = time.monotonic()
        if request.flags() & END:
            self.kept.pop(request.correlation_id(), None)
        else:
            values = {name: np.array(answer[state["output_name"]]) for name, state in self.states.items()}
            self.kept.pop(request.correlation_id(), None)  # so that the oldest comes first
            self.kept[request.correlation_id()] = (now, values)
        while self.kept and next(iter(self.kept.values()))[0] < now - self.state_kept_s:
            del self.kept[next(iter(self.kept))]


def failure(error):
    """The response of a request that could not be answered."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)[:2000] or type(error).__name__))
