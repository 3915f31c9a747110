"""The Jinja2 environment in which config.pbtxt is written: nothing gets into the text unless it says how.

Every `{{ … }}` must yield a number, a truth value or a `Token` made by one of the filters below; a plain string is an
error. So a template can't forget to quote what a person wrote.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable
from importlib import resources

from google.protobuf.text_encoding import CEscape
from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

import model_repo_templates
from controlplane.core.entry import StateTensor

_WORD = re.compile(r"[A-Z][A-Z0-9_]*")


class Token(str):
    """Text that is safe in a protobuf text file as it stands."""

    __slots__ = ()


def quote(text: str) -> Token:
    """`text` as a string literal of protobuf's text format."""
    escaped = CEscape(text, as_utf8=True)  # type: ignore[arg-type]  # the stubs know its bytes form only
    return Token(f'"{escaped}"')


def word(text: str) -> Token:
    """The name of an enumeration's value."""
    if _WORD.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not the name of an enumeration's value")
    return Token(text)


def data_type(text: str) -> Token:
    """Triton's configuration name of a data type: BYTES, as the protocol says, is TYPE_STRING there."""
    return word("TYPE_STRING" if text == "BYTES" else f"TYPE_{text}")


def numbers(values: Iterable[float]) -> Token:
    """A list of numbers."""
    return Token("[" + ", ".join(_finalize(value) for value in values) + "]")


def state_json(state: StateTensor) -> str:
    """What serve_onnx.py must know of a state."""
    return json.dumps(
        {"output_name": state.output_name, "data_type": f"TYPE_{state.data_type}", "dims": list(state.dims)},
        sort_keys=True,
    )


def _finalize(value: object) -> str:
    match value:
        case Token():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return repr(value)
    raise TypeError(f"{type(value).__name__} can't stand in a configuration unquoted")


def source(path: str) -> str:
    """The text of a template or of a file that goes into a model directory unchanged."""
    return resources.files(model_repo_templates).joinpath(path).read_text(encoding="utf-8")


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """The one environment; templates are named by their path, such as `onnxruntime/config.pbtxt.j2`."""
    made = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(source),
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # not HTML; _finalize refuses whatever is not quoted
    )
    filters: dict[str, Callable[..., str]] = {
        "quote": quote, "word": word, "data_type": data_type, "numbers": numbers, "state_json": state_json,
    }  # fmt: skip
    made.filters.update(filters)
    return made
