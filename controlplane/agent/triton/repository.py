"""The model directories that Triton reads, written so that no half of anything is ever seen.

A version directory is built beside and renamed into place, and never changed after that; `config.pbtxt` is replaced by
rename, last. Triton loads a version again when the time of change of one of its files moves, and a new hard link moves
it. So a blob is linked into one version only; a second version that has the same file gets a copy.
"""

from __future__ import annotations

import filecmp
import shutil
import threading
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from controlplane.agent.server import BlobPath
from controlplane.core.errors import InvalidInput
from controlplane.core.models import ArtifactFile
from controlplane.render.rendered import CONFIG, RenderedModel

NO_BYTECODE = "__pycache__"
"""As an empty *file*, it keeps Python from writing bytecode there, which would make the next load a full reload."""


class ModelRepository:
    """The repository at `root`; `staging` is a folder of the same file system, outside of it."""

    def __init__(self, root: Path, staging: Path) -> None:
        self._root = root
        self._staging = staging
        self._linking = threading.Lock()

    def clear(self) -> None:
        """Remove everything: for a server that holds nothing yet."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self._root.mkdir(parents=True, exist_ok=True)  # itself it stays: a server may be starting on it
        for each in self._root.iterdir():
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink()

    def models(self) -> frozenset[str]:
        """The models that have a directory."""
        return frozenset(each.name for each in self._root.iterdir()) if self._root.is_dir() else frozenset()

    def versions(self, model: str) -> frozenset[int]:
        """The versions that a model's directory holds."""
        folder = self._root / model
        if not folder.is_dir():
            return frozenset()
        return frozenset(int(each.name) for each in folder.iterdir() if each.is_dir() and each.name.isdecimal())

    def config_text(self, model: str) -> str:
        """The text of a model's config.pbtxt; empty where there is none."""
        file = self._root / model / CONFIG
        return file.read_text() if file.is_file() else ""

    def place(self, rendered: RenderedModel, blobs: BlobPath, loaded: Collection[int] = ()) -> None:
        """Put what `rendered` says in place. Directories of `loaded` versions stay as they are, and so do those that
        `rendered` doesn't have; any other that is there already is compared, and built again unless it is the same.
        Raises OSError; then the configuration is still the old one."""
        folder = self._root / rendered.name
        folder.mkdir(parents=True, exist_ok=True)
        present = self.versions(rendered.name)
        for number in present.intersection(map(int, rendered.directories)).difference(loaded):
            if not _is_same(folder / str(number), _inside(rendered, str(number)), blobs):
                self.remove(rendered.name, number)
                present -= {number}
        staging = self._fresh_staging(rendered.name)
        for directory in rendered.directories:
            if int(directory) not in present:
                built = staging / directory
                built.mkdir()
                for path, content in _inside(rendered, directory).items():
                    self._write(built, path, content, blobs)
                _forbid_bytecode(built)
                built.rename(folder / directory)
        for path, content in rendered.files.items():
            if path.split("/", 1)[0] in rendered.directories:
                continue
            self._write(staging, path, content, blobs)
            target = folder / _relative(path)
            # Triton loads all versions again when one of these changes, so an equal one is left alone.
            if not target.is_file() or not filecmp.cmp(staging / path, target, shallow=False):
                target.parent.mkdir(parents=True, exist_ok=True)
                (staging / path).replace(target)
        (staging / CONFIG).write_text(rendered.config_text)
        (staging / CONFIG).replace(folder / CONFIG)
        shutil.rmtree(staging)

    def remove(self, model: str, version: int | None = None) -> None:
        """Remove one version, or the whole model."""
        target = self._root / model if version is None else self._root / model / str(version)
        if target.exists():
            out = self._fresh_staging(model)
            target.rename(out / "removed")
            shutil.rmtree(out)

    def _fresh_staging(self, model: str) -> Path:
        folder = self._staging / model
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _write(self, folder: Path, path: str, content: ArtifactFile | str, blobs: BlobPath) -> None:
        target = folder / _relative(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content)
            return
        blob = blobs(content.sha256)
        with self._linking:
            linked = blob.stat().st_nlink > 1
            if not linked:
                target.hardlink_to(blob)
        if linked:
            shutil.copyfile(blob, target)


def _inside(rendered: RenderedModel, directory: str) -> dict[str, ArtifactFile | str]:
    """The files of one version, by their paths inside its directory."""
    prefix = f"{directory}/"
    return {path.removeprefix(prefix): each for path, each in rendered.files.items() if path.startswith(prefix)}


def _is_same(folder: Path, files: Mapping[str, ArtifactFile | str], blobs: BlobPath) -> bool:
    """Whether a version directory holds these files and no others, byte by byte."""
    present = {str(each.relative_to(folder)) for each in folder.rglob("*") if not each.is_dir()}
    if {path for path in present if PurePosixPath(path).name != NO_BYTECODE} != set(files):
        return False
    for path, content in files.items():
        file = folder / path
        if file.is_symlink():
            return False
        if isinstance(content, str):
            if file.read_bytes() != content.encode():
                return False
        elif not (file.samefile(blobs(content.sha256)) or filecmp.cmp(file, blobs(content.sha256), shallow=False)):
            return False
    return True


def _relative(path: str) -> PurePosixPath:
    """A path inside the directory. What a registry holds has been checked; this is the last look before the disk."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise InvalidInput(f"{path!r} leads out of the model's directory", remedy="register the version again")
    return relative


def _forbid_bytecode(folder: Path) -> None:
    for parent in {source.parent for source in folder.rglob("*.py")}:
        if parent.name != NO_BYTECODE and not (parent / NO_BYTECODE).exists():
            (parent / NO_BYTECODE).touch()
