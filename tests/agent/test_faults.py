"""What hurts: models that fail, hang and crash, servers that die, downloads that go wrong. The rest serves on."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from controlplane.core.entry import Example, Tensor
from controlplane.core.messages import ReplicaReport
from tests.agent.conftest import Replica
from tests.agent.endpoint import copy_of
from tests.agent.models import add_source, wanted

KILL = "import os, time; os.kill(os.getppid(), 11); time.sleep(60)"
"""What a defect in the server's own code does to it: the thread that faults goes no further."""
KILL_LATER = "import os, threading; threading.Timer(0.5, os.kill, (os.getppid(), 11)).start()"


def ready(replica: Replica, model: str, version: int = 1) -> None:
    replica.endpoint.wait_copy(model, version, "ready")


def test_a_model_that_fails_hurts_itself_alone(replica: Replica) -> None:
    endpoint = replica.endpoint
    good = wanted(replica.folder, model="good")
    one = wanted(replica.folder, model="both")
    bad = wanted(
        replica.folder, model="bad", files={"model.py": add_source(initialize="raise ValueError('no weights')")}
    )
    two = wanted(replica.folder, model="both", version=2, files={"model.py": "import nonesuch"})
    replica.start()
    endpoint.order(good, one, bad)
    failed = endpoint.wait_copy("bad", 1, "failed")
    assert failed.blames == "model"
    assert "no weights" in failed.reason
    ready(replica, "good")
    ready(replica, "both")
    endpoint.order(good, one, two, bad)
    assert "nonesuch" in endpoint.wait_copy("both", 2, "failed").reason
    assert replica.add(1, model="both") == 2
    assert replica.repository() == {
        f"{model}/{file}" for model in ("good", "both") for file in ("config.pbtxt", "1/model.py", "1/__pycache__")
    }
    endpoint.order(good, one)
    endpoint.wait(lambda each: len(each.copies) == 2)
    endpoint.order(good, one, bad)  # asked again, it is tried again
    endpoint.wait_copy("bad", 1, "failed")
    assert replica.log().count("version failed") == 3


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        pytest.param({"example": Example(inputs={"X": [[1.0]]}, outputs={"Y": [[3.0]]})}, "expected 3.0", id="answer"),
        pytest.param({"example": Example(inputs={"X": [["a"]]})}, "no tensor of type FP32", id="value"),
        pytest.param({"example": Example(inputs={"Z": [[1.0]]})}, "does not have", id="input"),
        pytest.param(
            {"outputs": (Tensor(name="Y", data_type="INT32", dims=(1,)),)},
            "answers Y as FP32, but the entry says INT32",
            id="type",
        ),
    ],
)
def test_a_model_that_fails_its_proof_is_not_kept(replica: Replica, entry: dict[str, Any], reason: str) -> None:
    replica.start()
    replica.endpoint.order(wanted(replica.folder, **entry))
    failed = replica.endpoint.wait_copy("add", 1, "failed")
    assert failed.blames == "model"
    assert reason in failed.reason
    replica.endpoint.wait(lambda _: replica.repository() == set())


def test_a_load_that_never_ends_is_ended(replica: Replica) -> None:
    endpoint = replica.endpoint
    good = wanted(replica.folder, model="good")
    stuck = wanted(
        replica.folder, model="stuck", files={"model.py": add_source(initialize="import time; time.sleep(10**6)")}
    )
    replica.start()
    endpoint.order(good)
    ready(replica, "good")
    server = replica.server()
    replica.kill_agent()
    replica.start("--load-timeout-s=10")
    endpoint.order(good, stuck)
    failed = endpoint.wait_copy("stuck", 1, "failed")
    assert failed.blames == "model"
    assert "did not end within 10 s" in failed.reason
    assert replica.server() == server
    assert replica.add(1, model="good") == 2
    assert not [each for each in server.children(recursive=True) if "/stuck/" in " ".join(each.cmdline())]


