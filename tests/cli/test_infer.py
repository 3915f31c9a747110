"""`ctl infer` against a real Triton server; what it prints as code is run as well."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Ctl
from tests.gateway.triton import Triton


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Triton("infer", tmp_path_factory.mktemp("triton"), ("echo", "sum"))
    try:
        server.wait()
        yield f"127.0.0.1:{server.grpc_port}"
    finally:
        server.stop()


def test_an_answer_is_data(ctl: Ctl, address: str) -> None:
    answer = ctl("infer", "echo@2", "--input", "[1, 2.5]", "--gateway", address, "-o", "json")
    assert answer.status == 0, answer.err
    outputs = {each["name"]: each["data"] for each in answer.data["outputs"]}
    assert (outputs["OUT"], outputs["VERSION"]) == ([1, 2.5], [2])
    assert ctl("infer", "echo@2", "--input", "[1]", "--gateway", address, "-o", "name").out == "echo@2\n"


def test_the_code_makes_the_same_request(ctl: Ctl, address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.arange(3, dtype=np.float32))
    answer = ctl("infer", "echo@1", "--input", f"IN=@{tmp_path / 'in.npy'}", "--gateway", address)
    assert "OUT FP32 [3]: [0.0, 1.0, 2.0]" in answer.out
    code = answer.err[answer.err.index("import numpy") :]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.sub(r"\s+", " ", ran.stdout).strip() == "[0. 1. 2.] [1]"
    assert not ctl("infer", "echo@1", "--input", "[1]", "--gateway", address, "--no-code").err


def test_a_sequence_is_sent_whole(ctl: Ctl, address: str) -> None:
    answer = ctl("infer", "sum", "--input", "[[3]]", "--sequence", 7, "--gateway", address, "-o", "json")
    assert answer.status == 0, answer.err
    assert answer.data["outputs"][0]["data"] == [[3.0]]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("nobody", "--input", "1"), 1, "error[NOT_FOUND]"),
        (("echo@9", "--input", "[1]"), 1, "`ctl get versions echo`"),
        (("echo",), 2, "the model takes: IN (FP32 [-1])"),
        (("echo", "--input", "[1]", "--input", "[2]"), 2, "given twice"),
        (("echo", "--input", "no"), 2, "not JSON"),
        (("echo", "--input", "bytz=@README.md"), 2, "no input 'bytz'\n  → it has: IN (FP32 [-1])"),
        (("echo@nobody", "--input", "[1]"), 1, "no model 'echo'"),
    ],
    ids=["unknown", "unknown version", "no input", "twice", "no JSON", "wrong name", "unknown alias"],
)
def test_what_goes_wrong_is_said(ctl: Ctl, address: str, arguments: tuple[str, ...], status: int, says: str) -> None:
    answer = ctl("infer", *arguments, "--gateway", address)
    assert (answer.status, answer.out) == (status, "")
    assert says in answer.err


ECHO = """\
backend: python
inputs: [{name: IN, data_type: FP32, dims: [-1]}]
outputs:
  - {name: OUT, data_type: FP32, dims: [-1], label_filename: labels.txt}
  - {name: VERSION, data_type: INT32, dims: [1]}
"""


def test_labels_and_aliases_are_looked_up_in_the_registry(ctl: Ctl, address: str, tmp_path: Path) -> None:
    folder = tmp_path / "echo"
    folder.mkdir()
    (folder / "model.py").write_text("class TritonPythonModel: pass\n")
    (folder / "model.yaml").write_text(ECHO)
    (folder / "labels.txt").write_text("dog\ncat\nsea horse\n")
    registry = ("--registry", tmp_path / "registry")
    assert ctl(*registry, "register", "echo", folder).status == 0
    assert ctl(*registry, "alias", "echo", "cand=1").status == 0
    asked = ("infer", "echo@cand", "--gateway", address, "--no-code", "--input")
    answer = ctl(*registry, *asked, "[0.1, 0.7, 0.25]")
    assert answer.status == 0, answer.err
    assert [line.split() for line in answer.out.splitlines()[2:5]] == [
        ["cat", "0.7"],
        ["sea", "horse", "0.25"],
        ["dog", "0.1"],
    ]
    assert "VERSION INT32 [1]: [1]" in answer.out
    assert "OUT FP32 [3]: [0.1" in ctl(*registry, *asked, "[0.1, 0.7, 0.25]", "--raw").out
    assert len(ctl(*registry, *asked, "[0.1, 0.7, 0.25]", "-o", "json").data["outputs"][0]["data"]) == 3
    assert "OUT FP32 [2]: [1.0, 2.0]" in ctl(*registry, *asked, "[1, 2]").out, "two scores, three labels"


def test_rows_of_scores_are_told_apart() -> None:
    from controlplane.cli.labels import best, fits

    labels = [f"l{number}" for number in range(7)]
    scores = np.arange(21, dtype=np.float32).reshape(3, 7)
    lines = list(best(scores, labels))
    assert len(lines) == 15
    assert lines[0].split() == ["[0]", "l6", "6"]
    assert fits(scores, labels) and not fits(scores, labels[1:])
    assert list(best(np.zeros((99, 7)), labels))[-1].startswith("  … and 89 more")


def test_a_gateway_that_is_away_is_unavailable(ctl: Ctl) -> None:
    answer = ctl("infer", "echo", "--input", "[1]", "--gateway", "127.0.0.1:1", "--timeout", "2s")
    assert answer.status == 1
    assert "nothing answers at 127.0.0.1:1" in answer.err
    assert "ctl up" in answer.err
