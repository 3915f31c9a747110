"""Which versions of a model may share a server, and what then holds for all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from controlplane.core.entry import DynamicBatching, Entry, InstanceGroup, SequenceBatching, Tensor, Warmup, WarmupInput
from controlplane.core.errors import InvalidEntry
from controlplane.render.render import render_model
from controlplane.render.sharing import COMBINED, FROM_THE_HIGHEST, MUST_AGREE, PER_VERSION, combined, compatible
from tests.render.builders import PYTHON_ONLY, X, Y, entry, manifest

CLASHES: dict[str, dict[str, Any]] = {
    "backend": {"backend": "onnxruntime"},
    "inputs": {"inputs": (dataclasses.replace(X, dims=(5,)),)},
    "outputs": {"outputs": (dataclasses.replace(Y, data_type="FP64"),)},
    "sequence": {"sequence_batching": SequenceBatching()},
    "decoupled": {"decoupled": True},
    "parameters": {"parameters": {"a": "b"}},
    "config": {"config": "optimization { }"},
    "no-batching": {"max_batch_size": 0},
}
HARMLESS: dict[str, dict[str, Any]] = {
    "batch-size": {"max_batch_size": 2},
    "delay": {"dynamic_batching": DynamicBatching(max_queue_delay_us=5)},
    "instances": {"instances": (InstanceGroup(kind="CPU", count=2),)},
    "cache": {"response_cache": True},
    "labels": {"labels": {"a": "b"}},
    "warm-up": {"warmup": (Warmup(name="w", inputs={"x": WarmupInput(data_type="FP32", dims=(4,))}),)},
}
BASE: dict[str, Any] = {"max_batch_size": 8}


@pytest.mark.parametrize("case", CLASHES)
def test_versions_that_mean_different_things_keep_apart(case: str) -> None:
    a, b = manifest(entry(**BASE)), manifest(entry(**BASE | CLASHES[case]))
    assert compatible(a, b)
    assert compatible(a, b) == compatible(b, a)
    with pytest.raises(InvalidEntry):
        render_model({1: a, 2: b}, PYTHON_ONLY)


@pytest.mark.parametrize("case", HARMLESS)
def test_versions_that_differ_in_how_they_are_run_share(case: str) -> None:
    a, b = manifest(entry(**BASE)), manifest(entry(**BASE | HARMLESS[case]))
    assert compatible(a, b) is None
    assert compatible(b, a) is None
    assert render_model({1: a, 2: b}, PYTHON_ONLY).versions == (1, 2)
    assert render_model({1: b, 2: a}, PYTHON_ONLY).versions == (1, 2)


def test_different_label_files_of_one_name_keep_apart() -> None:
    labelled = entry(outputs=(Tensor(name="y", data_type="FP32", dims=(4,), label_filename="l.txt"),))
    a, b = (manifest(labelled, {"model.py": b"m", "l.txt": labels}) for labels in (b"a", b"b"))
    assert "l.txt" in str(compatible(a, b))
    assert compatible(a, a) is None


def test_the_smallest_batch_holds_for_all_so_that_no_warm_up_exceeds_it() -> None:
    old = manifest(entry(max_batch_size=2, response_cache=True))
    new = manifest(
        entry(
            max_batch_size=8,
            dynamic_batching=DynamicBatching(preferred_batch_size=(2, 8)),
            warmup=(Warmup(name="w", batch_size=8, inputs={"x": WarmupInput(data_type="FP32", dims=(4,))}),),
        )
    )
    both = combined({1: old, 2: new})
    assert both.max_batch_size == 2
    assert both.dynamic_batching == DynamicBatching(preferred_batch_size=(2,))
    assert both.warmup[0].batch_size == 2
    assert not both.response_cache


def test_every_field_of_an_entry_has_its_rule() -> None:
    rules = [*MUST_AGREE, *FROM_THE_HIGHEST, *PER_VERSION, *COMBINED]
    assert sorted(rules) == sorted(field.name for field in dataclasses.fields(Entry))