def test_a_server_that_is_killed_comes_back_with_all_models(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    endpoint.order(wanted(replica.folder, model="a"), wanted(replica.folder, model="b"))
    ready(replica, "a")
    ready(replica, "b")
    replica.server().kill()
    # While it is down, what it held may be told once more as it was.
    endpoint.wait(lambda each: (each.crashes, each.server, {c.state for c in each.copies}) == (1, "ready", {"ready"}))
    assert any(each.server == "down" and "SIGKILL" in each.reason for each in endpoint.reports)
    assert (replica.add(1, model="a"), replica.add(2, model="b")) == (2, 3)
    stubs = [each for each in replica.server().children(recursive=True) if "stub" in each.name()]
    assert len(stubs) <= 2


def stub_of(replica: Replica, model: str) -> psutil.Process:
    (stub,) = [
        each
        for each in replica.server().children(recursive=True)
        if each.status() != psutil.STATUS_ZOMBIE and f"/{model}/" in " ".join(each.cmdline())
    ]
    return stub


def test_a_python_model_whose_process_dies_is_loaded_again(replica: Replica) -> None:
    """Triton goes on calling it ready, and refuses every request."""
    endpoint = replica.endpoint
    replica.start()
    endpoint.order(wanted(replica.folder), wanted(replica.folder, model="other"))
    ready(replica, "add")
    ready(replica, "other")
    server, other = replica.server(), stub_of(replica, "other")
    for deaths in (1, 2):
        dead = stub_of(replica, "add")
        heard = len(endpoint.reports)
        dead.kill()
        endpoint.wait(lambda _: any(copy_state(each, "add") != "ready" for each in endpoint.reports[heard:]))  # noqa: B023
        ready(replica, "add")
        assert replica.add(1) == 2
        assert stub_of(replica, "add") != dead
        assert f"deaths={deaths}" in replica.log() or f'"deaths": {deaths}' in replica.log()
    assert (replica.server(), stub_of(replica, "other")) == (server, other)
    assert endpoint.reports[-1].crashes == 0


def test_a_python_model_that_dies_of_a_request_takes_nobody_else_away_for_good(
    replica: Replica, tmp_path: Path
) -> None:
    """Triton never ends a request that was with a stub when it died, nor unloads its model: only a new server does."""
    endpoint = replica.endpoint
    trap = tmp_path / "trap"
    execute = f"import os, time; os.path.exists({str(trap)!r}) and (time.sleep(1), os._exit(9))"
    fatal = wanted(replica.folder, model="fatal", files={"model.py": add_source(execute=execute)}, example=None)
    replica.start("--settle-s=0")
    endpoint.order(fatal, wanted(replica.folder, model="other"))
    for crashes in (1, 2):
        ready(replica, "fatal")
        ready(replica, "other")
        trap.touch()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(replica.add, 1, model="fatal") for _ in range(4)]
            assert all(each.exception() for each in asked)
        trap.unlink()
        endpoint.wait(lambda each: each.crashes == crashes)  # noqa: B023
    failed = endpoint.wait_copy("fatal", 1, "failed")
    assert (failed.blames, "had to be ended twice" in failed.reason) == ("crash", True)
    ready(replica, "other")
    assert replica.add(1, model="other") == 2


def test_a_server_that_is_killed_again_and_again_is_no_fault_of_its_models(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start("--settle-s=0")
    endpoint.order(wanted(replica.folder))
    for crashes in (1, 2, 3):
        ready(replica, "add")
        assert replica.add(1) == 2
        replica.server().kill()
        endpoint.wait(lambda each: each.crashes == crashes and copy_state(each, "add") == "ready")  # noqa: B023
    assert all((copy := copy_of(each, "add", 1)) is None or copy.state != "failed" for each in endpoint.reports)


def test_a_disk_that_can_not_be_written_ends_no_agent(replica: Replica) -> None:
    endpoint = replica.endpoint
    first, second = wanted(replica.folder), wanted(replica.folder, model="second")
    replica.start()
    endpoint.order(first)
    ready(replica, "add")
    assert replica.agent is not None
    replica.agent.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))  # no file of the agent's can grow
    endpoint.order(first, second)
    failed = endpoint.wait_copy("second", 1, "failed")
    assert failed.blames == "environment"
    assert replica.add(1) == 2
    replica.agent.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    ready(replica, "second")
    assert replica.agent.is_running()
    replica.kill_agent()
    replica.start()  # and what could not be written has been written since: nothing is loaded anew
    endpoint.wait(lambda each: {c.model: c.state for c in each.copies} == {"add": "ready", "second": "ready"})
    assert (replica.add(1), replica.add(1, model="second")) == (2, 2)


