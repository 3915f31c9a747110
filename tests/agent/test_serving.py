"""An agent with a real Triton: what it loads, serves, gives up and leaves behind."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from controlplane.core.entry import (
    ControlInput,
    EnsembleStep,
    InstanceGroup,
    RateLimiter,
    RateLimiterResource,
    SequenceBatching,
)
from controlplane.local import processes
from tests.agent.conftest import Replica, client_of, infer_add
from tests.agent.models import add_source, wanted

INIT = 'print("INIT", args["model_name"], args["model_version"], flush=True)'


def initialised(replica: Replica, model: str, version: int) -> int:
    log = (replica.home.logs / f"{replica.name}-triton.log").read_text()
    return log.count(f"INIT {model} {version}\n")


def nothing_left(replica: Replica) -> None:
    assert list(processes.of_home(replica.home.root)) == []
    assert not list(Path("/dev/shm").glob(processes.shared_memory_prefix(replica.home.root) + "*"))


def test_loads_serves_and_gives_up(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    report = endpoint.wait(lambda each: each.server == "ready")
    assert report.capabilities is not None
    assert report.capabilities.backends == ("python",)
    assert report.capabilities.response_cache
    assert {"numpy", "onnxruntime"} <= set(report.capabilities.python_packages)
    endpoint.order(wanted(replica.folder))
    copy = endpoint.wait_copy("add", 1, "ready")
    assert copy.memory_bytes is not None
    assert copy.memory_bytes > 0
    assert copy.load_s is not None
    assert 0 < copy.load_s < 60
    assert replica.add(41) == 42
    assert replica.repository() == {"add/config.pbtxt", "add/1/model.py", "add/1/__pycache__"}
    endpoint.wait(lambda each: each.copies[0].last_used_at is not None)
    endpoint.order()
    endpoint.wait(lambda each: each.copies == () and each.generation == endpoint.generation)
    assert replica.repository() == set()
    with pytest.raises(InferenceServerException):
        replica.add(1)
    endpoint.order(stop=True)
    assert replica.wait_agent() == 0
    endpoint.wait(lambda each: each.server == "stopped")
    assert (replica.home.replica(replica.name) / "stopped").exists()
    nothing_left(replica)


def test_versions_come_and_go_without_touching_each_other(replica: Replica) -> None:
    """They share a file, as versions do that differ in their weights only."""
    endpoint = replica.endpoint
    shared = add_source(initialize=INIT)
    one = wanted(replica.folder, files={"model.py": shared, "weights": "1"})
    two = wanted(replica.folder, version=2, files={"model.py": shared, "weights": "2"})
    replica.start()
    endpoint.order(one)
    endpoint.wait_copy("add", 1, "ready")
    endpoint.order(one, two)
    endpoint.wait_copy("add", 2, "ready")
    assert (replica.add(1, version=1), replica.add(1, version=2)) == (2, 2)
    endpoint.order(two)
    endpoint.wait(lambda each: [(c.version, c.state) for c in each.copies] == [(2, "ready")])
    assert replica.add(1, version=2) == 2
    assert (initialised(replica, "add", 1), initialised(replica, "add", 2)) == (1, 1)
    endpoint.order(one, two)
    endpoint.wait_copy("add", 1, "ready")
    assert (initialised(replica, "add", 1), initialised(replica, "add", 2)) == (2, 1)


def test_a_killed_agent_is_followed_by_one_that_adopts_the_server(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    endpoint.order(wanted(replica.folder, files={"model.py": add_source(initialize=INIT)}))
    endpoint.wait_copy("add", 1, "ready")
    before, server = endpoint.reports[-1], replica.server()
    failures: list[str] = []
    asked, enough = 0, threading.Event()

    def ask() -> None:
        nonlocal asked
        with client_of(before) as client:
            while not enough.is_set():
                try:
                    asked += infer_add(client, 1) == 2
                except InferenceServerException as error:
                    failures.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        replica.kill_agent()
        replica.start()
        after = endpoint.wait(lambda each: each.server == "ready" and each.generation == endpoint.generation)
    finally:
        enough.set()
        asking.join()
    assert after.endpoint == before.endpoint
    assert after.copies[0].state == "ready"
    assert after.crashes == 0
    assert replica.server() == server
    assert initialised(replica, "add", 1) == 1
    assert asked > 0
    assert failures == []
    assert replica.agent is not None
    replica.agent.send_signal(signal.SIGTERM)
    assert replica.wait_agent() == 0
    nothing_left(replica)


def test_without_the_controller_a_replica_comes_back_with_what_it_had(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    endpoint.order(wanted(replica.folder))
    endpoint.wait_copy("add", 1, "ready")
    server = replica.server()
    replica.kill_agent()
    server.kill()
    server.wait(10)
    endpoint.assignment = None  # nothing is ordered any more, and nothing can be downloaded
    for file in replica.folder.iterdir():
        file.unlink()
    replica.start()
    report = endpoint.wait(
        lambda each: each.server == "ready" and each.copies != () and each.copies[0].state == "ready"
    )
    assert report.generation == 0
    assert replica.add(1) == 2


def test_an_ensemble_waits_for_its_steps_and_leaves_with_them(replica: Replica) -> None:
    endpoint = replica.endpoint
    slow = wanted(replica.folder, model="slow", files={"model.py": add_source(initialize="import time; time.sleep(1)")})
    step = {"input_map": {"X": "X"}, "output_map": {"Y": "Y"}}
    both = wanted(
        replica.folder,
        model="both",
        files={},
        backend="ensemble",
        dynamic_batching=None,
        instances=(),
        ensemble=(EnsembleStep(model_name="slow", model_version=1, **step),),
    )
    replica.start()
    endpoint.order(both, slow)
    endpoint.wait_copy("both", 1, "ready")
    assert any(copy.reason == "waits for slow@1" for each in endpoint.reports for copy in each.copies)
    assert replica.add(1, model="both") == 2
    endpoint.order()
    endpoint.wait(lambda each: each.copies == ())


def test_sequences_and_decoupled_models_are_proved_in_their_own_ways(replica: Replica) -> None:
    endpoint = replica.endpoint
    start = ControlInput(name="START", kind="START", data_type="FP32", false_true=(0, 1))
    batcher = SequenceBatching(control_inputs=(start,))
    send = "[e.get_response_sender().send(pb.InferenceResponse([pb.Tensor('Y', i + 1)]), flags=1) for e, i in found]"
    found = "found = [(e, pb.get_input_tensor_by_name(e, 'X').as_numpy()) for e in requests]"
    stream = add_source(execute=f"{found}; {send}; return None")
    sequence = wanted(replica.folder, model="sequence", sequence_batching=batcher, dynamic_batching=None)
    decoupled = wanted(replica.folder, model="decoupled", files={"model.py": stream}, decoupled=True)
    replica.start()
    endpoint.order(sequence, decoupled)
    endpoint.wait_copy("sequence", 1, "ready")
    endpoint.wait_copy("decoupled", 1, "ready")


def test_an_order_of_an_older_epoch_is_refused(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    endpoint.epoch = 7
    endpoint.order(wanted(replica.folder))
    endpoint.wait_copy("add", 1, "ready")
    replica.kill_agent()
    endpoint.order(epoch=6)
    replica.start()
    endpoint.wait(lambda each: each.server == "ready" and each.copies != () and each.copies[0].state == "ready")
    heard = len(endpoint.reports)
    endpoint.wait(lambda _: len(endpoint.reports) > heard + 2)
    assert replica.add(1) == 2
    assert "older epoch is refused" in replica.log()
    endpoint.order()
    endpoint.wait(lambda each: each.copies == () and each.epoch == 7)


def test_a_rate_limiter_limits(replica: Replica) -> None:
    """Two instances share a resource that one takes whole: they never compute at the same time."""
    endpoint = replica.endpoint
    marks = replica.folder / "marks"
    marks.mkdir()
    alone = (
        f"import pathlib, tempfile, time; here = pathlib.Path({str(marks)!r}); "
        "mine = tempfile.NamedTemporaryFile(dir=here); time.sleep(0.05); "
        "assert len(list(here.iterdir())) == 1, 'not alone'; mine.close()"
    )
    slot = RateLimiter(resources=(RateLimiterResource(name="slot", count=1, is_global=True),))
    endpoint.order(
        wanted(
            replica.folder,
            files={"model.py": add_source(execute=alone)},
            instances=(InstanceGroup(kind="CPU", count=2, rate_limiter=slot),),
        )
    )
    replica.start()
    endpoint.wait_copy("add", 1, "ready")
    answers: list[float] = []
    threads = [threading.Thread(target=lambda: answers.append(replica.add(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [2.0] * 8
