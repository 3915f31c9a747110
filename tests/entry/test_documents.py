"""Entry files: what is taken, what is refused, and in which words."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controlplane.core.entry import Entry, Resources, Tensor
from controlplane.core.errors import ControlPlaneError, InvalidEntry, InvalidInput
from controlplane.entry.document import MAX_BYTES, read_document
from controlplane.entry.parse import to_data, to_entry
from controlplane.entry.schema import schema, schema_text
from controlplane.entry.wording import size_bytes

MINIMAL = """
name: m
backend: python
inputs: [{name: x, data_type: FP32, dims: [4]}]
outputs: [{name: y, data_type: TYPE_STRING, dims: [-1]}]
"""
X = Tensor(name="x", data_type="FP32", dims=(4,))
Y = Tensor(name="y", data_type="BYTES", dims=(-1,))


def parse_entry(text: str | bytes) -> Entry:
    return to_entry(read_document(text, "model.yaml"))


def test_a_small_entry() -> None:
    assert parse_entry(MINIMAL) == Entry(name="m", backend="python", inputs=(X,), outputs=(Y,))


def test_json_is_an_entry_file_too() -> None:
    assert parse_entry(json.dumps(yaml.safe_load(MINIMAL))) == parse_entry(MINIMAL)


def test_other_spellings() -> None:
    entry = parse_entry(
        MINIMAL
        + "resources: {memory_bytes: 512Mi}\n"
        + "instances: [{kind: kind_cpu}]\n"
        + "parameters: {threads: 2, spin: false}\n"
        + "example: {inputs: {x: {fill: 1.5, dims: [2, 2]}}}\n"
    )
    assert entry.resources == Resources(memory_bytes=512 << 20)
    assert entry.instances[0].kind == "CPU"
    assert entry.parameters == {"threads": "2", "spin": "false"}
    assert entry.example is not None
    assert entry.example.inputs == {"x": [[1.5, 1.5], [1.5, 1.5]]}


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1k", 1000), ("1Ki", 1024), ("1.5GiB", 3 << 29), ("2 G", 2_000_000_000), ("5Q", None), ("-1", None)],
)
def test_sizes(text: str, size: int | None) -> None:
    assert size_bytes(text) == size


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "cut-off": ("a: [1,", "line 1"),
    "duplicate": ("name: a\nname: b\n", "line 2"),
    "duplicate-below": ("a:\n  b: 1\n  b: 2\n", "line 3"),
    "alias-bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases"),
    "merge": ("a: {b: 1}\n<<: {c: 2}\n", "line 2"),
    "too-deep": ("a: " + "[" * 100 + "]" * 100, "levels"),
    "far-too-deep": ("[" * 100_000, "levels"),
    "too-large": ("#" * (MAX_BYTES + 1), "larger"),
    "a-list": ("- a\n", "mapping"),
    "two-documents": ("a: 1\n---\nb: 1\n", "document"),
    "a-tag": ("a: !!python/object/apply:os.system [echo]\n", "line 1"),
    "not-utf-8": (b"a: \xff\xfe\xff", "UTF-8"),
    "a-nul": ("a: \x00", "read"),
    "infinity": ("a: .inf", "finite"),
    "half-a-character": ('{"a": "\\ud800"}', "line 1"),
    "a-list-as-key": ("? [a]\n: b\n", "line 1"),
    "binary": (bytes(range(256)), "UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_text_is_refused_with_its_place(case: str) -> None:
    text, expected = BROKEN[case]
    with pytest.raises(InvalidInput) as caught:
        read_document(text)
    assert expected in str(caught.value)
    assert caught.value.remedy


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_an_entry_or_an_error_for_people(text: str | bytes) -> None:
    with contextlib.suppress(ControlPlaneError):
        parse_entry(text)


WRONG: dict[str, tuple[str, str, str]] = {
    "unknown-field": ("max_batchsize: 4", "max_batchsize", "`max_batch_size`"),
    "tritons-field": ("instance_group: []", "instance_group", "`instances`"),
    "unknown-below": ("dynamic_batching: {max_queue_delay_microseconds: 5}", "dynamic_batching", "max_queue_delay_us"),
    "in-a-list": ("instances: [{counts: 1}]", "instances[0].counts", "`count`"),
    "type": ("max_batch_size: many", "max_batch_size", "integer"),
    "negative": ("max_batch_size: -1", "max_batch_size", "greater"),
    "kind": ("instances: [{kind: TPU}]", "instances[0].kind", "CPU"),
    "size": ("resources: {memory_bytes: lots}", "resources.memory_bytes", "512Mi"),
    "size-zero": ("resources: {memory_bytes: 0}", "resources.memory_bytes", "greater"),
    "fleet": ("fleet: ../x", "fleet", "letters"),
    "no-mapping": ("serving: always", "serving", "load"),
    "in-a-mapping": ("example: {inputs: {}, tolerance: -1}", "example.tolerance", "greater"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_by_field_and_remedy(case: str) -> None:
    addition, field, words = WRONG[case]
    with pytest.raises(InvalidEntry) as caught:
        parse_entry(MINIMAL + addition)
    problem = next(each for each in caught.value.problems if (each.field or "").startswith(field))
    assert words in str(problem)
    assert "line 6" in str(problem) or case == "fleet"


@pytest.mark.parametrize(
    ("given", "remedy"),
    [("onnx", "did you mean onnxruntime?"), ("torch", "did you mean pytorch?"), ("nosuch", "use one of them")],
)
def test_a_backend_is_guessed_only_where_it_is_close(given: str, remedy: str) -> None:
    with pytest.raises(InvalidEntry) as caught:
        parse_entry(MINIMAL.replace("python", given))
    (problem,) = caught.value.problems
    assert problem.remedy == remedy
    assert "python, onnxruntime, tensorrt" in problem.what


@pytest.mark.parametrize("name", ["a/b", "..", "a..b", "", "-a", "a b", "é", "x" * 129, "a\n", ".a"])
def test_names_that_would_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidEntry) as caught:
        parse_entry(json.dumps({**yaml.safe_load(MINIMAL), "name": name}))
    assert [problem.field for problem in caught.value.problems] == ["name"]


def test_all_mistakes_at_once() -> None:
    with pytest.raises(InvalidEntry) as caught:
        parse_entry("name: a/b\nbackend: onnx\nfoo: 1\ninputs: [{name: x}]\n")
    assert {problem.field for problem in caught.value.problems} == {
        "name",
        "backend",
        "foo",
        "inputs[0].data_type",
        "inputs[0].dims",
    }


def test_what_is_written_out_reads_back() -> None:
    entry = parse_entry(MINIMAL + "dynamic_batching: {priority_queue_policy: {1: {max_queue_size: 3}}}\n")
    data: dict[str, Any] = to_data(entry)
    assert "max_batch_size" not in data
    assert parse_entry(yaml.safe_dump(data)) == entry
    assert parse_entry(json.dumps(data)) == entry


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ([[256] * 2048], {"fill": 256, "dims": [1, 2048]}),
        ([[["a"] * 5] * 2] * 3, {"fill": "a", "dims": [3, 2, 5]}),
        ([[1.0] * 16], [[1.0] * 16]),
        ([1] * 20 + [1.0], [1] * 20 + [1.0]),
        ([[0] * 20, [0] * 19], [[0] * 20, [0] * 19]),
        ([[]] * 20, [[]] * 20),
    ],
    ids=["many", "text", "few", "not the same", "uneven", "empty"],
)
def test_a_large_uniform_example_is_written_short(value: Any, written: Any) -> None:
    entry = parse_entry(
        MINIMAL + f"example: {{inputs: {{x: {json.dumps(value)}}}, outputs: {{y: {json.dumps(value)}}}}}"
    )
    data = to_data(entry)
    assert data["example"] == {"inputs": {"x": written}, "outputs": {"y": written}}
    again = parse_entry(yaml.safe_dump(data))
    assert repr(again) == repr(entry)


def test_the_published_schema_is_current() -> None:
    """`python -m controlplane.entry.schema > docs/entry.schema.json` renews it."""
    assert Path("docs/entry.schema.json").read_text() == schema_text()


def test_the_schema_takes_what_the_parser_takes() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    for file in sorted(Path("examples").glob("*/model.yaml")):
        assert list(validator.iter_errors(yaml.safe_load(file.read_text()))) == [], file
    assert not validator.is_valid({"instance_group": []})
