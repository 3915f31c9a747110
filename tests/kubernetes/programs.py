"""The programs that a real Kubernetes is made of: found, or built once into the user's cache."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

BUILD = Path(__file__).with_name("build.sh")

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
NODE = (*CONTROL_PLANE, "kubelet", "kube-proxy", "kube-scheduler", "pause")
"""With a node, pods run."""


@cache
def programs(*names: str) -> dict[str, Path]:
    """Where each of them lies: in KUBEBUILDER_ASSETS where that has it, else in the cache.

    What is missing is built, which takes minutes, with news of it on standard error.
    """
    given = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/nowhere")
    found = {name: given / name for name in names if os.access(given / name, os.X_OK)}
    missing = [name for name in names if name not in found]
    if missing:
        done = subprocess.run([BUILD, *missing], check=False, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, f"not all of {', '.join(missing)} could be built: standard error says why"
        found |= {name: Path(done.stdout.strip()) / name for name in missing}
    return found
