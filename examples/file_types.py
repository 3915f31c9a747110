"""What the file-type classifier takes and gives: the features of a file, and the label of a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES = 2048
"""Integers per file: 1024 from its beginning, 1024 from its end."""

_HALF, _BLOCK, _PADDING = 1024, 4096, 256


def features(content: bytes) -> NDArray[np.int32]:
    """The classifier's input for one file, int32 of shape [2048].

    As the magika package defines it: the first and the last block of 4096 bytes, white space stripped at the outer end,
    1024 bytes of each as integers, 256 where there are no more.
    """
    first, last = content[:_BLOCK].lstrip()[:_HALF], content[-_BLOCK:].rstrip()[-_HALF:]
    made = np.full(FEATURES, _PADDING, dtype=np.int32)
    made[: len(first)] = np.frombuffer(first, dtype=np.uint8)
    made[FEATURES - len(last) :] = np.frombuffer(last, dtype=np.uint8)
    return made


def labels_of(file: Path) -> list[str]:
    """The labels in the order of the classifier's scores."""
    return file.read_text(encoding="utf-8").splitlines()


def best(scores: NDArray[Any], labels: list[str]) -> tuple[str, float]:
    """The likeliest label of one row of scores [214], and its score."""
    index = int(scores.argmax())
    return labels[index], float(scores[index])
