"""Draws a line of text as an image, for the OCR examples: letters of 5 by 7 dots, no fonts needed.

`python -m examples.drawing "HELLO 12" /tmp/line.npy` writes it as an array that `ctl infer` takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
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


def main() -> None:
    """Draw what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m examples.drawing", description="Draw a line of text.")
    parser.add_argument("text", metavar="TEXT", help=f"of these letters: {''.join(sorted(GLYPHS))!r}")
    parser.add_argument("file", metavar="FILE.npy", type=Path, help="where to write it: uint8 [height, width, 3]")
    given = parser.parse_args()
    if strange := sorted(set(given.text) - set(GLYPHS)):
        parser.error(f"there is no letter {', '.join(strange)}")
    np.save(given.file, image(given.text))


if __name__ == "__main__":
    main()
