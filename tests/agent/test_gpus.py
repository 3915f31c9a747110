"""What nvidia-smi and Triton's metrics say of GPUs' memory, read."""

from __future__ import annotations

import pytest

from controlplane.agent.triton.http import gpu_memory_bytes, parse_gpu_memory
from controlplane.local.gpus import parse_processes
from controlplane.local.processes import free_ports

MIB = 1 << 20

PAGE = """# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 16000000000.000000
nv_gpu_memory_total_bytes{gpu_uuid="GPU-b"} 16000000000.000000
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 1048576000.000000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-b"} 104857600.000000
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 77000000000.000000
"""


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        pytest.param("", {}, id="no process uses one"),
        pytest.param("17, 300\n18, 20\n", {17: 300 * MIB, 18: 20 * MIB}, id="two processes"),
        pytest.param("17, 300\n17, 200\n", {17: 500 * MIB}, id="one process on two GPUs"),
        pytest.param("17, [N/A]\n18, 20\n", {18: 20 * MIB}, id="not known"),
        pytest.param("17, [Insufficient Permissions]\n", {}, id="not to be known"),
        pytest.param("No running processes found\n", {}, id="words"),
    ],
)
def test_what_processes_take(listed: str, expected: dict[int, int]) -> None:
    assert parse_processes(listed) == expected


def test_what_all_gpus_of_a_server_have_taken() -> None:
    assert parse_gpu_memory(PAGE) == 1100 * MIB
    without = "\n".join(line for line in PAGE.splitlines() if "gpu_memory_used" not in line)
    assert parse_gpu_memory(without) is None, "no word of it is not zero"
    assert parse_gpu_memory(PAGE.replace("1048576000.0", "0.0")) is None, "one is not measured yet"


def test_a_server_that_does_not_answer_tells_nothing() -> None:
    (port,) = free_ports(1, "127.0.0.1")
    assert gpu_memory_bytes("127.0.0.1", port) is None
