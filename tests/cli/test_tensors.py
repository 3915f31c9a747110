"""What may stand after ``--input``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.cli.tensors import Declared, read_input
from controlplane.core.errors import InvalidInput

FP32 = Declared(name="x", data_type="FP32", shape=(-1, 4))
INT32 = Declared(name="x", data_type="INT32", shape=(-1, 4))
IMAGE = Declared(name="x", data_type="UINT8", shape=(-1, 2, -1, 3))
TEXT = Declared(name="x", data_type="BYTES", shape=(-1, 1))
SCALARS = Declared(name="x", data_type="INT64", shape=(2,))


@pytest.mark.parametrize(
    ("declared", "text", "expected"),
    [
        (FP32, "[[1, 2, 3, 4]]", [[1, 2, 3, 4]]),
        (FP32, "[1, 2, 3, 4]", [[1, 2, 3, 4]]),
        (FP32, "x=[1, 2, 3, 4, 5, 6, 7, 8]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        (INT32, "[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        (TEXT, '["a=b"]', [[b"a=b"]]),
        (TEXT, '"x=y"', [[b"x=y"]]),
        (TEXT, '"ä"', [["ä".encode()]]),
        (SCALARS, "[1, 2]", [1, 2]),
        (IMAGE, json.dumps([[[1, 2, 3]], [[4, 5, 6]]]), [[[[1, 2, 3]], [[4, 5, 6]]]]),
    ],
)
def test_json_becomes_a_tensor(declared: Declared, text: str, expected: Any) -> None:
    given = read_input(text, {"x": declared})
    assert given.array.tolist() == expected
    assert given.data_type == declared.data_type


@pytest.mark.parametrize("kind", ["npy", "json", "raw"])
def test_files_become_tensors_and_so_does_the_code(tmp_path: Path, kind: str) -> None:
    values = np.arange(8, dtype=np.float32)
    path = tmp_path / f"input.{kind}"
    if kind == "npy":
        np.save(path, values.astype(np.float64))
    elif kind == "json":
        path.write_text(json.dumps(values.tolist()))
    else:
        path.write_bytes(values.tobytes())
    given = read_input(f"@{path}", {"x": FP32})
    assert given.array.dtype == np.float32
    assert given.array.tolist() == values.reshape(2, 4).tolist()
    again = eval(given.code, {"np": np, "json": json})  # noqa: S307 - our own code
    assert np.array_equal(again, given.array)


def test_any_file_can_be_sent_to_an_integer_input(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for content, values in ((b"ab", [97, 98, 0, 0]), (b"abcde", [97, 98, 99, 100])):
        path.write_bytes(content)
        given = read_input(f"@{path}", {"x": INT32})
        assert given.array.tolist() == [values]
        assert "each as one value" in given.note
        assert ("and 2 zeros after them" in given.note) == (content == b"ab")
        assert np.array_equal(eval(given.code, {"np": np}), given.array)  # noqa: S307


def test_an_empty_file_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidInput, match="has 0 bytes"):
        read_input(f"@{tmp_path / 'empty'}", {"x": INT32})


def test_a_file_is_one_value_of_a_bytes_input(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\0\xff")
    assert read_input(f"@{tmp_path / 'f'}", {"x": TEXT}).array.tolist() == [[b"\0\xff"]]


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (FP32, "[1, 2, 3]"),
        (FP32, "[1, 2"),
        (FP32, '["a"]'),
        (FP32, "[[1, 2], [3]]"),
        (FP32, "@nowhere"),
        (SCALARS, "[[1], [2], [3]]"),
        (FP32, "@{odd}"),
    ],
    ids=["too few", "no JSON", "text", "ragged", "no file", "too many", "odd bytes"],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, declared: Declared, text: str) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"abc")
    with pytest.raises(InvalidInput):
        read_input(text.replace("{odd}", str(odd)), {"x": declared})


@pytest.mark.parametrize("declared", [{"x": FP32}, {"x": FP32, "y": FP32}], ids=["one", "several"])
def test_a_name_that_no_input_has_is_told(declared: dict[str, Declared]) -> None:
    with pytest.raises(InvalidInput, match="no input 'bytz'") as refused:
        read_input("bytz=@README.md", declared)
    assert "x (FP32 [-1, 4])" in (refused.value.remedy or "")


def test_several_inputs_must_be_named() -> None:
    with pytest.raises(InvalidInput) as refused:
        read_input("[1]", {"x": FP32, "y": replace(INT32, name="y")})
    assert "y (INT32 [-1, 4])" in (refused.value.remedy or "")
