"""The `ctl` program, as it starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from controlplane.cli.importing import importing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ctl`; returns the exit status."""
    with importing():
        from controlplane.cli.commands import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
