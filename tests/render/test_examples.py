"""The examples: real models, prepared as a user would, served by a real Triton, asked with real input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from controlplane.core.models import ArtifactFile, Manifest
from controlplane.entry.build import Built, build, pin_steps
from examples.drawing import image
from examples.file_types import features
from examples.models import prepare
from tests.render.builders import PYTHON_ONLY
from tests.render.server import Server


class Examples:
    """Prepares, builds, renders and loads examples, each one once."""

    def __init__(self, triton: Server, folder: Path) -> None:
        self.triton, self.folder = triton, folder
        self.loaded: dict[tuple[str, int], Manifest] = {}

    def load(self, example: str, version: int = 1) -> Manifest:
        built = build(None, prepare(example, self.folder))
        entry = pin_steps(built.entry, lambda model: 1 if (model, 1) in self.loaded else None)
        manifest, contents = stored(built)
        manifest = Manifest(entry=entry, files=manifest.files)
        key = (entry.name, version)
        if key not in self.loaded:
            self.loaded[key] = manifest
            together = {number: each for (name, number), each in self.loaded.items() if name == entry.name}
            self.files = getattr(self, "files", {}) | contents
            self.triton.serve(together, self.files, PYTHON_ONLY)
        return manifest

    def ask(self, model: str, tensors: Mapping[str, Any], version: int = 1, **more: Any) -> Any:
        inputs = []
        for name, value in tensors.items():
            kind = {"int32": "INT32", "int64": "INT64", "uint8": "UINT8", "float32": "FP32"}[str(value.dtype)]
            inputs.append(grpcclient.InferInput(name, list(value.shape), kind))
            inputs[-1].set_data_from_numpy(value)
        return self.triton.client.infer(model, inputs, model_version=str(version), client_timeout=60, **more)


def stored(built: Built) -> tuple[Manifest, dict[str, bytes]]:
    """What the registry would make of it."""
    data = {path: file.read_bytes() for path, file in built.files.items()}
    files = tuple(
        ArtifactFile(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for path, content in sorted(data.items())
    )
    return Manifest(entry=built.entry, files=files), {
        file.sha256: data[file.path] for file in files
    }  # fmt: skip


@pytest.fixture(scope="module")
def examples(triton: Server, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return Examples(triton, tmp_path_factory.mktemp("examples"))


def test_magika_tells_files_apart_in_both_versions(examples: Examples) -> None:
    examples.load("magika", 1)
    examples.load("magika-1.0.3", 2)
    files = {"python": Path(__file__).read_bytes(), "toml": Path("pyproject.toml").read_bytes()}
    for version in (1, 2):
        for label, content in files.items():
            output = grpcclient.InferRequestedOutput("target_label", class_count=1)
            answer = examples.ask("magika", {"bytes": features(content)[None]}, version, outputs=[output])
            score, _, best = answer.as_numpy("target_label")[0][0].decode().split(":")
            assert (best, float(score) > 0.5) == (label, True)


def test_silero_vad_keeps_the_state_of_each_sequence(examples: Examples) -> None:
    """Two sounds at once get the same answers as each by itself; what went before matters."""
    examples.load("silero-vad")
    noise = np.random.default_rng(7).normal(0, 0.3, (4, 1, 576)).astype(np.float32)
    tone = np.sin(np.arange(4 * 576, dtype=np.float32).reshape(4, 1, 576) * 0.07).astype(np.float32)
    sounds = {1: noise, 2: tone}
    rate = np.array([16000], np.int64)

    def listen(order: list[tuple[int, int]]) -> dict[int, list[float]]:
        heard: dict[int, list[float]] = {}
        for sound, step in order:
            answer = examples.ask(
                "silero-vad",
                {"input": sounds[sound][step], "sr": rate},
                sequence_id=sound,
                sequence_start=step == 0,
                sequence_end=step == 3,
            )
            heard.setdefault(sound, []).append(round(float(answer.as_numpy("output")[0, 0]), 5))
        return heard

    alone = listen([(1, step) for step in range(4)]) | listen([(2, step) for step in range(4)])
    together = listen([(sound, step) for step in range(4) for sound in (1, 2)])
    assert together == alone
    again = listen([(1, 0), (1, 3)])
    assert again[1][0] == alone[1][0]
    assert again[1][1] != alone[1][3]


def test_an_ensemble_reads_a_line_of_text(examples: Examples) -> None:
    for step in ("ocr-line-image", "ocr-recognition", "ocr-line-text", "ocr-line"):
        examples.load(step)
    answer = examples.ask("ocr-line", {"image": image("HELLO 12")[None]})
    assert answer.as_numpy("text").tolist() == [[b"HELLO 12"]]


def test_the_detector_sees_where_the_text_is(examples: Examples) -> None:
    examples.load("ocr-detection")
    picture = np.full((96, 352, 3), 255, np.uint8)
    line = image("HELLO", scale=4)[::1, ::1]
    picture[: line.shape[0], : line.shape[1]] = line
    x = (picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
    answer = examples.ask("ocr-detection", {"x": np.ascontiguousarray(x)}).as_numpy("fetch_name_0")
    assert answer.shape == (1, 1, 96, 352)
    assert answer[0, 0, :52, :160].max() > 0.6
    assert answer[0, 0, :, 200:].max() < 0.3


def test_the_angle_of_a_line(examples: Examples) -> None:
    examples.load("ocr-angle")
    line = image("HELLO", scale=4)[2:50, :152].astype(np.float32) / 127.5 - 1
    upright = np.ones((3, 48, 192), np.float32)
    upright[:, :, :152] = line.transpose(2, 0, 1)
    both = np.stack([upright, np.ascontiguousarray(upright[:, ::-1, ::-1])])
    answer = examples.ask("ocr-angle", {"x": both}).as_numpy("save_infer_model/scale_0.tmp_1")
    assert answer.shape == (2, 2)
    assert np.allclose(answer.sum(axis=1), 1, atol=1e-3)


def test_single_replica_takes_one_file_at_a_time(triton: Server, tmp_path: Path) -> None:
    built = build("magika-alone", prepare_named(tmp_path))
    manifest, contents = stored(built)
    triton.serve({1: manifest}, contents, PYTHON_ONLY)
    assert (built.entry.max_batch_size, built.entry.serving.load) == (0, "always")
    tensor = grpcclient.InferInput("bytes", [1, 2048], "INT32")
    tensor.set_data_from_numpy(features(Path(__file__).read_bytes())[None])
    answer = triton.client.infer("magika-alone", [tensor], model_version="1", client_timeout=30)
    assert answer.as_numpy("target_label").shape == (1, 214)


def prepare_named(into: Path) -> Path:
    """The example under another name, since this server has a magika already."""
    folder = prepare("single-replica", into)
    file = folder / "model.yaml"
    file.write_text(file.read_text().replace("name: magika", "name: magika-alone"))
    return folder
