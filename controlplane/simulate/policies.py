"""What a policy sees of a simulated fleet at each step, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controlplane.simulate.traces import Codes, Singles

STEP_S = 2.0
"""How often a policy is asked: as often as the controller measures."""

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Requests that began in a step, an entry each: on which replica (int64), after which wait in seconds (float32),
    with how much work in seconds (float32), for which model (int32)."""

    replica: Integers
    wait_s: Singles
    work_s: Singles
    model: Codes
    end_us: Integers
    """When each is answered, in microseconds since the trace began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A fleet at the end of a step, `now` seconds after the trace began.

    `present` replicas are there or starting, and not on their way out; those of `serving` answer. `queue` requests
    wait (by model: `waiting`), `in_flight` wait or are worked on.
    """

    now: float
    present: int
    serving: tuple[int, ...]
    queue: int
    in_flight: int
    waiting: Integers
    begun: Begun


class Policy(Protocol):
    """Says how many replicas there shall be. One object is asked through one replay, step after step."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    def desired(self, seen: Seen) -> int:
        """How many replicas the fleet shall have now. What the fleet's limits forbid is cut off."""
        ...
