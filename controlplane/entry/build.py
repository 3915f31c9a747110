"""From what a person gives (a name, a file or folder, an entry file) to an entry and its files.

What a person states wins over what is read from the file; where the two contradict each other, nothing is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from controlplane.core.entry import Entry
from controlplane.core.errors import InvalidEntry, InvalidInput, NotFound
from controlplane.entry.document import EMPTY, Document, read_document
from controlplane.entry.example import example_problems
from controlplane.entry.from_onnx import with_onnx
from controlplane.entry.onnx_file import read_onnx
from controlplane.entry.parse import check_name, check_stated, to_entry
from controlplane.entry.python_files import check_python
from controlplane.entry.wording import normal
from controlplane.registry.artifact import collect

ENTRY_FILE = "model.yaml"
"""The entry file of a folder, if no other is given. It is no part of the artifact."""

MODEL_FILES = {
    "onnxruntime": "model.onnx", "tensorrt": "model.plan", "pytorch": "model.pt", "openvino": "model.xml",
    "python": "model.py",
}  # fmt: skip
"""The file by which a backend is recognised, and under which it looks for a model."""

_SUFFIXES = {
    ".onnx": "onnxruntime", ".plan": "tensorrt", ".engine": "tensorrt", ".pt": "pytorch", ".pth": "pytorch",
    ".jit": "pytorch", ".torchscript": "pytorch", ".xml": "openvino", ".py": "python",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An entry ready to be registered. `files` are where they lie now, by their path inside the version.

    `facts` are sentences about what was found in the files or taken as a default, for the person who registers.
    """

    entry: Entry
    files: Mapping[str, Path] = field(default_factory=dict)
    facts: tuple[str, ...] = ()


