"""Files with content that nothing else has."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path


def write_file(path: Path, size_bytes: int, *, seed: int = 0) -> tuple[Path, str]:
    """A file of this size, the same for the same seed; returns it and its SHA-256."""
    content = random.Random(seed).randbytes(size_bytes)  # noqa: S311 - content, not a secret
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()
