"""The model directory: whole or not there, and nothing in it changes that need not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from controlplane.agent.triton.repository import ModelRepository
from controlplane.core.errors import InvalidInput
from controlplane.core.models import ArtifactFile
from controlplane.render.rendered import RenderedModel


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    (tmp_path / "blobs").mkdir()
    made = ModelRepository(tmp_path / "models", tmp_path / "staging")
    made.clear()
    return made


def blob(tmp_path: Path, content: str) -> ArtifactFile:
    digest = hashlib.sha256(content.encode()).hexdigest()
    path = tmp_path / "blobs" / digest
    if not path.exists():
        path.write_text(content)
    return ArtifactFile(path="", sha256=digest, size_bytes=len(content))


def rendered(*versions: int, config: str = "config", **files: ArtifactFile | str) -> RenderedModel:
    return RenderedModel(
        name="m",
        versions=versions,
        config_text=config,
        files={path.replace("__", "/").replace("V", ""): content for path, content in files.items()},
        directories=tuple(map(str, versions)),
    )


def changed_at(folder: Path) -> dict[str, tuple[int, int]]:
    """What Triton looks at: the times of modification and change of each file."""
    return {
        str(each.relative_to(folder)): (each.stat().st_mtime_ns, each.stat().st_ctime_ns)
        for each in folder.rglob("*")
        if each.is_file()
    }


def test_a_version_joins_and_leaves_without_a_change_to_the_other(tmp_path: Path, repository: ModelRepository) -> None:
    code, one, two = blob(tmp_path, "code"), blob(tmp_path, "1"), blob(tmp_path, "2")
    labels = blob(tmp_path, "a\nb")
    blobs = (tmp_path / "blobs").joinpath
    repository.place(rendered(1, labels=labels, V1__code=code, V1__sub__weights=one), blobs)
    model = tmp_path / "models" / "m"
    before = {path: at for path, at in changed_at(model).items() if path != "config.pbtxt"}
    both = {"V1__code": code, "V1__sub__weights": one, "V2__code": code, "V2__sub__weights": two, "labels": labels}
    repository.place(rendered(1, 2, config="both", **both), blobs)
    assert {path: at for path, at in changed_at(model).items() if path in before} == before
    assert (model / "2" / "code").read_text() == "code"
    assert (model / "2" / "sub" / "weights").read_text() == "2"
    assert (model / "config.pbtxt").read_text() == "both"
    repository.remove("m", 2)
    assert repository.versions("m") == {1}
    assert {path: at for path, at in changed_at(model).items() if path in before} == before
    repository.remove("m")
    assert repository.models() == frozenset()


def test_a_large_file_is_linked_and_not_copied(tmp_path: Path, repository: ModelRepository) -> None:
    weights = blob(tmp_path, "weights")
    repository.place(rendered(1, V1__weights=weights), (tmp_path / "blobs").joinpath)
    assert (tmp_path / "models/m/1/weights").samefile(tmp_path / "blobs" / weights.sha256)


@pytest.mark.parametrize(
    "there",
    [
        pytest.param({"V1__code": "other"}, id="another text"),
        pytest.param({"V1__code": "text"}, id="a file too few"),
        pytest.param({"V1__code": "text", "V1__weights": "weights", "V1__more": ""}, id="a file too many"),
        pytest.param({"V1__code": "text", "V1__weights": "WEIGHTS"}, id="other bytes"),
    ],
)
def test_a_directory_that_holds_something_else_is_built_again(
    tmp_path: Path, repository: ModelRepository, there: dict[str, str]
) -> None:
    """What a crash or an earlier version of this number left behind is never loaded."""
    right = rendered(1, V1__code="text", V1__weights=blob(tmp_path, "weights"))
    blobs, version = (tmp_path / "blobs").joinpath, tmp_path / "models/m/1"
    repository.place(rendered(1, **there), blobs)
    before = changed_at(version)
    repository.place(right, blobs, loaded=(1,))
    assert changed_at(version) == before, "a loaded version is left alone"
    repository.place(right, blobs)
    assert {each.name: each.read_text() for each in version.iterdir()} == {"code": "text", "weights": "weights"}
    before = changed_at(version)
    repository.place(right, blobs)
    assert changed_at(version) == before


def test_an_empty_version_directory_is_made(tmp_path: Path, repository: ModelRepository) -> None:
    repository.place(rendered(3), (tmp_path / "blobs").joinpath)
    assert (tmp_path / "models/m/3").is_dir()


def test_nothing_half_is_seen_when_a_blob_is_missing(tmp_path: Path, repository: ModelRepository) -> None:
    repository.place(rendered(1, V1__code="text"), (tmp_path / "blobs").joinpath)
    missing = ArtifactFile(path="", sha256="0" * 64, size_bytes=1)
    with pytest.raises(FileNotFoundError):
        repository.place(rendered(1, 2, config="new", V2__a="a", V2__b=missing), (tmp_path / "blobs").joinpath)
    assert repository.versions("m") == {1}
    assert (tmp_path / "models/m/config.pbtxt").read_text() == "config"


def test_python_can_write_no_bytecode_beside_the_code(tmp_path: Path, repository: ModelRepository) -> None:
    code = {"V1__model.py": "", "V1__package__code.py": "", "V1__data__file": ""}
    repository.place(rendered(1, **code), (tmp_path / "blobs").joinpath)
    version = tmp_path / "models/m/1"
    found = {str(each.parent.relative_to(version)) for each in version.rglob("__pycache__") if each.is_file()}
    assert found == {".", "package"}


@pytest.mark.parametrize("path", ["../outside", "1/../../outside", "/outside"])
def test_no_path_leads_out(tmp_path: Path, repository: ModelRepository, path: str) -> None:
    bad = RenderedModel(name="m", versions=(1,), config_text="", files={path: "x"}, directories=("1",))
    with pytest.raises(InvalidInput):
        repository.place(bad, (tmp_path / "blobs").joinpath)
    assert not any("outside" in each for _, _, names in os.walk(tmp_path) for each in names)
