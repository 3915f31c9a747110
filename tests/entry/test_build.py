"""From a file or a folder to an entry: what is read, what is stated, and where the two contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from controlplane.core.entry import DynamicBatching, EnsembleStep, Entry
from controlplane.core.errors import ControlPlaneError, InvalidEntry, InvalidInput, NotFound
from controlplane.entry.build import build, look, pin_steps

Dims = Sequence[str | int | None]


def onnx_bytes(dims: Dims = ("batch", 4), out: Dims | None = None) -> bytes:
    """y = Relu(x)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, dims if out is None else out)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a folder of files; returns it."""

    def making(**files: bytes | str) -> Path:
        folder = tmp_path / "model"
        for name, content in files.items():
            path = folder / name.replace("__", "/").replace("_yaml", ".yaml").replace("_onnx", ".onnx").replace(
                "_py", ".py"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return making


def test_a_file_alone_is_enough(make: Make) -> None:
    built = build("resnet", make(resnet_onnx=onnx_bytes()) / "resnet.onnx")
    assert list(built.files) == ["model.onnx"]
    assert built.entry.backend == "onnxruntime"
    assert built.entry.max_batch_size == 32
    assert built.entry.dynamic_batching == DynamicBatching()
    assert [(t.name, t.data_type, t.dims) for t in (*built.entry.inputs, *built.entry.outputs)] == [
        ("x", "FP32", (4,)),
        ("y", "FP32", (4,)),
    ]
    assert any("32" in fact for fact in built.facts)


def test_without_a_free_first_dimension_there_are_no_batches(make: Make) -> None:
    entry = build("m", make(model_onnx=onnx_bytes((1, "n")))).entry
    assert (entry.max_batch_size, entry.dynamic_batching, entry.inputs[0].dims) == (0, None, (1, -1))


def test_scalars_and_single_numbers(make: Make) -> None:
    entry = build("m", make(model_onnx=onnx_bytes(()))).entry
    assert (entry.inputs[0].dims, entry.inputs[0].reshape) == ((1,), None)
    entry = build("m", make(model_onnx=onnx_bytes(("batch",)))).entry
    assert (entry.inputs[0].dims, entry.inputs[0].reshape) == ((1,), ())


def test_what_is_stated_wins(make: Make) -> None:
    folder = make(
        model_onnx=onnx_bytes(("batch", "n")),
        model_yaml="max_batch_size: 4\ndynamic_batching: null\ninputs: [{name: x, dims: [7]}]\nlabels: {a: b}\n",
    )
    built = build("m", folder, overrides={"labels": {"a": "c"}})
    assert (built.entry.max_batch_size, built.entry.dynamic_batching) == (4, None)
    assert built.entry.inputs[0].dims == (7,)
    assert built.entry.outputs[0].dims == (-1,)
    assert built.entry.labels == {"a": "c"}
    assert list(built.files) == ["model.onnx"]


CONTRADICTIONS: dict[str, tuple[str, str]] = {
    "no-such-input": ("inputs: [{name: z}]", "inputs[0].name"),
    "no-such-output": ("outputs: [{name: z}]", "outputs[0].name"),
    "another-type": ("inputs: [{name: x, data_type: INT32}]", "inputs[0].data_type"),
    "other-dims": ("inputs: [{name: x, dims: [5]}]", "inputs[0].dims"),
    "batch-dimension-repeated": ("inputs: [{name: x, dims: [-1, 4]}]", "inputs[0].dims"),
    "batch-dimension-left-out": ("max_batch_size: 0\ninputs: [{name: x, dims: [4]}]", "inputs[0].dims"),
    "unknown-state": (
        "sequence_batching: {states: [{input_name: s, output_name: t, data_type: FP32, dims: [1]}]}",
        "sequence_batching",
    ),
    "example-of-another-shape": ("example: {inputs: {x: [[1, 2]]}}", "example.inputs[x]"),
    "example-uneven": ("example: {inputs: {x: [[1, 2, 3, 4], [1]]}}", "example.inputs[x]"),
    "example-of-no-input": ("example: {inputs: {q: [[1]]}}", "example.inputs[q]"),
    "example-of-text": ("example: {inputs: {x: [[a, b, c, d]]}}", "example.inputs[x]"),
    "example-too-many": ("max_batch_size: 1\nexample: {inputs: {x: {fill: 1, dims: [2, 4]}}}", "example.inputs[x]"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused(make: Make, case: str) -> None:
    text, field = CONTRADICTIONS[case]
    with pytest.raises(InvalidEntry) as caught:
        build("m", make(model_onnx=onnx_bytes(), model_yaml=text))
    assert field in [problem.field for problem in caught.value.problems]
    assert all(problem.remedy for problem in caught.value.problems)


def test_batches_of_a_file_that_takes_none(make: Make) -> None:
    with pytest.raises(InvalidEntry, match="takes no batches"):
        build("m", make(model_onnx=onnx_bytes((1, 4)), model_yaml="max_batch_size: 8"))


def external() -> bytes:
    """A model that says its weights are in /etc/passwd."""
    model = onnx.load_model_from_string(onnx_bytes())
    weights = model.graph.initializer.add(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="../../etc/passwd")
    return model.SerializeToString()


HOSTILE = {
    "empty": b"",
    "text": b"hello, this is not a model at all",
    "zeros": bytes(1000),
    "cut-off": onnx_bytes()[:40],
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "weights-elsewhere": external(),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_onnx_is_refused(make: Make, case: str) -> None:
    with pytest.raises(ControlPlaneError) as caught:
        build("m", make(model_onnx=HOSTILE[case]))
    assert caught.value.code == "INVALID"
    assert caught.value.remedy


def test_other_backends_by_their_files(make: Make) -> None:
    tensors = "inputs: [{name: x, data_type: FP32, dims: [1]}]\noutputs: [{name: y__0, data_type: FP32, dims: [1]}]\n"
    folder = make(model_py="pass", model_yaml=tensors)
    assert build("m", folder).entry.backend == "python"
    (folder / "model.py").rename(folder / "net.pt")
    built = build("m", folder)
    assert (built.entry.backend, built.entry.default_model_filename) == ("pytorch", "net.pt")


def test_fields_are_checked_before_files_are_missed(make: Make) -> None:
    with pytest.raises(InvalidEntry, match="did you mean `max_batch_size`"):
        build("m", make(notes="text", model_yaml="max_batchsize: 4"))


TENSORS = "inputs: [{name: x, data_type: FP32, dims: [4]}]\noutputs: [{name: y, data_type: FP32, dims: [1]}]\n"


def test_an_entry_file_alone_is_checked_as_far_as_that_goes(make: Make) -> None:
    entry_file = make(entry_yaml="max_batch_size: 4\n") / "entry.yaml"
    looked = look("m", entry_file)
    assert looked.entry is None
    assert "backend" in looked.unchecked[-1]
    entry_file.write_text("backend: python\n" + TENSORS)
    found = look("m", entry_file).entry
    assert found is not None and found.inputs[0].dims == (4,)
    for wrong, field in (
        ("backend: python", "inputs"),
        ("max_batchsize: 4", "max_batchsize"),
        ("inputs: [{name: x, dims: four}]", "inputs[0].dims"),
        ("backend: python\n" + TENSORS + "example: {inputs: {z: [1]}}", "example.inputs[z]"),
    ):
        entry_file.write_text(wrong)
        with pytest.raises(InvalidEntry) as caught:
            look("m", entry_file)
        assert caught.value.problems[0].field == field


STATED = (
    "max_batch_size: 8\ninputs: [{name: x, data_type: FP32, dims: DIMS}]\n"
    "outputs: [{name: y, data_type: FP32, dims: [1]}]\nexample: {inputs: {x: [[1, 2, 3, 4]]}}\n"
)


@pytest.mark.parametrize(("dims", "says"), [("[-1, 4]", "dims: [4]"), ("[1, 4]", "dims: [4]"), ("[2, 4]", "[[…]]")])
def test_dims_that_repeat_the_batch_are_guessed_from_the_example(make: Make, dims: str, says: str) -> None:
    with pytest.raises(InvalidEntry) as caught:
        build("m", make(model_py="pass", model_yaml=STATED.replace("DIMS", dims)))
    (problem,) = caught.value.problems
    assert problem.field == "example.inputs[x]"
    assert says in (problem.remedy or "")
    assert ("may repeat the batch dimension" in problem.what) == (says != "[[…]]")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os\ndef f(:\n  pass\n", "line 2"),
        (b"\0", "null bytes"),
        (b"x = '\xff'", "utf-8"),
        ("(" * 500, "too many nested"),
    ],
    ids=["syntax", "nul", "encoding", "deep"],
)
def test_code_that_is_none_is_refused(make: Make, code: bytes | str, says: str) -> None:
    with pytest.raises(InvalidEntry) as caught:
        build("m", make(model_py=code, model_yaml=STATED.replace("DIMS", "[4]")))
    (problem,) = caught.value.problems
    assert "model.py" in problem.what
    assert says in problem.what


def test_code_is_not_run(make: Make, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    build("m", make(model_py=code, model_yaml=STATED.replace("DIMS", "[4]")))
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.rglob("*.pyc"))


def test_what_can_not_be_read_must_be_stated(make: Make) -> None:
    with pytest.raises(InvalidEntry) as caught:
        build("m", make(model_py="pass"))
    assert [problem.field for problem in caught.value.problems] == ["inputs", "outputs"]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ""])
def test_hostile_names(make: Make, name: str) -> None:
    with pytest.raises(ControlPlaneError) as caught:
        build(name, make(model_onnx=onnx_bytes()))
    assert caught.value.field == "name"


def test_two_names(make: Make) -> None:
    folder = make(model_onnx=onnx_bytes(), model_yaml="name: a")
    assert build(None, folder).entry.name == "a"
    with pytest.raises(ControlPlaneError, match="'a'"):
        build("b", folder)


def test_links_out_of_the_folder_are_refused(make: Make, tmp_path: Path) -> None:
    folder = make(model_onnx=onnx_bytes())
    (tmp_path / "secret").write_text("s")
    (folder / "labels.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ControlPlaneError, match="out of"):
        build("m", folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no file or folder"):
        build("m", tmp_path / "gone.onnx")
    with pytest.raises(InvalidInput, match="no entry file"):
        build("m", entry_file=tmp_path / "gone.yaml")


def test_a_triton_repository_is_explained(make: Make) -> None:
    folder = make(model_onnx=onnx_bytes())
    (folder / "config.pbtxt").write_text('name: "m"')
    with pytest.raises(ControlPlaneError) as caught:
        build("m", folder)
    assert caught.value.field == "config"


def test_the_steps_of_an_ensemble_are_pinned(make: Make) -> None:
    steps = "ensemble: [{model_name: a, input_map: {x: x}, output_map: {y: y}}]\n"
    tensors = "inputs: [{name: x, data_type: FP32, dims: [1]}]\noutputs: [{name: y, data_type: FP32, dims: [1]}]\n"
    entry = build("m", make(model_yaml=steps + tensors)).entry
    assert (entry.backend, entry.ensemble[0].model_version) == ("ensemble", None)
    pinned: Entry = pin_steps(entry, lambda model: 3 if model == "a" else None)
    assert pinned.ensemble == (
        EnsembleStep(model_name="a", model_version=3, input_map={"x": "x"}, output_map={"y": "y"}),
    )
    with pytest.raises(NotFound, match="no version of a"):
        pin_steps(entry, lambda _: None)
