"""Commands that read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stamina
import yaml

from controlplane.core.models import FleetRecord
from controlplane.registry import Registry
from tests.cli.conftest import Ctl, write_model
from tests.waiting import until


@pytest.mark.usefixtures("two_versions", "fleet")
@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "models"), ("get", "versions"), ("get", "fleets"), ("describe", "model", "m"),
        ("describe", "version", "m@2"), ("describe", "fleet", "cpu"), ("history", "m"), ("render", "m@1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_read_has_every_form(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    answers = {form: ctl(*arguments, "-o", form) for form in ("table", "wide", "json", "yaml", "name")}
    assert {answer.status for answer in answers.values()} == {0}
    assert json.loads(answers["json"].out) == yaml.safe_load(answers["yaml"].out)
    assert all(answer.out for answer in answers.values())
    assert "\x1b" not in answers["table"].out


@pytest.mark.usefixtures("controller", "two_versions")
@pytest.mark.parametrize("kind", ["replicas", "fleets", "routes"])
def test_the_controller_is_asked(ctl: Ctl, kind: str) -> None:
    answer = ctl("get", kind, "-o", "json")
    assert answer.status == 0, answer.err
    assert [row["name"] for row in answer.data] == (["cpu"] if kind == "fleets" else [])


@pytest.mark.usefixtures("controller", "two_versions")
def test_reasons_are_for_people_and_codes_for_whoever_asks(ctl: Ctl) -> None:
    assert ctl("alias", "m", "cand=2").status == 0
    until(lambda: ctl("get", "routes", "-o", "name").out == "m\n", what="no route")
    assert " 2: " in ctl("get", "routes").out
    plain, wide = ctl("explain", "m"), ctl("explain", "m", "-o", "wide")
    codes = [each["code"] for each in ctl("explain", "m", "-o", "json").data["reasons"]]
    assert codes
    assert plain.out.startswith("WHY\n")
    assert not any(code in plain.out for code in codes)
    assert all(code in wide.out for code in codes)


@pytest.mark.usefixtures("two_versions", "fleet")
@pytest.mark.parametrize("arguments", [("history", "m"), ("get", "versions")], ids=" ".join)
def test_times_have_a_zone(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    assert " (UTC) " in ctl(*arguments).out.splitlines()[0]


@pytest.mark.parametrize("arguments", [("get", "replicas"), ("get", "routes"), ("explain", "m")], ids=" ".join)
def test_without_a_controller_it_is_said(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    answer = ctl(*arguments)
    assert (answer.status, answer.out) == (1, "")
    assert "ctl up" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [("get", "models"), ("get", "replicas"), ("register", "m", "model.onnx"), ("status",), ("infer", "m")],
    ids=" ".join,
)
def test_a_home_that_is_not_there_is_an_error(
    ctl: Ctl, tmp_path: Path, model_file: Path, arguments: tuple[str, ...]
) -> None:
    answer = ctl("--home", "nosuch", *arguments)
    assert (answer.status, answer.out) == (1, "")
    for word in (str(tmp_path / "nosuch"), "ctl up", "--home", "CTL_HOME_DIR", "--registry"):
        assert word in answer.err
    assert not (tmp_path / "nosuch").exists()


def test_without_a_home_a_registry_may_be_named_and_an_entry_checked(
    ctl: Ctl, tmp_path: Path, model_file: Path
) -> None:
    (tmp_path / "ensemble.yaml").write_text(
        "inputs: [{name: x, data_type: FP32, dims: [4]}]\noutputs: [{name: y, data_type: FP32, dims: [4]}]\n"
        "ensemble: [{model_name: m, input_map: {x: x}, output_map: {y: y}}]\n"
    )
    nowhere = ("--home", "nosuch")
    assert ctl(*nowhere, "--registry", tmp_path / "r", "register", "m", model_file).status == 0
    assert ctl(*nowhere, "validate", "ensemble.yaml").status == 0
    assert ctl(*nowhere, "validate", "ensemble.yaml", "--fleet", "cpu").status == 1


def test_a_store_that_is_away_is_told_in_sentences(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    with stamina.set_testing(True, attempts=3):
        answer = ctl("--registry", "s3://models/x", "get", "models")
    assert (answer.status, answer.out) == (1, "")
    note, error, remedy = answer.err.splitlines()
    assert note == "s3://models/x can't be reached just now; trying again …"
    assert error.startswith("error[UNAVAILABLE]: s3://models does not answer")
    assert "AWS_ENDPOINT_URL_S3" in remedy


def test_the_labels_of_an_entry_are_shown_below_the_version_s_own(ctl: Ctl, model_file: Path, tmp_path: Path) -> None:
    entry_file = tmp_path / "model.yaml"
    entry_file.write_text("name: m\nlabels: {team: vision, task: scaling}\n")
    assert ctl("register", "m", model_file, "--entry", entry_file, "--label", "team=speech").status == 0
    assert "task=scaling,team=speech" in ctl("get", "versions", "-o", "wide").out
    assert "task=scaling,team=speech" in ctl("describe", "version", "m@1").out
    assert ctl("get", "versions", "-o", "json").data[0]["labels"] == {"team": "speech", "task": "scaling"}


@pytest.mark.usefixtures("two_versions")
def test_a_broken_document_hides_no_other(ctl: Ctl, registry: Registry) -> None:
    registry.store.put("models/newer.json", b'{"format": 2}')
    answer = ctl("get", "models", "-o", "name")
    assert (answer.status, answer.out) == (0, "m\n")
    assert "newer release" in answer.err
    assert ctl("describe", "model", "newer").status == 1


@pytest.mark.usefixtures("two_versions")
def test_diff_tells_entries_and_files_apart(ctl: Ctl, tmp_path: Path) -> None:
    same = ctl("diff", "m@1", "m@1")
    assert (same.status, same.out) == (0, "no difference\n")
    files = ctl("diff", "m@1", "m@2", "-o", "json")
    assert files.status == 1
    assert [(file["path"], file["change"]) for file in files.data["files"]] == [("model.onnx", "changed")]
    (tmp_path / "entry.yaml").write_text("max_batch_size: 4\n")
    assert ctl("register", "m", tmp_path / "model.onnx", "--entry", tmp_path / "entry.yaml").status == 0
    entry = ctl("diff", "m@2", "m@3")
    assert entry.status == 1
    assert "+max_batch_size: 4" in entry.out


@pytest.mark.usefixtures("two_versions", "fleet")
def test_an_alias_stands_for_its_version(ctl: Ctl) -> None:
    assert ctl("alias", "m", "cand=2").status == 0
    assert ctl("describe", "version", "m@cand", "-o", "json").data["version"] == 2
    assert ctl("render", "m@cand", "-o", "name").out == "m@2\n"
    assert ctl("diff", "m@1", "m@cand", "-o", "name").out == "m@1 m@2\n"
    assert ctl("promote", "m@cand", "--dry-run", "-o", "name").out == "m@2\n"
    assert ctl("promote", "m", "cand", "--dry-run", "-o", "name").out == "m@2\n"
    unknown = ctl("render", "m@stable")
    assert (unknown.status, "it has: cand" in unknown.err) == (1, True)


@pytest.mark.usefixtures("two_versions", "fleet")
@pytest.mark.parametrize("command", [("render",), ("describe", "version")], ids=" ".join)
def test_what_was_deleted_and_swept_is_said_to_be(ctl: Ctl, command: tuple[str, ...]) -> None:
    assert ctl("delete", "m@2").status == 0
    assert ctl(*command, "m@2").status == 0, "its files are there for a while"
    assert ctl("gc", "--grace", "0").status == 0
    answer = ctl(*command, "m@2")
    assert answer.status == 1
    assert "m@2 was deleted at " in answer.err


def test_render_needs_no_controller(ctl: Ctl, tmp_path: Path, fleet: FleetRecord) -> None:
    ctl("register", "m", write_model(tmp_path / "model.onnx"))
    shown = ctl("render", "m@1", "--fleet", "cpu")
    assert shown.status == 0
    assert 'name: "m"' in shown.out
    written = ctl("render", "m@1", "--out", tmp_path / "out", "-o", "json")
    assert (tmp_path / "out/m/config.pbtxt").read_text() == written.data["config"]
    assert (tmp_path / "out/m/1/model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    assert ctl("render", "m@1", "--out", tmp_path / "out").status == 2, "nothing is overwritten"
    assert ctl("render", "m@1", "--fleet", "nobody").status == 1


@pytest.mark.usefixtures("two_versions")
def test_render_says_when_no_fleet_is_known(ctl: Ctl) -> None:
    answer = ctl("render", "m@1")
    assert answer.status == 2
    assert "ctl up" in answer.err


def test_validate_checks_before_anybody_registers(ctl: Ctl, tmp_path: Path, fleet: FleetRecord) -> None:
    folder = tmp_path / "scaling"
    folder.mkdir()
    write_model(folder / "model.onnx")
    (folder / "model.yaml").write_text("max_batch_size: 8\n")
    good = ctl("validate", folder, "-o", "json")
    assert good.status == 0
    assert good.data["entry"]["name"] == "scaling"
    assert good.data["entry"]["inputs"][0]["name"] == "x"
    assert "checked for fleet cpu" in good.data["facts"]
    (folder / "model.yaml").write_text("max_batch_sise: 8\n")
    bad = ctl("validate", folder / "model.yaml", folder / "model.onnx")
    assert (bad.status, bad.out) == (2, "")
    assert "max_batch_size" in bad.err
    assert ctl("get", "models", "-o", "name").out == ""


def test_validate_finds_the_files_beside_the_entry(ctl: Ctl, tmp_path: Path) -> None:
    folder = tmp_path / "scaling"
    folder.mkdir()
    entry_file = folder / "model.yaml"
    entry_file.write_text("max_batch_size: 8\n")
    alone = ctl("validate", entry_file)
    assert alone.status == 0, alone.err
    assert "still to come from the file: backend" in alone.out
    write_model(folder / "model.onnx")
    beside = ctl("validate", entry_file, "-o", "json")
    assert beside.data["entry"]["inputs"] == [{"name": "x", "data_type": "FP32", "dims": [4]}]
    entry_file.write_text("example: {inputs: {x: {fill: 1.0, dims: [8, 4]}}}\n")
    text = ctl("validate", entry_file).out
    assert "dims: [8, 4]" in text
    assert len(text.splitlines()) < 40
    gone = ctl("validate", folder / "gone.yaml")
    assert (gone.status, "checked with" in gone.err, "no entry file" in gone.err) == (2, False, True)


def test_the_registry_may_be_named_before_and_after(ctl: Ctl, model_file: Path, tmp_path: Path) -> None:
    assert ctl("--registry", tmp_path / "r", "register", "m", model_file).status == 0
    assert ctl("get", "models", "--registry", tmp_path / "r", "-o", "name").out == "m\n"
    assert ctl("get", "models", "-o", "name").out == ""


# The program as people start it.


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_help_imports_nothing_heavy() -> None:
    answer = run("-X", "importtime", "-m", "controlplane.cli.main", "--help")
    assert answer.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in answer.stderr.splitlines()}
    heavy = {
        "pydantic",
        "boto3",
        "numpy",
        "onnx",
        "rich",
        "yaml",
        "grpc",
        "tritonclient",
        "httpx2",
        "structlog",
        "jinja2",
    }
    assert "click" in imported
    assert not imported & heavy
    assert "promote" in answer.stdout


def test_an_interrupt_among_the_imports_prints_no_traceback() -> None:
    """Python's list of imports tells how far it is; the small pipe keeps it from getting far ahead of its reader."""
    command = [sys.executable, "-X", "importtime", "-m", "controlplane.cli.main", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, pipesize=4096)
    assert process.stderr is not None
    said = [next(line for line in process.stderr if "click" in line)]
    process.send_signal(signal.SIGINT)
    said.append(process.stderr.read())
    assert process.wait(30) in (-signal.SIGINT, 130, 0), "".join(said)
    assert "Traceback" not in "".join(said)


