"""Commands of a README, typed as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def follow(
    script: str,
    replaced: Mapping[str, str],
    *,
    programs: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 240.0,
) -> str:
    """Type a script into a shell; returns what it prints.

    What is `replaced`: places that the user's own files would be in, and ports that may be taken on this machine.
    `programs` is a folder of such as the user has installed.
    """
    for old, new in replaced.items():
        assert old in script, old
        script = script.replace(old, new)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CTL_")}
    path = [*([str(programs)] if programs is not None else []), str(Path(sys.executable).parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=ROOT,
        env={**kept, **(environment or {}), "PATH": ":".join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
