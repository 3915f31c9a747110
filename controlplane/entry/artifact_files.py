"""Which files a path stands for: one file, or all files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from controlplane.core.errors import InvalidInput, NotFound

MAX_FILES = 10_000
LEFT_OUT = frozenset({"__pycache__", ".git", ".DS_Store", ".ipynb_checkpoints"})
"""Names that are no part of a model."""


def walk(path: Path) -> Mapping[str, Path]:
    """The files of a folder by their relative paths with forward slashes, in order.

    Raises NotFound where there is nothing, InvalidInput for links that lead out of the folder, for what is neither file
    nor folder, for names that can't be stored, and for more than MAX_FILES.
    """
    if not path.exists():
        raise NotFound(f"there is no file or folder {path}")
    root = path.resolve()
    found: dict[str, Path] = {}
    for relative in _walk(root, root, ""):
        if len(found) == MAX_FILES:
            raise InvalidInput(f"{path} holds more than {MAX_FILES} files", remedy="give the model's own folder")
        found[relative] = root / relative
    return dict(sorted(found.items()))


def _walk(root: Path, folder: Path, prefix: str) -> Iterator[str]:
    for item in sorted(os.scandir(folder), key=lambda each: each.name):
        if item.name in LEFT_OUT:
            continue
        relative = f"{prefix}{item.name}"
        if "\\" in item.name or not item.name.isprintable():
            raise InvalidInput(f"{relative!r} can't be stored under that name", remedy="rename it")
        if item.is_symlink():
            try:
                target = Path(item.path).resolve(strict=True)
            except (OSError, RuntimeError) as error:
                raise InvalidInput(f"{relative} is a link to nothing", remedy="remove it") from error
            if not target.is_relative_to(root):
                raise InvalidInput(
                    f"{relative} is a link out of the artifact, to {target}", remedy="put the file itself there"
                )
            if target.is_dir():
                raise InvalidInput(f"{relative} is a link to a folder", remedy="put the folder itself there")
        if item.is_dir():
            yield from _walk(root, Path(item.path), f"{relative}/")
        elif item.is_file():
            yield relative
        else:
            raise InvalidInput(f"{relative} is neither a file nor a folder", remedy="remove it")
