"""Whatever a person writes stays inside its quotes."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import UndefinedError
from tritonclient.grpc import model_config_pb2

from controlplane.core.entry import Accelerator, InstanceGroup, Optimization, Tensor
from controlplane.render.render import render, render_model
from controlplane.render.templates import environment, quote
from tests.render.builders import NVIDIA, PYTHON_ONLY, entry, manifest

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NASTY = [
    '"',
    "\\",
    '" } backend: "evil',
    "a\nplatform: 1",
    "\x00",
    "{{ 7 * 7 }}",
    "{% include 'x' %}",
    "é—😀",
    "'",
    "#",
]


@given(TEXT)
def test_a_quoted_text_reads_back_as_it_was(text: str) -> None:
    parsed = text_format.Parse(f"name: {quote(text)}", model_config_pb2.ModelConfig())
    assert (parsed.name, len(parsed.ListFields())) == (text, 1 if text else 0)


@given(key=TEXT, value=TEXT)
def test_parameters_reach_the_configuration_unchanged(key: str, value: str) -> None:
    rendered = render(manifest(entry(parameters={key: value}, metric_tags={value: key})), 1, PYTHON_ONLY)
    config = text_format.Parse(rendered.config_text, model_config_pb2.ModelConfig())
    assert {name: item.string_value for name, item in config.parameters.items()} == {key: value}
    assert dict(config.metric_tags) == {value: key}
    assert config.backend == "python"


@pytest.mark.parametrize("text", NASTY)
def test_no_text_adds_a_field_anywhere(text: str) -> None:
    """The same fields are set, whatever the words in them say."""

    def fields(word: str) -> object:
        file = word if word.isprintable() and "\\" not in word else "labels.txt"  # no others can be registered
        of = entry(
            backend="onnxruntime",
            outputs=(Tensor(name="y", data_type="FP32", dims=(4,), label_filename=file),),
            instances=(InstanceGroup(kind="CPU", name=word, host_policy=word, profile=(word,)),),
            optimization=Optimization(gpu_accelerators=(Accelerator(name="tensorrt", parameters={word: word}),)),
            parameters={word: word},
        )
        rendered = render(manifest(of, {"model.onnx": b"x", file: b"l"}), 1, NVIDIA)
        config = text_format.Parse(rendered.config_text, model_config_pb2.ModelConfig())
        return _shape(config)

    assert fields(text) == fields("plain")


def _shape(message: object) -> object:
    return sorted(
        (field.name, len(value) if field.is_repeated else 1)
        for field, value in message.ListFields()  # type: ignore[attr-defined]
    )


def test_a_template_that_forgets_to_quote_is_an_error() -> None:
    with pytest.raises(TypeError):
        environment().from_string("name: {{ name }}").render(name='"x"')
    with pytest.raises(UndefinedError):
        environment().from_string("name: {{ nothing | quote }}").render()


@given(
    st.permutations(["a", "b", "c"]),
    st.dictionaries(TEXT, TEXT, max_size=5),
)
def test_the_same_entry_gives_the_same_bytes(order: list[str], parameters: dict[str, str]) -> None:
    one = entry(parameters=parameters, metric_tags=dict.fromkeys(order, "x"))
    other = entry(parameters=dict(reversed(parameters.items())), metric_tags=dict.fromkeys(sorted(order), "x"))
    assert render(manifest(one), 1, PYTHON_ONLY) == render(manifest(other), 1, PYTHON_ONLY)
    both = {1: manifest(one), 2: manifest(other)}
    assert render_model(both, PYTHON_ONLY) == render_model(dict(reversed(both.items())), PYTHON_ONLY)
