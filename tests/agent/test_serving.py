"""An agent with a real Triton: what it loads, serves, gives up and leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from controlplane.local import processes
from tests.agent.conftest import Replica
from tests.agent.models import wanted


def test_loads_serves_and_gives_up(replica: Replica) -> None:
    first = replica.endpoint
    replica.start()
    report = first.wait(lambda each: each.server == "ready")
    assert report.capabilities is not None
    assert report.capabilities.backends == ("python",)
    assert report.capabilities.response_cache
    assert {"numpy", "onnxruntime"} <= set(report.capabilities.python_packages)
    first.order(wanted(replica.folder))
    copy = first.wait_copy("add", 1, "ready")
    assert copy.memory_bytes is not None
    assert copy.memory_bytes > 0
    assert replica.add(41) == 42
    assert replica.repository() == {"add/config.pbtxt", "add/1/model.py", "add/1/__pycache__"}
    first.wait(lambda each: each.copies[0].last_used_at is not None)
    first.order()
    first.wait(lambda each: each.copies == () and each.generation == first.generation)
    assert replica.repository() == set()
    with pytest.raises(InferenceServerException):
        replica.add(1)
    first.order(stop=True)
    assert replica.wait_agent() == 0
    first.wait(lambda each: each.server == "stopped")
    assert list(processes.of_home(replica.home.root)) == []
    assert not list(Path("/dev/shm").glob(processes.shared_memory_prefix(replica.home.root) + "*"))