@pytest.mark.parametrize("arguments", [("--version",), ("version",)], ids=" ".join)
def test_the_version_is_told(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    assert ctl(*arguments).out.startswith("ctl 0.")


def test_the_version_is_data_too(ctl: Ctl) -> None:
    told = ctl("version", "-o", "json").data
    assert told == yaml.safe_load(ctl("version", "-o", "yaml").out)
    assert ctl("version", "-o", "name").out == f"{told['version']}\n"
    assert set(told) == {"version", "python"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell: str) -> None:
    answer = run("-m", "controlplane.cli.main", "completion", shell)
    assert answer.returncode == 0
    assert "_CTL_COMPLETE" in answer.stdout


def test_a_look_less_often_than_daily_is_refused(ctl: Ctl) -> None:
    answer = ctl("top", "--every", "99999999999d")
    assert (answer.status, answer.out) == (2, "")
    assert "--every is a day at most" in answer.err


def test_every_command_has_help() -> None:
    from controlplane.cli.commands import COMMANDS
    from controlplane.cli.main import main

    for name in COMMANDS:
        assert main([name, "--help"]) == 0


def test_top_and_explain_tell_of_fleets(ctl: Ctl, controller: object) -> None:
    def planned() -> dict[str, Any] | None:
        told = ctl("top", "-o", "json")
        assert told.status == 0
        found: dict[str, Any] = json.loads(told.out)
        return found if found["fleets"][0]["desired"] is not None else None

    told = until(planned, what="a first plan")
    assert told is not None
    (fleet,) = told["fleets"]
    assert (fleet["name"], fleet["ready"], fleet["desired"]) == ("cpu", 0, 0)
    assert told["models"] == []
    shown = ctl("top").out
    assert "FLEET" in shown and "cpu: the deployment asks for 0" in shown
    assert ctl("scale", "cpu", "0", "--for", "1h").status == 0
    until(lambda: "0 by hand" in ctl("top").out, what="a size that was set by hand")
    assert "0 by hand" in ctl("get", "fleet").out, "one of a kind may be asked for, too"
    assert ctl("scale", "cpu", "--auto").status == 0
    until(lambda: "by hand" not in ctl("top").out, what="a size that was let go")
    assert "fleet cpu has 0 replicas: the deployment asks for 0" in ctl("explain", "fleet", "cpu").out
    assert ctl("explain", "fleets", "cpu").status == 2
    assert "`ctl explain fleet cpu`" in ctl("explain", "cpu").err, "no model has that name"
    assert ctl("explain", "fleet", "gpu").status == 1
    assert "`ctl explain fleet NAME`" in ctl("explain", "fleet").err
    assert "`ctl explain m`" in ctl("explain", "m@7").err
