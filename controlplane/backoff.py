"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random

DOUBLINGS = 30
"""Beyond these every limit is reached: a number that doubles for ever can't be a float any more after a thousand."""


def backoff_s(failures: int, least_s: float, most_s: float) -> float:
    """For how many seconds to wait after so many `failures` in a row: `least_s` after the first, then twice as long
    each time, `most_s` at most; and up to half of that less, so that not all who wait for one thing come back at once.
    """
    pause_s: float = min(least_s * 2 ** min(max(failures - 1, 0), DOUBLINGS), most_s)
    return pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
