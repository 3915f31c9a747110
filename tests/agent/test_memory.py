"""What an agent tells of memory: what a load took, and what an unloading did not give back."""

from __future__ import annotations

import sys

import pytest

from controlplane.agent.gate import LoadGate
from controlplane.agent.triton.http import gpu_memory_bytes
from controlplane.local.gpus import count_gpus, memory_by_process
from tests.agent.conftest import Replica
from tests.agent.endpoint import Endpoint, copy_of
from tests.agent.models import add_source, wanted
from tests.standins import nvidia_smi
from tests.waiting import until

MIB = 1 << 20

LEAVES_A_PROCESS = f"""
import ctypes, os, time
pid = ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0)  # clone, as a child of the server: CLONE_PARENT | SIGCHLD
if pid == 0:
    os.closerange(3, 1000)
    code = "import time; kept = bytearray(b'x') * (60 << 20); time.sleep(600)"
    os.execve({sys.executable!r}, ["python", "-c", code], dict(os.environ))
deadline = time.monotonic() + 30
while time.monotonic() < deadline and int(open(f"/proc/{{pid}}/statm").read().split()[1]) < (60 << 20) // 4096:
    time.sleep(0.05)
"""

GROWS = """
import os, time
self.kept = []
for _ in range(200):
    self.kept.append(bytearray(b"x") * (1 << 20))
    time.sleep(0.02)
deadline = time.monotonic() + 60
while time.monotonic() < deadline and not os.path.exists({go!r}):
    time.sleep(0.05)
"""

ON_GPU = """
import ctypes
cuda, by = ctypes.CDLL("libcuda.so.1"), ctypes.byref
device, context, self.kept = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(by(device), 0) == 0
assert cuda.cuCtxCreate_v2(by(context), 0, device) == 0
assert cuda.cuMemAlloc_v2(by(self.kept), ctypes.c_size_t(200 << 20)) == 0
"""

RESIDENT = (
    """cat /proc/[0-9]*/status 2> /dev/null | awk '/^Pid:/ {pid = $2} /^VmRSS:/ {print pid ", " int($2 / 1024)}'"""
)


def source(initialize: str) -> str:
    """A model that does that when it is loaded."""
    return add_source(initialize="\n        ".join(initialize.strip().splitlines()))


def gone(endpoint: Endpoint, model: str) -> int:
    """Wait until the latest order is carried out and the model is gone; what has leaked then, in bytes."""
    report = endpoint.wait(
        lambda each: (
            each.generation == endpoint.generation
            and copy_of(each, model, 1) is None
            and all(copy.state == "ready" for copy in each.copies)
        )
    )
    return report.leaked_bytes


