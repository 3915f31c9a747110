"""Promoting, rolling back, sharing memory: what users do with a system that works."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from controlplane.core.messages import IN_MEMORY
from tests.e2e.system import Load, System, eventually


def test_promote_and_roll_back_under_load_without_a_failed_request(system: System) -> None:
    first = system.serve("swing", factor=2)
    with Load(system.client, "swing", factors=(2, 3)) as load:
        second = system.serve("swing", factor=3)
        load.until_version(second)
        system.ok("rollback", "swing")
        before = load.answers[str(first)]
        eventually(lambda: load.answers[str(first)] > before + 50)
        system.ok("promote", "swing", str(second))
        load.more(50)
    assert not load.failures
    assert set(load.answers) == {str(first), str(second)}
    actions = [each["action"] for each in system.ok("history", "swing", "-o", "json").json()]
    assert (actions.count("promote"), actions.count("rollback"), actions.count("succeed")) == (3, 1, 4)


def test_a_version_that_is_kept_warm_may_be_asked_for_and_an_unknown_one_may_not(system: System) -> None:
    system.serve("pinned", factor=2)
    system.serve("pinned", factor=3)
    assert system.ask("pinned") == (9.0, "2")
    assert system.ask("pinned", version="1") == (6.0, "1")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        system.ask("pinned", version="3")
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        system.ask("nobody-knows-me")


def test_a_model_is_retired_under_load_brought_back_and_deleted(system: System) -> None:
    system.serve("leaver", factor=2)
    system.serve("stayer", factor=2)
    with Load(system.client, "stayer") as load:
        system.ok("retire", "leaver", "--reason", "nobody asks for it")
        eventually(lambda: "NOT_FOUND" in refusal(system, "leaver"), what="it is still served")
        eventually(lambda: not system.holders("leaver", 1), 120, "it is still loaded")
        assert "`ctl promote`" in system.ok("explain", "leaver").out
        system.ok("rollback", "leaver")
        assert system.ask("leaver") == (6.0, "1")
        system.ok("retire", "leaver")
        system.ok("delete", "leaver@1")
        eventually(lambda: not system.holders("leaver", 1), 120, "it is still loaded")
        load.more(50)
    assert not load.failures


def refusal(system: System, name: str) -> str:
    """What a request is refused with; empty if it is answered."""
    try:
        system.ask(name)
    except InferenceServerException as error:
        return str(error)
    return ""


def test_an_alias_is_tried_before_it_is_promoted(system: System) -> None:
    system.serve("tried", factor=2)
    folder = system.write("tried", factor=5)
    system.ok("register", "tried", str(folder))
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        system.ask("tried", version="2")
    system.ok("alias", "tried", "candidate=2")
    eventually(lambda: "candidate" in str(system.told("/v1/models")))

    def answered() -> bool:
        try:
            return system.ask("tried", version="2") == (15.0, "2")
        except InferenceServerException as error:
            assert "NOT_FOUND" in str(error)  # the gateway has not heard of the alias yet
            return False

    eventually(answered)
    assert system.ask("tried") == (6.0, "1"), "the others still get what is stable"


def test_http_and_grpc_give_the_same(system: System) -> None:
    system.serve("both")
    client = triton_http.InferenceServerClient(system.http)
    given = triton_http.InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.array([[3.0]], dtype=np.float32))
    assert client.infer("both", [given]).as_numpy("y")[0, 0] == system.ask("both")[0] == 6.0
    client.close()


def test_a_failed_target_ends_the_rollout_with_its_reason_and_leaves_stable_alone(system: System) -> None:
    system.serve("careful", factor=2)
    folder = system.write("careful", factor=7, initialize="raise RuntimeError('no weights on this shelf')")
    system.ok("register", "careful", str(folder))
    done = system.ctl("promote", "careful", "2")
    assert done.status == 1
    assert "no weights on this shelf" in done.err
    assert system.ask("careful") == (6.0, "1")
    explained = system.ok("explain", "careful")
    assert "no weights on this shelf" in explained.out


def test_more_models_than_fit_load_on_demand_and_the_least_recently_used_leave(
    start: Callable[..., System],
) -> None:
    system = start("fleets: [{name: cpu, replicas: 2, memory_bytes: 200Mi}]")
    names = [f"model-{number}" for number in range(6)]
    for number, name in enumerate(names):
        system.serve(name, factor=number + 2, memory="90Mi", more="serving: {max_copies: 1}")
    for number, name in enumerate(names):  # each of them answers, loaded or not
        assert system.ask(name) == (3.0 * (number + 2), "1")
    for replica in system.replicas().values():
        held = [copy for copy in replica["copies"] if copy["state"] == "ready"]
        assert len(held) <= 2, "two of 90 MiB are what fits into 200 MiB"
    assert system.ask(names[-1])[0] == 3.0 * 7
    loaded = {name for name in names if system.holders(name, 1)}
    assert names[-1] in loaded and len(loaded) <= 4
    route = {each["model"]: each for each in system.ok("get", "routes", "-o", "json").json()}
    assert set(route) == set(names), "what is not loaded is still known"


def test_nothing_is_loaded_before_what_makes_room_for_it_is_gone(start: Callable[..., System]) -> None:
    """Models that take their time to end: three of them would not fit."""
    system = start("fleets: [{name: cpu, replicas: 1, memory_bytes: 200Mi}]")
    slow = "TritonPythonModel.finalize = lambda self: time.sleep(2)"
    for number, name in enumerate("pq"):
        system.serve(name, factor=number + 2, memory="90Mi", initialize=slow)
    folder = system.write("r", factor=4, memory="90Mi", initialize=slow)
    system.ok("register", "r", str(folder))
    with ThreadPoolExecutor() as pool:
        promoted = pool.submit(system.ok, "promote", "r", "1")
        seen = set()
        while not promoted.done():
            (replica,) = system.replicas().values()
            there = frozenset(
                (each["model"], each["state"]) for each in replica["copies"] if each["state"] in IN_MEMORY
            )
            assert len(there) <= 2, there
            seen.add(there)
        promoted.result()
    assert any("unloading" in dict(there).values() for there in seen)
    assert system.ask("r") == (12.0, "1")


def test_an_idle_model_is_unloaded_and_loaded_by_the_next_request(system: System) -> None:
    system.serve("sleeper", more="serving: {idle_s: 1}")
    eventually(lambda: not system.holders("sleeper", 1))
    assert "not asked for 1 s" in system.ok("explain", "sleeper").out
    assert system.ask("sleeper") == (6.0, "1")
    eventually(lambda: not system.holders("sleeper", 1))
