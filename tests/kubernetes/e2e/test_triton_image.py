"""The Triton for tests serves what NVIDIA's would: a Python model, which also finds onnxruntime."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.e2e.test_cluster import LIMITED

MODEL = """\
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        version = np.array([onnxruntime.__version__.encode()], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("version", version)]) for _ in requests]
"""

CONFIG = """\
backend: "python"
input [{ name: "x", data_type: TYPE_FP32, dims: [ 1 ] }]
output [{ name: "version", data_type: TYPE_STRING, dims: [ 1 ] }]
"""


def _pod(image: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "triton"},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "triton",
                    "image": image,
                    "args": ["tritonserver", "--model-repository=/models"],
                    "securityContext": LIMITED,
                    "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8000}, "periodSeconds": 1},
                    "volumeMounts": [
                        {"name": "model", "mountPath": "/models/some"},
                        {"name": "shm", "mountPath": "/dev/shm"},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }
            ],
            "volumes": [
                {
                    "name": "model",
                    "configMap": {
                        "name": "model",
                        "items": [
                            {"key": "config.pbtxt", "path": "config.pbtxt"},
                            {"key": "model.py", "path": "1/model.py"},
                        ],
                    },
                },
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


def test_a_python_model_with_onnxruntime(cluster: Cluster, namespace: str, images: dict[str, str]) -> None:
    model = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "model"},
        "data": {"config.pbtxt": CONFIG, "model.py": MODEL},
    }
    manifests = json.dumps({"apiVersion": "v1", "kind": "List", "items": [model, _pod(images["triton"])]})
    cluster.api.kubectl("apply", f"--namespace={namespace}", "--filename=-", given=manifests)
    try:
        cluster.api.kubectl("wait", "--for=condition=Ready", "pod/triton", f"--namespace={namespace}", "--timeout=60s")
    except AssertionError as error:
        raise AssertionError(cluster.api.kubectl("logs", "triton", f"--namespace={namespace}")[-3000:]) from error
    address = cluster.api.get("pod", "triton", f"--namespace={namespace}")["status"]["podIP"]
    asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
    url = f"http://{address}:8000/v2/models/some/infer"
    answer = httpx2.post(url, json=asked, trust_env=False).raise_for_status().json()
    assert answer["outputs"][0]["data"][0][0].isdigit()