def test_what_a_model_keeps_beyond_its_unloading_is_told(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    clean = wanted(replica.folder, model="clean")
    leaves = wanted(replica.folder, model="leaves", files={"model.py": source(LEAVES_A_PROCESS)})
    endpoint.order(clean)
    endpoint.wait_copy("clean", 1, "ready")
    endpoint.order()
    assert gone(endpoint, "clean") < 10 * MIB
    endpoint.order(leaves)
    took = endpoint.wait_copy("leaves", 1, "ready").memory_bytes
    assert took is not None and took > 60 * MIB
    endpoint.order()
    gone(endpoint, "leaves")
    report = endpoint.wait(lambda each: each.leaked_bytes > 50 * MIB)
    assert report.leaked_bytes < 80 * MIB
    replica.server().kill()
    endpoint.wait(lambda each: each.server != "ready")
    assert endpoint.wait(lambda each: each.server == "ready").leaked_bytes == 0, "a new server has lost nothing"


def test_what_the_first_model_of_a_backend_leaves_is_not_lost(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    leaves = wanted(replica.folder, model="leaves", files={"model.py": source(LEAVES_A_PROCESS)})
    endpoint.order(leaves)
    took = endpoint.wait_copy("leaves", 1, "ready").memory_bytes
    assert took is not None and took > 60 * MIB, "it counts for the model that brought it"
    endpoint.order()
    assert gone(endpoint, "leaves") == 0
    endpoint.order(leaves)
    endpoint.wait_copy("leaves", 1, "ready")
    endpoint.order()
    gone(endpoint, "leaves")
    endpoint.wait(lambda each: each.leaked_bytes > 50 * MIB)


def test_an_unloading_beside_a_load_says_nothing_of_leaks(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    other = wanted(replica.folder, model="other")
    go = replica.folder / "go"
    grows = wanted(replica.folder, model="grows", files={"model.py": source(GROWS.format(go=str(go)))})
    endpoint.order(other)
    endpoint.wait_copy("other", 1, "ready")
    endpoint.order(other, grows)
    endpoint.wait_copy("grows", 1, "loading")
    endpoint.order(grows)
    endpoint.wait(lambda each: copy_of(each, "other", 1) is None)
    go.touch()
    assert gone(endpoint, "other") == 0
    copy = endpoint.wait_copy("grows", 1, "ready")
    assert copy.memory_bytes is not None and copy.memory_bytes > 200 * MIB, "its own process tells what it took"
    assert copy.load_s is not None and 4.0 <= copy.load_s < 60.0, "for so long at least it grows"


def test_where_nobody_tells_of_gpus_their_memory_is_not_known(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(replica.folder, monkeypatch, "exit 9")
    endpoint = replica.endpoint
    replica.start("--gpus=1")
    endpoint.order(wanted(replica.folder))
    copy = endpoint.wait_copy("add", 1, "ready")
    assert copy.memory_bytes is None
    assert copy.load_s is not None and copy.load_s > 0, "how long it took is known there, too"
    endpoint.order()
    assert gone(endpoint, "add") == 0


def test_with_gpus_what_processes_take_of_them_counts(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Main memory stands in for the GPU's: nvidia-smi is a script that tells, in its format, what each process has."""
    nvidia_smi(replica.folder, monkeypatch, RESIDENT)
    endpoint = replica.endpoint
    replica.start("--gpus=1")
    add = wanted(replica.folder)
    endpoint.order(add)
    assert endpoint.wait_copy("add", 1, "ready").memory_bytes is not None
    endpoint.order(add, wanted(replica.folder, model="leaves", files={"model.py": source(LEAVES_A_PROCESS)}))
    took = endpoint.wait_copy("leaves", 1, "ready").memory_bytes
    assert took is not None and took > 60 * MIB and took % MIB == 0, "it tells whole MiB"
    endpoint.order(add)
    gone(endpoint, "leaves")
    report = endpoint.wait(lambda each: each.leaked_bytes > 50 * MIB)
    assert report.leaked_bytes < took


@pytest.mark.skipif(not count_gpus(), reason="not run: there is no GPU here")
def test_what_a_model_takes_of_a_real_gpu(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start("--gpus=1")
    endpoint.order(wanted(replica.folder, model="idle"))
    report = endpoint.wait(lambda each: (copy := copy_of(each, "idle", 1)) is not None and copy.state == "ready")
    assert report.endpoint is not None and report.metrics_port is not None
    host, port = report.endpoint.host, report.metrics_port
    before = until(lambda: gpu_memory_bytes(host, port), what="the server tells nothing of its GPU")
    assert before is not None
    endpoint.order(wanted(replica.folder, model="idle"), wanted(replica.folder, files={"model.py": source(ON_GPU)}))
    copy = endpoint.wait_copy("add", 1, "ready")
    until(
        lambda: 200 * MIB <= (gpu_memory_bytes(host, port) or 0) - before < 2000 * MIB,
        what="what it took does not show in the metrics",
    )
    if replica.server().pid in memory_by_process():  # in most containers nvidia-smi sees other process ids
        assert copy.memory_bytes is not None and 200 * MIB <= copy.memory_bytes < 2000 * MIB


async def test_whoever_meets_another_is_not_alone() -> None:
    gate = LoadGate(2)
    with gate.unload() as first:
        assert first.alone
    async with gate.enter(alone=False) as load:
        assert load.alone, "the one before has ended"
        with gate.unload() as beside:
            assert not beside.alone
        with gate.unload() as later:
            assert not later.alone and not load.alone
    with gate.unload() as long:
        async with gate.enter(alone=True):
            assert not long.alone, "it keeps nobody waiting"
        with gate.unload() as another:
            assert not another.alone
    assert not long.alone and not another.alone
