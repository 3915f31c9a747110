"""A bad model hurts itself alone, and its owner is told why."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from tritonclient.utils import InferenceServerException

from tests.e2e.system import Load, System, eventually, waits_for


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(
        tmp_path_factory.mktemp("bad"),
        "fleets: [{name: cpu, replicas: 2, memory_bytes: 1Gi, disk_bytes: 64Mi, load_timeout_s: 20}]",
    )
    try:
        made.up()
        made.serve("good")
        yield made
    finally:
        made.down()


def test_a_warm_up_that_would_kill_the_server_is_refused_at_once(system: System) -> None:
    warmup = "warmup: [{name: big, batch_size: 16, inputs: {x: {data_type: FP32, dims: [1]}}}]"
    folder = system.write("warm", more=warmup)
    done = system.ctl("register", "warm", str(folder))
    assert done.status == 2
    assert "warmup[0].batch_size" in done.err and "16" in done.err and "8" in done.err
    assert "warm" not in system.ok("get", "models", "-o", "name").out.split()


def test_a_model_that_kills_the_server_is_quarantined_and_the_rest_serves_on(system: System) -> None:
    kill = "import signal, time; os.kill(os.getppid(), signal.SIGSEGV); time.sleep(60)"  # as a crash, it ends the load
    folder = system.write("killer", initialize=kill)
    system.ok("register", "killer", str(folder))
    with Load(system.client, "good") as load:
        done = system.ctl("promote", "killer", "1")
        load.more(100)
    assert done.status == 1, done.err
    assert not load.failures, "the other replica serves"
    assert "quarantined" in system.ok("explain", "killer").out
    eventually(lambda: system.holders("good", 1) == {"cpu-0", "cpu-1"})
    again = system.ctl("promote", "killer", "1")
    assert again.status == 1 and "quarantined" in again.err, "it is not tried again"
    crashes = sum(each["crashes"] for each in system.replicas().values())
    assert crashes == 1


def test_a_model_that_answers_errors_is_told(system: System) -> None:
    system.serve("sour", execute="raise RuntimeError('sour')")
    for _ in range(20):
        with pytest.raises(InferenceServerException, match="sour"):
            system.ask("sour")
    assert system.ask("good") == (6.0, "1")
    eventually(lambda: {each["model"] for each in system.told("/v1/top")["models"] if each["errors_per_s"]} == {"sour"})
    assert "requests a second for sour@1 failed" in system.ok("explain", "sour").out
    assert "failed" not in system.ok("explain", "good").out

    def counted() -> bool:
        """What the server itself counted of late."""
        with contextlib.suppress(InferenceServerException):
            system.ask("sour")
        signals = [each["signals"] for each in system.told("/v1/models/sour/explain")["copies"]]
        return any(each["failures_per_s"] for each in signals if each)

    eventually(counted)
    assert re.search(r"COPY .* ERR/S .*\nsour@1 on cpu-\d +ready ", system.ok("describe", "model", "sour").out)

    def is_told_of_all() -> bool:
        """It fails everywhere; of a few requests, chance may lead nearly all to one replica."""
        counted()
        return "of these" not in system.ok("explain", "sour").out

    eventually(is_told_of_all)


def test_a_replica_on_which_a_model_fails_is_named(system: System) -> None:
    system.serve("lame", execute="assert '/cpu-1/' not in __file__, __file__")
    eventually(lambda: system.holders("lame", 1) == {"cpu-0", "cpu-1"})
    failed = 0
    while failed < 10:
        try:
            system.ask("lame")
        except InferenceServerException as error:
            assert "/cpu-1/" in str(error)
            failed += 1
    eventually(lambda: "; of these, 100 % on cpu-1" in system.ok("explain", "lame").out)
    copies = {each["replica"]: each for each in system.told("/v1/models/lame/explain")["copies"]}
    assert copies["cpu-1"]["errors_per_s"] > 0 == copies["cpu-0"]["errors_per_s"]
    assert {each["errors_per_s"] for each in system.told("/v1/models/good/explain")["copies"]} == {0.0}
    assert re.search(r"\nlame@1 on cpu-1 +ready +\d+\.\d ", system.ok("describe", "model", "lame").out)


def test_a_model_that_never_comes_up_is_given_up(system: System) -> None:
    folder = system.write("sleeper", initialize="time.sleep(3600)")
    system.ok("register", "sleeper", str(folder))
    with Load(system.client, "good") as load:
        done = system.ctl("promote", "sleeper", "1")
        load.more(100)
    assert done.status == 1
    assert "20 s" in done.err
    assert not load.failures
    eventually(lambda: system.holders("good", 1) == {"cpu-0", "cpu-1"})
    assert system.serve("after-the-sleeper") == 1, "the replica that it was tried on still works"


def test_an_artifact_larger_than_the_disk_budget_is_told(system: System) -> None:
    folder = system.write("large")
    (folder / "weights.bin").write_bytes(bytes(80 << 20))
    system.ok("register", "large", str(folder))
    done = system.ctl("promote", "large", "1", "--timeout", "10")
    assert done.status in (1, 3)
    assert "disk" in system.ok("explain", "large").out
    system.ok("rollback", "large")
    assert system.ask("good")[0] == 6.0


def test_a_model_that_does_not_fit_is_refused_with_the_sizes(system: System) -> None:
    folder = system.write("huge", memory="2Gi")
    done = system.ctl("register", "huge", str(folder))
    assert done.status == 2
    assert "2.0 GiB" in done.err and "1.0 GiB" in done.err


def test_a_wrong_example_answer_keeps_a_version_from_traffic(system: System) -> None:
    example = "example: {inputs: {x: [[3.0]]}, outputs: {y: [[7.0]]}}"
    folder = system.write("liar", more=example)
    system.ok("register", "liar", str(folder))
    done = system.ctl("promote", "liar", "1")
    assert done.status == 1
    assert "example" in done.err


def test_a_gpu_is_asked_for_where_there_is_none(system: System) -> None:
    folder = system.write("gpu", more="instances: [{kind: GPU}]")
    done = system.ctl("register", "gpu", str(folder))
    assert done.status == 2
    assert "instances[0]" in done.err and "GPU" in done.err


def test_two_promotes_at_once_one_wins_and_the_other_is_told(system: System) -> None:
    system.serve("contended", factor=2)
    over = system.folder / "both-have-promoted"
    folder = system.write("contended", factor=3, initialize=waits_for(over))
    system.ok("register", "contended", str(folder))
    system.ok("promote", "contended", "2", "--no-wait")
    done = system.ctl("promote", "contended", "2")
    over.touch()
    assert done.status == 5
    assert "rollback" in done.err
    eventually(lambda: system.ask("contended")[1] == "2")


def test_a_document_from_a_newer_release_is_left_alone(system: System) -> None:
    document = system.home.registry / "models" / "newer.json"
    content = '{"format": 99, "name": "newer"}'
    document.write_text(content)
    try:
        folder = system.write("newer")
        done = system.ctl("register", "newer", str(folder))
        assert done.status == 1
        assert "NEWER_FORMAT" in done.err
        assert document.read_text() == content
        assert system.ask("good")[0] == 6.0
    finally:
        document.unlink()


def test_a_document_that_breaks_takes_nothing_away_even_from_a_new_controller(system: System) -> None:
    system.serve("garbled")
    document = system.home.registry / "models" / "garbled.json"
    content = document.read_text()
    epoch = system.ok("status", "-o", "json").json()["epoch"]
    with Load(system.client, "garbled") as load:
        document.write_text("{garbage")
        system.kill("controlplane.server")

        def decides() -> bool:
            status = system.ctl("status", "-o", "json")
            return status.status == 0 and bool(status.json()["settled"]) and status.json()["epoch"] > epoch

        eventually(decides)
        load.more(200)
        assert "garbled" in str(system.ok("status", "-o", "json").json()["problems"])
        assert system.serve("beside-the-garbled") == 1, "the others go on"
        document.write_text(content)
        eventually(lambda: not system.told("/v1/status")["problems"])
        load.more(100)
    assert not load.failures
    assert system.serve("garbled", factor=3) == 2
