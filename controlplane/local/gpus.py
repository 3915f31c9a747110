"""This machine's GPUs, as nvidia-smi tells of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

TIMEOUT_S = 20.0


def count_gpus() -> int:
    """The GPUs of this machine, as nvidia-smi lists them; 0 without it."""
    listed = _nvidia_smi("-L")
    return sum(line.startswith("GPU ") for line in listed.splitlines()) if listed is not None else 0


def memory_by_process() -> Mapping[int, int]:
    """By process id, the bytes that each takes of all GPUs. Empty where that can't be told: nvidia-smi is missing. In
    most containers it sees other process ids than ours, or none."""
    listed = _nvidia_smi("--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits")
    return parse_processes(listed) if listed is not None else {}


def parse_processes(listed: str) -> Mapping[int, int]:
    """Lines of `pid, MiB`, one for each GPU that a process uses; what is not known (`[N/A]`) is left out."""
    found: dict[int, int] = {}
    for line in listed.splitlines():
        pid, _, used = (part.strip() for part in line.partition(","))
        if pid.isdecimal() and used.isdecimal():
            found[int(pid)] = found.get(int(pid), 0) + (int(used) << 20)
    return found


def _nvidia_smi(*arguments: str) -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
