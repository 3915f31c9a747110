"""From a local file or folder to the files of a version."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.errors import InvalidInput
from controlplane.registry.artifact import check_path, collect, hash_files
from tests.registry.entries import write


def test_one_file_is_an_artifact(tmp_path: Path) -> None:
    files = write(tmp_path, {"model.onnx": "x"})
    assert collect(files["model.onnx"]) == files


def test_a_folder_is_taken_whole(tmp_path: Path) -> None:
    files = write(tmp_path, {"model.py": "x", "lib/a.py": "y", "lib/deep/b.bin": "z", ".hidden": "h"})
    write(tmp_path, {"__pycache__/model.pyc": "", "lib/__pycache__/a.pyc": "", ".git/HEAD": "", ".DS_Store": ""})
    assert collect(tmp_path) == dict(sorted(files.items()))


def test_links_inside_are_followed(tmp_path: Path) -> None:
    write(tmp_path, {"weights/1.bin": "x"})
    (tmp_path / "model.bin").symlink_to("weights/1.bin")
    assert collect(tmp_path)["model.bin"].read_text() == "x"


@pytest.mark.parametrize("to", ["../secret", "/etc/passwd", "nowhere", "folder", "loop"])
def test_links_that_lead_elsewhere_are_refused(tmp_path: Path, to: str) -> None:
    write(tmp_path, {"secret": "s", "artifact/model.bin": "x", "artifact/folder/y": "y"})
    (tmp_path / "artifact" / "loop").symlink_to(to)
    with pytest.raises(InvalidInput) as refused:
        collect(tmp_path / "artifact")
    assert "cp -rL" in (refused.value.remedy or "")


@pytest.mark.parametrize("kind", ["pipe", "socket", "empty", "missing", "newline", "backslash"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    if kind == "pipe":
        os.mkfifo(folder / "p")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "s"))
    elif kind == "missing":
        folder.rmdir()
    elif kind in ("newline", "backslash"):
        (folder / {"newline": "a\nb", "backslash": "a\\b"}[kind]).write_text("")
    with pytest.raises(InvalidInput):
        collect(folder)


def test_a_pipe_alone_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(InvalidInput, match="no plain file"):
        collect(tmp_path / "p")


@given(st.text(max_size=30))
def test_a_path_that_is_accepted_stays_inside(inside: str) -> None:
    root = "/root/of/artifact"
    try:
        check_path(inside)
    except InvalidInput:
        return
    joined = os.path.normpath(f"{root}/{inside}")
    assert joined == f"{root}/{inside}"
    assert joined.startswith(root + "/")
    inside.encode()


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    files = write(tmp_path, {"a": "one", "b": "two"})
    hashed = hash_files(files)
    hashed.check_unchanged()
    files["b"].write_text("six")
    os.utime(files["b"], ns=(1, 1))
    with pytest.raises(InvalidInput, match="changed"):
        hashed.check_unchanged()
    files["b"].unlink()
    with pytest.raises(InvalidInput):
        hashed.check_unchanged()