def test_a_python_model_that_lost_its_process_while_no_agent_was_there(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start()
    endpoint.order(wanted(replica.folder))
    ready(replica, "add")
    server, dead = replica.server(), stub_of(replica, "add")
    replica.kill_agent()
    dead.kill()
    replica.start()
    endpoint.wait(lambda each: each.server == "ready" and copy_state(each, "add") == "ready")
    assert replica.add(1) == 2
    assert replica.server() == server


def copy_state(report: ReplicaReport, model: str) -> str | None:
    copy = copy_of(report, model, 1)
    return copy.state if copy is not None else None


def test_a_server_that_hangs_is_killed_and_comes_back(replica: Replica) -> None:
    endpoint = replica.endpoint
    replica.start("--live-every-s=0.3", "--live-timeout-s=3", "--live-failures=3")
    endpoint.order(wanted(replica.folder))
    ready(replica, "add")
    replica.server().send_signal(signal.SIGSTOP)
    endpoint.order(wanted(replica.folder), wanted(replica.folder, model="late"))  # asked for while it hangs
    endpoint.wait(lambda each: each.crashes == 1 and [c.state for c in each.copies] == ["ready", "ready"])
    assert any(each.server == "down" and "did not answer" in each.reason for each in endpoint.reports)
    assert (replica.add(1), replica.add(1, model="late")) == (2, 2)


def test_a_version_that_crashes_the_server_in_its_load_is_named(replica: Replica) -> None:
    endpoint = replica.endpoint
    good = wanted(replica.folder, model="good")
    boom = wanted(replica.folder, model="good", version=2, files={"model.py": add_source(initialize=KILL)})
    replica.start()
    endpoint.order(good)
    ready(replica, "good")
    endpoint.order(good, boom)
    failed = endpoint.wait_copy("good", 2, "failed")
    assert failed.blames == "crash"
    assert "died while loading it" in failed.reason
    assert "SIGSEGV" in failed.reason
    ready(replica, "good")
    assert replica.add(1, model="good") == 2
    assert endpoint.reports[-1].crashes == 1


def test_of_several_loads_at_once_the_one_that_crashes_the_server_is_found(replica: Replica, tmp_path: Path) -> None:
    """Both are in their loads when the server dies: `boom` waits for `good`, and that one, at first, for the end."""
    endpoint = replica.endpoint
    begun = str(tmp_path / "good-has-begun")
    first_stay = f"import os, time; os.path.exists({begun!r}) or (open({begun!r}, 'w').close(), time.sleep(60))"
    wait_then_kill = f"import os, time\n        while not os.path.exists({begun!r}): time.sleep(0.02)\n        {KILL}"
    good = wanted(replica.folder, model="good", files={"model.py": add_source(initialize=first_stay)})
    boom = wanted(replica.folder, model="boom", files={"model.py": add_source(initialize=wait_then_kill)})
    replica.start()
    endpoint.order(good, boom)
    assert endpoint.wait_copy("boom", 1, "failed").blames == "crash"
    ready(replica, "good")
    assert endpoint.reports[-1].crashes == 2
    assert all((copy := copy_of(each, "good", 1)) is None or copy.state != "failed" for each in endpoint.reports)


def test_a_version_that_crashes_the_server_soon_after_its_load_is_found(replica: Replica) -> None:
    endpoint = replica.endpoint
    good = wanted(replica.folder, model="good")
    boom = wanted(replica.folder, model="boom", files={"model.py": add_source(initialize=KILL_LATER)})
    replica.start()
    endpoint.order(good)
    ready(replica, "good")
    endpoint.order(good, boom)
    failed = endpoint.wait_copy("boom", 1, "failed")
    assert failed.blames == "crash"
    ready(replica, "good")
    assert all((copy := copy_of(each, "good", 1)) is None or copy.state != "failed" for each in endpoint.reports)


def test_a_version_that_twice_crashes_the_server_while_serving_is_named(replica: Replica, tmp_path: Path) -> None:
    endpoint = replica.endpoint
    trap = tmp_path / "trap"
    execute = f"import os, time; os.path.exists({str(trap)!r}) and (os.kill(os.getppid(), 11), time.sleep(60))"
    replica.start("--settle-s=0")
    endpoint.order(wanted(replica.folder, files={"model.py": add_source(execute=execute)}, example=None))
    for crashes in (1, 2):
        ready(replica, "add")
        trap.touch()
        with pytest.raises(Exception, match=r"UNAVAILABLE|DEADLINE"):
            replica.add(1)
        trap.unlink()
        endpoint.wait(lambda each: each.crashes == crashes and each.server == "ready")  # noqa: B023
    failed = endpoint.wait_copy("add", 1, "failed")
    assert failed.blames == "crash"
    assert "twice while serving" in failed.reason


def test_a_full_disk_is_said_and_leaves_nothing_half_done(replica: Replica) -> None:
    endpoint = replica.endpoint
    big = wanted(replica.folder, model="big", files={"model.py": add_source(), "weights": b"x" * 100_000})
    replica.start("--disk-bytes=50000")
    endpoint.order(wanted(replica.folder, model="small"), big)
    failed = endpoint.wait_copy("big", 1, "failed")
    assert failed.blames == "environment"
    assert "no room for the 100000 bytes of weights" in failed.reason
    ready(replica, "small")
    assert not [each for each in replica.repository() if each.startswith("big")]


def test_damaged_bytes_are_refused_until_they_are_mended(replica: Replica) -> None:
    endpoint = replica.endpoint
    version = wanted(replica.folder)
    (digest, source) = next(iter(version.sources.items()))
    right = Path(source).read_bytes()
    Path(source).write_bytes(right.replace(b"1", b"2"))
    replica.start("--retry-max-s=1")
    endpoint.order(version)
    failed = endpoint.wait_copy("add", 1, "failed")
    assert failed.blames == "environment"
    assert digest[:12] in failed.reason
    Path(source).write_bytes(right)
    ready(replica, "add")
    assert replica.add(1) == 2


def test_an_expired_address_is_replaced(replica: Replica) -> None:
    endpoint = replica.endpoint
    version = wanted(replica.folder, url=f"{endpoint.url}/files")
    (digest,) = version.sources
    endpoint.files = {f"fresh-{digest}": replica.folder / digest}
    endpoint.expired = {digest}
    replica.start()
    endpoint.order(version)
    ready(replica, "add")
    asked = [each for each in endpoint.reports if each.generation == 0 and each.copies]
    assert asked
    assert asked[0].copies[0].blames == "environment"
    assert replica.add(1) == 2
