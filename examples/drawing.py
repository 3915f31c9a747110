"""Draws a line of text as an image, for the OCR examples: letters of 5 by 7 dots, no fonts needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

GLYPHS = {
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    " ": "00000 00000 00000 00000 00000 00000 00000",
}


def image(text: str, scale: int = 6) -> NDArray[Any]:
    """Black letters on white, as uint8 [height, width, 3]. Only the letters of `GLYPHS` are known."""
    rows = [[[int(bit) for bit in row] + [0] for row in GLYPHS[letter].split()] for letter in text]
    ink = np.kron(np.concatenate([np.array(letter) for letter in rows], axis=1), np.ones((scale, scale), int))
    padded = np.pad(ink, ((3 * scale, 3 * scale), (4 * scale, 4 * scale)))
    return np.where(padded[..., None] > 0, 0, 255).astype(np.uint8).repeat(3, axis=2)
