"""`python -m tests.kubernetes.able`: exit status 0 where this machine can have real nodes, else 1 and the reason."""

from __future__ import annotations

import sys

from tests.kubernetes.cluster import cannot_run
from tests.kubernetes.programs import NODE, cannot_be_had

if __name__ == "__main__":
    reason = cannot_run() or cannot_be_had(*NODE)
    if reason is not None:
        print(reason)
        sys.exit(1)
