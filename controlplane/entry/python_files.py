"""A Python model's code is compiled before anybody has to load it; it is never run here."""

from __future__ import annotations

import warnings
from pathlib import Path

from controlplane.core.errors import ControlPlaneError, InvalidEntry, InvalidInput

MAX_BYTES = 4 << 20
"""Larger files are no code that people write; they are left to the server."""


def check_python(inside: str, file: Path) -> None:
    """Raises InvalidEntry with the line where `file`, the version's model file `inside`, is no Python.

    Of the other files nobody knows which are imported. The grammar is that of this program's Python, which is also what
    a local server's models run in.
    """
    problem = _problem(inside, file) if file.stat().st_size <= MAX_BYTES else None
    if problem is not None:
        raise InvalidEntry("the model's code", (problem,))


def _problem(inside: str, file: Path) -> ControlPlaneError | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(file.read_bytes(), inside, "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        shown = f": {error.text.strip()[:80]}" if error.text and error.text.strip() else ""
        return InvalidInput(f"{inside}{line}: {error.msg}{shown}", field="files", remedy="correct the code")
    except (ValueError, RecursionError, MemoryError) as error:
        return InvalidInput(f"{inside} is no Python: {error}", field="files", remedy="give a file of Python code")
    except OSError as error:
        return InvalidInput(f"{inside} can't be read: {error.strerror}", field="files", remedy="make it readable")
    return None
