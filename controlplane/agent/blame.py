"""Whose fault the end of a server was, as far as that can be known. Pure.

What is known: which versions were loading, which were loaded, which were in use shortly before. Triton does not say
which request was being computed, so with several versions in use nobody is blamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from controlplane.core.names import Key

MOST_SETTLING = 4
"""Being careful takes a pause for each version. Where more than these had just been loaded, a server that was simply
killed soon after its start would be long in coming back."""


How = Literal["crash", "killed", "unknown", "hang", "stuck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """An unexpected end at `at` (seconds, any clock), and what the server was doing.

    `killed`: by a signal from outside, as an operator sends it, or the kernel when memory runs out. `unknown`: it may
    have been that. `stuck`: it had to be ended for what `culprit` did. `settling` are versions whose load had only just
    ended; `in_use` those that were asked lately, or may have been.
    """

    at: float
    how: How
    culprit: Key | None = None
    loading: frozenset[Key] = frozenset()
    settling: frozenset[Key] = frozenset()
    loaded: frozenset[Key] = frozenset()
    in_use: frozenset[Key] = frozenset()

    @property
    def suspects(self) -> frozenset[Key]:
        """Who can have done it: whatever was loading, or had just been; else the only version loaded; else the only one
        in use; else nobody in particular (empty). Who kills a server that serves is outside of it."""
        if self.culprit is not None:
            return frozenset((self.culprit,))
        if self.how == "killed":
            return self.loading
        if self.loading or self.settling:
            return self.loading or self.settling
        if len(self.loaded) == 1:
            return self.loaded
        return self.in_use if len(self.in_use) == 1 else frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`guilty` is not loaded again; `careful` are loaded one at a time, so that the next crash has one suspect."""

    guilty: Key | None = None
    reason: str = ""
    careful: frozenset[Key] = frozenset()


def judge(crashes: Sequence[Crash], *, window_s: float) -> Verdict:
    """The verdict after the last of `crashes` (in order of time). A crash with one version loading settles it; anything
    else has to happen twice within `window_s` with the same only suspect."""
    last = crashes[-1]
    careful = last.loading | (last.settling if len(last.settling) <= MOST_SETTLING else frozenset())
    if last.culprit is not None:
        careful = frozenset()
    if len(last.suspects) != 1:
        return Verdict(careful=careful)
    suspect = next(iter(last.suspects))
    if last.loading and last.how == "crash":
        return Verdict(guilty=suspect, reason="the server died while loading it, or just after")
    before = [each for each in crashes[:-1] if last.at - each.at <= window_s and each.suspects == last.suspects]
    if not before:
        return Verdict(careful=careful)
    doing = "loading" if last.culprit is None and (last.loading or last.settling) else "serving"
    return Verdict(guilty=suspect, reason=f"the server {_WHAT[last.how]} twice while {doing} it")


_WHAT = {"crash": "died", "killed": "was killed", "unknown": "ended", "hang": "hung", "stuck": "had to be ended"}
