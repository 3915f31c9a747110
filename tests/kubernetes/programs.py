"""The programs that a real Kubernetes is made of: found, or built once into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

BUILD = Path(__file__).with_name("build.sh")
GIVEN = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/nowhere")

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
NODE = (*CONTROL_PLANE, "kubelet", "kube-proxy", "kube-scheduler", "pause")
"""With a node, pods run."""


def cannot_be_had(*names: str) -> str | None:
    """Why these programs are neither here nor can be built; None if they can be had."""
    if shutil.which("go") is not None or all(os.access(GIVEN / name, os.X_OK) for name in names):
        return None
    return f"not run: {', '.join(names)} must be built by Go, which is not here, or be in KUBEBUILDER_ASSETS"


@cache
def programs(*names: str) -> dict[str, Path]:
    """Where each of them lies: in KUBEBUILDER_ASSETS where that has it, else in the cache.

    What is missing is built, which takes minutes, with news of it on standard error.
    """
    found = {name: GIVEN / name for name in names if os.access(GIVEN / name, os.X_OK)}
    missing = [name for name in names if name not in found]
    if missing:
        done = subprocess.run([BUILD, *missing], check=False, stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, f"not all of {', '.join(missing)} could be built: standard error says why"
        found |= {name: Path(done.stdout.strip()) / name for name in missing}
    return found