def build(
    name: str | None,
    path: Path | None = None,
    entry_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Built:
    """The entry and the files that a registration is made of.

    `path` is a model's file, or a folder that becomes the version directory; `entry_file` a YAML or JSON file (without
    it: the folder's own `model.yaml`); `overrides` are top-level fields that replace the entry file's. Raises
    InvalidInput or InvalidEntry for a missing file and for what can't be understood or contradicts itself.
    """
    files = _files(path)
    document, entry_path = _document(path, files, entry_file)
    if entry_path is not None:
        files = {relative: file for relative, file in files.items() if file.resolve() != entry_path.resolve()}
    stated = normal({**document.data, **(overrides or {})})
    facts: list[str] = []
    _name(stated, name, document)
    check_stated(dataclasses.replace(document, data=stated))
    files = _backend(stated, files, facts, single=path is not None and path.is_file())
    if stated.get("backend") == "onnxruntime":
        model = files.get(str(stated.get("default_model_filename") or MODEL_FILES["onnxruntime"]))
        if model is not None:
            read = read_onnx(model)
            _external(read.external, files)
            stated = with_onnx(stated, read, facts, document)
    else:
        if stated.get("backend") == "python":
            code = str(stated.get("default_model_filename") or MODEL_FILES["python"])
            if code in files:
                check_python(code, files[code])
        _needs_tensors(stated, document)
    entry = to_entry(dataclasses.replace(document, data=stated))
    if problems := tuple(example_problems(entry)):
        raise InvalidEntry(document.source, problems)
    return Built(entry=entry, files=files, facts=tuple(facts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What can be said of an entry file alone. `entry` None: the rest has to be read from the model's file.

    `unchecked` are sentences about what was not checked.
    """

    stated: Mapping[str, Any]
    entry: Entry | None
    unchecked: tuple[str, ...]


def look(name: str | None, entry_file: Path) -> Look:
    """Check an entry file without the model's files, as far as that goes. Raises like `build`."""
    document, _ = _document(None, {}, entry_file)
    stated = normal(document.data)
    _name(stated, name, document)
    if stated.get("ensemble"):
        stated.setdefault("backend", "ensemble")
    document = dataclasses.replace(document, data=stated)
    check_stated(document)
    if stated.get("backend") not in (None, "onnxruntime"):
        _needs_tensors(stated, document)
    unchecked = ["without the model's files, the entry was not compared with them, nor rendered for a fleet"]
    try:
        entry = to_entry(document)
    except InvalidEntry as error:
        absent = ", ".join(str(problem.field) for problem in error.problems)
        return Look(stated=stated, entry=None, unchecked=(*unchecked, f"still to come from the file: {absent}"))
    if entry.backend == "onnxruntime" and "max_batch_size" not in stated:
        unchecked.append("the file decides on batching, so the example was not checked")
    elif problems := tuple(example_problems(entry)):
        raise InvalidEntry(document.source, problems)
    return Look(stated=stated, entry=entry, unchecked=tuple(unchecked))


def beside(entry_file: Path) -> Path | None:
    """The folder of an entry file, when a model's file lies in it too."""
    folder = entry_file.parent
    try:
        suffixes = {each.suffix for each in folder.iterdir() if each.is_file()}
    except OSError:
        return None
    return folder if suffixes & set(_SUFFIXES) else None


def pin_steps(entry: Entry, choose: Callable[[str], int | None]) -> Entry:
    """`entry` with each ensemble step that names no version pinned to the one that `choose` takes of its model.

    Raises NotFound where there is none to take.
    """
    pinned = []
    for index, step in enumerate(entry.ensemble):
        version = step.model_version if step.model_version is not None else choose(step.model_name)
        if version is None:
            raise NotFound(
                f"there is no version of {step.model_name}",
                field=f"ensemble[{index}].model_name",
                remedy="register the ensemble's steps first",
            )
        pinned.append(dataclasses.replace(step, model_version=version))
    return dataclasses.replace(entry, ensemble=tuple(pinned))


def _files(path: Path | None) -> dict[str, Path]:
    if path is None:
        return {}
    if not path.exists():
        raise InvalidInput(f"there is no file or folder {path}", remedy="give the path of the model's file or folder")
    return collect(path)


def _document(path: Path | None, files: Mapping[str, Path], entry_file: Path | None) -> tuple[Document, Path | None]:
    chosen = entry_file
    if chosen is None and path is not None and path.is_dir():
        chosen = files.get(ENTRY_FILE)
    if chosen is None:
        return EMPTY, None
    try:
        return read_document(chosen.read_bytes(), chosen.name), chosen
    except FileNotFoundError as error:
        raise InvalidInput(f"there is no entry file {chosen}", remedy="name an existing file") from error
    except OSError as error:
        raise InvalidInput(f"{chosen} can't be read: {error.strerror}") from error


def _name(stated: dict[str, Any], name: str | None, document: Document) -> None:
    if name is None:
        if "name" not in stated:
            raise InvalidInput("the model has no name", field="name", remedy="give one, or state `name` in the entry")
        return
    check_name(name)
    if stated.setdefault("name", name) != name:
        raise InvalidInput(
            f"{document.source} says {stated['name']!r}, and the command says {name!r}",
            field="name",
            remedy="leave `name` out of the entry file, or use the same",
        )


def _backend(stated: dict[str, Any], files: dict[str, Path], facts: list[str], *, single: bool) -> dict[str, Path]:
    """State backend and model file where the files tell them; a single file gets its backend's usual name."""
    if stated.get("backend") is None:
        if stated.get("ensemble"):
            stated["backend"] = "ensemble"
            return files
        found = [backend for backend, file in MODEL_FILES.items() if file in files]
        if not found:
            found = sorted(
                {_SUFFIXES[s] for p in files if "/" not in p and (s := PurePosixPath(p).suffix) in _SUFFIXES}
            )
        if len(found) != 1:
            there = ", ".join(sorted(files)[:10]) or "no files"
            raise InvalidInput(
                f"the backend can't be told from the files ({there})",
                field="backend",
                remedy=f"state `backend`, or name the model's file as it does: {', '.join(MODEL_FILES.values())}",
            )
        stated["backend"] = found[0]
        facts.append(f"backend {found[0]}, from the name of the file")
    backend = stated["backend"]
    if "config.pbtxt" in files:
        raise InvalidInput(
            "config.pbtxt is written by the control plane, and there is one among the files",
            field="config",
            remedy="state what it says in model.yaml (or as its `config`), and give the version's own folder",
        )
    usual = MODEL_FILES.get(backend)
    if usual is None or usual in files or stated.get("default_model_filename"):
        return files
    candidates = [p for p in files if "/" not in p and _SUFFIXES.get(PurePosixPath(p).suffix) == backend]
    if single and len(files) == 1 and (candidates or backend == "onnxruntime"):
        return {usual: next(iter(files.values()))}
    if len(candidates) == 1:
        stated["default_model_filename"] = candidates[0]
        facts.append(f"model file {candidates[0]}")
        return files
    raise InvalidInput(
        f"there is no {usual} among the files ({', '.join(sorted(files)[:10]) or 'none'})",
        field="default_model_filename",
        remedy=f"name the file that {backend} shall open, or give the model's file or folder",
    )


def _external(locations: tuple[str, ...], files: Mapping[str, Path]) -> None:
    missing = [location for location in locations if location not in files]
    if missing:
        raise InvalidInput(
            f"the model keeps weights in files that are not there: {', '.join(missing)}",
            remedy="register the folder with the model and these files, not the one file",
        )


def _needs_tensors(stated: Mapping[str, Any], document: Document) -> None:
    problems = tuple(
        InvalidInput(
            f"is missing, and can't be read from a model of the {stated.get('backend')} backend",
            field=side,
            remedy="list name, data_type and dims of each",
        )
        for side in ("inputs", "outputs")
        if not stated.get(side)
    )
    if problems:
        raise InvalidEntry(document.source, problems)
