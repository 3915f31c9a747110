"""What rendering yields: a model directory, described but not yet written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.core.models import ArtifactFile

CONFIG = "config.pbtxt"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedModel:
    """The model directory `name` of a repository, with some of the model's versions in it.

    `config_text` is the text of config.pbtxt. `files` maps a path inside the directory (such as `3/model.onnx` or
    `labels.txt`) to the artifact's file or to literal text. `directories` are the version directories, which must be
    there even where they are empty (an ensemble's). `notes` are sentences for people about how it is served.
    """

    name: str
    versions: tuple[int, ...]
    config_text: str
    files: Mapping[str, ArtifactFile | str]
    directories: tuple[str, ...]
    notes: tuple[str, ...] = ()
