"""Commands that change the registry."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.cli.arguments import DURATION
from controlplane.core.models import FleetRecord, Quarantine
from controlplane.local.home import Home
from controlplane.local.system import ControllerSettings, System, save_system
from controlplane.registry import Registry
from tests.cli.conftest import Ctl, write_model
from tests.registry.entries import make_stable


def test_register_tells_what_it_made(ctl: Ctl, model_file: Path) -> None:
    first = ctl("register", "m", model_file, "--label", "commit=abc", "--reason", "first", "-o", "json")
    assert first.status == 0
    assert (first.data["version"], first.data["created"], len(first.data["digest"])) == (1, True, 64)
    assert any("FP32" in fact for fact in first.data["facts"]), "what was read from the file"
    again = ctl("register", "m", model_file)
    assert again.status == 0
    assert "m@1 is there already" in again.out
    assert ctl("register", "m", model_file, "-o", "name").out == "m@1\n"
    item = ctl("history", "m", "-o", "json").data[0]
    assert (item["actor"], item["action"], item["reason"]) == ("tester@here", "register", "first")


def test_a_registration_is_checked_for_its_fleet(
    ctl: Ctl, model_file: Path, tmp_path: Path, fleet: FleetRecord
) -> None:
    made = ctl("register", "m", model_file, "-o", "json")
    assert "checked for fleet cpu" in made.data["facts"]
    (tmp_path / "model.yaml").write_text("instances: [{kind: GPU}]\n")
    refused = ctl("register", "gpu", model_file, "--entry", tmp_path / "model.yaml")
    assert refused.status == 2
    assert "error[INVALID]" in refused.err
    assert ctl("get", "models", "-o", "name").out == "m\n", "nothing is half done"


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("outputs: [{name: y, label_filename: labels.txt}]", "outputs[0].label_filename"),
        ('config: "foo { bar"', "config"),
        ("warmup: [{name: w, batch_size: 99, inputs: {x: {data_type: FP32, dims: [4]}}}]", "warmup[0].batch_size"),
    ],
)
def test_what_fails_on_any_server_is_refused_while_no_fleet_is_known(
    ctl: Ctl, model_file: Path, tmp_path: Path, entry: str, field: str
) -> None:
    good = ctl("register", "good", model_file, "-o", "json")
    assert any("checked without a fleet" in fact for fact in good.data["facts"])
    (tmp_path / "model.yaml").write_text(entry + "\n")
    for command in (("register", "m", model_file, "--entry"), ("validate",)):
        refused = ctl(*command, tmp_path / "model.yaml")
        assert (refused.status, f"  {field}: " in refused.err) == (2, True), refused.err
    (tmp_path / "model.yaml").write_text("instances: [{kind: GPU}]\n")
    assert ctl("register", "gpu", model_file, "--entry", tmp_path / "model.yaml").status == 0, "some fleet may have one"


def test_more_memory_than_any_replica_has_is_refused(
    ctl: Ctl, model_file: Path, tmp_path: Path, fleet: FleetRecord
) -> None:
    (tmp_path / "model.yaml").write_text("resources: {memory_bytes: 999Gi}\n")
    refused = ctl("register", "m", model_file, "--entry", tmp_path / "model.yaml")
    assert refused.status == 2
    assert "resources.memory_bytes: 999.0 GiB is stated, and the replicas of fleet cpu have 4.0 GiB" in refused.err
    assert ctl("get", "models", "-o", "name").out == ""


ENSEMBLE = """\
max_batch_size: 4
inputs: [{name: x, data_type: FP32, dims: [4]}]
outputs: [{name: y, data_type: FP32, dims: [4]}]
ensemble: [{model_name: m, input_map: {x: x}, output_map: {y: y}}]
"""


@pytest.mark.usefixtures("two_versions", "fleet")
def test_the_steps_of_an_ensemble_are_pinned_and_it_is_told(ctl: Ctl, tmp_path: Path, registry: Registry) -> None:
    entry = tmp_path / "ensemble.yaml"
    entry.write_text(ENSEMBLE)
    newest = ctl("register", "e", "--entry", entry)
    assert "step m is pinned to m@2, the newest, since no version of m is stable" in newest.out
    assert "step m is pinned to m@2" in ctl("validate", entry, "--name", "e").out
    running = ctl("promote", "m", 1, "--no-wait", "-o", "json").data["rollout"]
    registry.finish_rollout("m", running, state="succeeded", reason="", actor="controller")
    stable = ctl("register", "e", "--entry", entry)
    assert stable.out.startswith("e@2 made")
    assert "step m is pinned to m@1, which is stable" in stable.out
    assert ctl("describe", "version", "e@2", "-o", "json").data["entry"]["ensemble"][0]["model_version"] == 1
    entry.write_text(ENSEMBLE.replace("model_name: m", "model_name: nobody"))
    missing = ctl("register", "e", "--entry", entry)
    assert (missing.status, "register the ensemble's steps first" in missing.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("register", "../m", "model.onnx"), 2, "error[INVALID]"),
        (("register", "m", "nothing.onnx"), 2, "no file or folder nothing.onnx"),
        (("register", "m", "broken.onnx"), 2, "error[INVALID]"),
        (("register", "m", "model.onnx", "--label", "x"), 2, "KEY=VALUE"),
        (("promote", "nobody", 1), 1, "no model 'nobody'"),
        (("promote", "m", 9), 1, "there is: 1, 2"),
        (("promote", "m"), 2, "which version?"),
        (("promote", "m@"), 2, "which version?"),
        (("promote", "m@1", 2), 2, "`ctl promote m 2`"),
        (("promote", "m", "abc"), 1, "m has no alias 'abc'; it has: none"),
        (("rollback", "m"), 1, "nothing is stable"),
        (("alias", "m", "stable=1"), 2, "only a rollout moves 'stable'"),
        (("alias", "m", "nothing"), 2, "candidate=2"),
        (("alias", "m", "--delete"), 2, "which alias?"),
        (("alias", "m", "candidate=nobody"), 1, "no alias 'nobody'"),
        (("delete", "m"), 2, "magika@2"),
        (("delete", "m@9"), 1, "error[NOT_FOUND]"),
        (("gc", "--grace", "soon"), 2, "no duration"),
        (("unquarantine", "m@1"), 1, "not quarantined"),
        (("get", "models", "--registry", "s3://x"), 2, "can't name a bucket"),
        (("get", "models", "nobody"), 1, "no model"),
        (("nonsense",), 2, "error[INVALID]: No such command"),
        (("promot", "m", 1), 2, "'promote'"),
        (("get", "modles"), 2, "'models'"),
        (("register",), 2, "ctl register --help"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
@pytest.mark.usefixtures("two_versions")
def test_errors_have_a_status_and_say_the_way_out(
    ctl: Ctl, tmp_path: Path, arguments: tuple[object, ...], status: int, says: str
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    before = ctl("get", "models", "-o", "json").out
    answer = ctl(*arguments)
    assert (answer.status, answer.out) == (status, "")
    assert says in answer.err
    assert ctl("get", "models", "-o", "json").out == before


@pytest.mark.usefixtures("two_versions")
def test_without_a_controller_a_promotion_is_recorded(ctl: Ctl) -> None:
    waited = ctl("promote", "m", 1)
    assert waited.status == 3
    assert "recorded, not served" in waited.err
    second = ctl("promote", "m@2", "--no-wait")
    assert second.status == 5
    assert "ctl rollback m" in second.err
    assert ctl("rollback", "m").status == 0
    assert ctl("promote", "m@2", "--no-wait", "-o", "json").data["state"] == "running"


@pytest.mark.usefixtures("two_versions")
def test_a_model_is_retired(ctl: Ctl, registry: Registry) -> None:
    assert "nothing of m is stable" in ctl("retire", "m").err
    make_stable(registry, "m", 1)
    would = ctl("retire", "m", "--dry-run")
    assert "would be served no more" in would.out and registry.model("m").stable == 1
    done = ctl("retire", "m", "--reason", "nobody asks")
    assert "is served no more" in done.out and "`ctl rollback m` brings m@1 back" in done.out
    assert registry.model("m").stable is None
    assert "retire" in ctl("history", "m").out and "nobody asks" in ctl("history", "m").out


@pytest.mark.usefixtures("two_versions")
def test_a_dry_run_says_what_would_be_and_leaves_all_as_it_is(ctl: Ctl, tmp_path: Path, registry: Registry) -> None:
    def data(*arguments: object) -> tuple[dict[str, object], str]:
        before = registry.model("m")
        text, answer = ctl(*arguments, "--dry-run"), ctl(*arguments, "--dry-run", "-o", "json")
        assert (text.status, answer.status, answer.data["dry_run"]) == (0, 0, True)
        assert registry.model("m") == before
        return answer.data, text.out

    promoted, text = data("promote", "m", 2)
    assert text == "m@2 would become stable (dry run: nothing was changed)\n"
    assert (promoted["rollout"], promoted["state"], promoted["would"]) == (None, None, {"stable": 2})
    aliased, text = data("alias", "m", "cand=2")
    assert text == "cand would be m@2 (dry run: nothing was changed)\n"
    assert (aliased["aliases"], aliased["would"]) == ({}, {"aliases": {"cand": 2}})
    registered, text = data("register", "m", write_model(tmp_path / "model.onnx", scale=3.0))
    assert text.startswith("m@3 would be made\n")
    assert (registered["created"], registered["uploaded_bytes"]) == (False, 0)
    assert isinstance(registered["would"], dict) and registered["would"]["created"] is True
    deleted, text = data("delete", "m@1")
    assert text == "m@1 would be deleted\n"
    assert (deleted["deleted"], deleted["would"]) == (False, {"deleted": True})
    running = ctl("promote", "m", 2, "--no-wait", "-o", "json").data
    assert (running["state"], running["dry_run"], "would" in running) == ("running", False, False)
    aborted, text = data("rollback", "m")
    assert text.startswith("the rollout to m@2 would be aborted; stable is nothing")
    assert (aborted["rollout"], aborted["state"]) == (running["rollout"], "running")
    registry.finish_rollout("m", running["rollout"], state="succeeded", reason="", actor="controller")
    nothing, text = data("promote", "m", 2)
    assert text.startswith("m@2 is stable already")
    assert nothing["would"] == {}


@pytest.mark.usefixtures("two_versions", "controller")
def test_the_wait_outlasts_the_deadline_of_the_rollout(ctl: Ctl) -> None:
    answer = ctl("promote", "m", 1, "--deadline", "1s")
    assert answer.status == 1
    assert "m@1 was not served after 1 s" in answer.err


@pytest.mark.usefixtures("two_versions", "controller")
def test_a_promotion_waits_and_says_for_what(ctl: Ctl, registry: Registry) -> None:
    waited = ctl("promote", "m", 1, "--timeout", "15s")
    assert waited.status == 3
    assert "waiting: " in waited.err
    explained = ctl("explain", "m")
    assert explained.status == 0
    assert "WHY" in explained.out

    def finish(state: str) -> None:
        deadline = time.monotonic() + 30
        while (running := registry.model("m").running_rollout) is None or running.target != 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert state in ("succeeded", "failed")
        registry.finish_rollout("m", running.id, state=state, reason="it is what it is", actor="controller")  # type: ignore[arg-type]

    assert ctl("rollback", "m").status == 0
    for state, status in (("failed", 1), ("succeeded", 0)):
        thread = threading.Thread(target=finish, args=(state,))
        thread.start()
        answer = ctl("promote", "m", 2)
        thread.join()
        assert answer.status == status
        assert ("it is what it is" in answer.err) == (state == "failed")
    assert answer.out == "m@2 is stable\n"


@pytest.mark.usefixtures("two_versions")
def test_aliases_and_deleting(ctl: Ctl) -> None:
    assert ctl("alias", "m", "candidate=2").out == "candidate is m@2\n"
    assert ctl("alias", "m", "next=candidate").out == "next is m@2\n"
    assert ctl("alias", "m", "-o", "name").out == "candidate\nnext\n"
    assert ctl("alias", "m", "next", "--delete").out == "m has no alias next any more\n"
    assert [(each["name"], each["version"]) for each in ctl("alias", "m", "-o", "json").data] == [("candidate", 2)]
    assert "candidate  m@2" in ctl("alias", "m").out
    refused = ctl("delete", "m@2")
    assert (refused.status, "candidate" in refused.err) == (5, True)
    assert ctl("alias", "m", "candidate", "--delete").status == 0
    assert ctl("delete", "m@2", "--dry-run").out == "m@2 would be deleted\n"
    assert ctl("delete", "m@2").status == 0
    assert ctl("get", "versions", "m", "-o", "name").out == "m@1\n"
    assert ctl("get", "versions", "m", "--deleted", "-o", "name").out == "m@1\nm@2\n"
    would = ctl("gc", "--grace", "0", "--dry-run", "-o", "json").data
    assert len(would["removed"]) == 2
    assert "2 files removed" in ctl("gc", "--grace", "0").out


@pytest.mark.usefixtures("two_versions")
def test_a_quarantine_is_lifted(ctl: Ctl, registry: Registry, fleet: FleetRecord) -> None:
    quarantine = Quarantine(model="m", version=1, digest="d", reason="it crashed", at=datetime.now(UTC))
    registry.update_fleet("cpu", lambda record: replace(record or fleet, quarantines=(quarantine,)))
    assert "m@1" in ctl("get", "fleets").out
    dry = ctl("unquarantine", "m@1", "--dry-run", "-o", "json").data
    assert (dry["free_on"], dry["would"]) == ([], {"free_on": ["cpu"]})
    assert registry.fleet("cpu").quarantines == (quarantine,)
    assert ctl("unquarantine", "m@1", "--fleet", "cpu").out == "m@1 is free to run on fleet cpu again\n"
    assert registry.fleet("cpu").quarantines == ()


def test_a_fleet_is_set_by_hand_for_a_while_and_let_go(ctl: Ctl, registry: Registry, fleet: FleetRecord) -> None:
    dry = ctl("scale", "cpu", "4", "--for", "1h", "--dry-run", "-o", "json")
    assert dry.status == 0 and json.loads(dry.out)["would"]["manual"] == 4
    assert registry.fleet("cpu").manual is None
    done = ctl("scale", "cpu", "4", "--for", "1h", "--reason", "a launch")
    assert done.status == 0 and "shall have 4 until" in done.out
    assert "1 to 1" in done.err, "it is told that the deployment says otherwise"
    manual = registry.fleet("cpu").manual
    assert manual is not None and manual.until is not None
    assert (manual.replicas, manual.reason) == (4, "a launch")
    assert (manual.until - manual.at).total_seconds() == 3600
    assert "4 by hand" in ctl("get", "fleets").out
    assert ctl("scale", "cpu", "--auto").status == 0
    assert registry.fleet("cpu").manual is None
    assert "by hand" not in ctl("get", "fleets").out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("1d12h", 129_600), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


def test_a_size_beyond_the_budget_is_told(ctl: Ctl, home: Home, registry: Registry, fleet: FleetRecord) -> None:
    save_system(System(registry=str(home.registry), controller=ControllerSettings(max_replicas=3)), home)
    assert "3 replicas at most: `max_replicas`" in ctl("scale", "cpu", "4").err
    assert "at most" not in ctl("scale", "cpu", "3").err


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        pytest.param(("cpu",), 2, "--auto", id="neither"),
        pytest.param(("cpu", "3", "--auto"), 2, "--auto", id="both"),
        pytest.param(("cpu", "-1"), 2, "-1", id="fewer than none"),
        pytest.param(("cpu", "3", "--for", "0s"), 2, "--for", id="for no time"),
        pytest.param(("cpu", "3", "--for", "soon"), 2, "soon", id="for no duration"),
        pytest.param(("cpu", "3", "--for", "1h1h"), 2, "1h1h", id="for a duration that says a unit twice"),
        pytest.param(("cpu", "--auto", "--for", "1h"), 2, "does not go with --auto", id="lifted for a while"),
        pytest.param(("cpu", "3", "--for", "99999999999d"), 2, "ten years", id="for longer than there are dates"),
        pytest.param(("gpu", "3"), 1, "gpu", id="no such fleet"),
    ],
)
def test_a_size_that_can_not_be_set(
    ctl: Ctl, fleet: FleetRecord, arguments: tuple[str, ...], status: int, told: str
) -> None:
    done = ctl("scale", *arguments)
    assert done.status == status and told in done.err
