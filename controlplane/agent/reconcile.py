"""What is wanted of one model × what is held of it → the next thing to do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from controlplane.core.messages import CopyState, Wanted

Blames = Literal["model", "environment", "crash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a version is not served. `retry_at` (seconds, monotonic): when to try again; None: never."""

    reason: str
    blames: Blames
    retry_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A version as the replica has it.

    `wanted` is what the assignment said of it; None for a version found in the server that nobody knows anything of.
    `files`: all blobs are on the disk. `loaded`: the server has it. `proved`: and it passed its proof. `doing` is what
    is under way. `deaths` counts how often it died without the server, `died_at` (seconds, monotonic) is the last time.
    `memory_bytes` is what its load took; with what its backend keeps for all its models, if it was the `first` of it.
    """

    wanted: Wanted | None
    files: bool = False
    loaded: bool = False
    proved: bool = False
    failure: Failure | None = None
    attempts: int = 0
    deaths: int = 0
    died_at: float | None = None
    doing: CopyState | None = None
    memory_bytes: int | None = None
    first: bool = False
    load_s: float | None = None
    last_used_at: float | None = None

    @property
    def digest(self) -> str | None:
        """The version's digest; None when it is not known."""
        return self.wanted.digest if self.wanted else None

    def may_try(self, now: float) -> bool:
        """Whether nothing forbids another attempt."""
        if self.failure is None:
            return True
        return self.failure.retry_at is not None and now >= self.failure.retry_at


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing of the version is left; drop the record of it."""

    version: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Unload all but these (none: the whole model)."""

    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Load:
    """Load `version` beside `present`, then prove it."""

    version: int
    present: frozenset[int]


@dataclass(frozen=True, slots=True)
class Prove:
    """Prove a version that is loaded already."""

    version: int


Step = Forget | Keep | Load | Prove


def next_step(
    wanted: Mapping[int, str],
    held: Mapping[int, Held],
    *,
    now: float,
    blocked: frozenset[int] = frozenset(),
) -> Step | None:
    """The next step for one model; None when there is nothing to do at present.

    `wanted` gives the digest of each wanted version, `blocked` the versions that wait for other models. What goes, goes
    first: the controller orders that only when nothing leads there, and versions that must not meet may follow each
    other. What stays is in every step's set, so it is never interrupted.
    """
    loaded = frozenset(number for number, each in held.items() if each.loaded)
    stays = frozenset(number for number in loaded if _is_good(held[number], wanted.get(number)))
    for number, each in sorted(held.items()):
        if not each.loaded and (each.digest is None or each.digest != wanted.get(number)):
            return Forget(number)
    if loaded != stays:
        return Keep(stays)
    for number in sorted(stays):
        if not held[number].proved:
            return Prove(number)
    for number in sorted(wanted):
        mine = held.get(number)
        if mine and mine.files and not mine.loaded and mine.may_try(now) and number not in blocked:
            return Load(number, stays)
    return None


def died(held: Held, *, now: float, window_s: float, pause_s: Callable[[int], float]) -> Held:
    """A served version after its process died: to be unloaded, and loaded again. At once the first time within
    `window_s`, then after as long as `pause_s` says of so many deaths."""
    again = held.died_at is not None and now - held.died_at <= window_s
    deaths = held.deaths + 1 if again else 1
    delay_s = pause_s(deaths) if deaths > 1 else 0.0
    reason = "its process died; it is loaded again"
    if deaths > 1:
        reason = f"its process died {deaths} times, one soon after the other; it is loaded again after {delay_s:.1f} s"
    failure = Failure(reason=reason, blames="environment", retry_at=now + delay_s)
    return replace(held, proved=False, memory_bytes=None, load_s=None, deaths=deaths, died_at=now, failure=failure)


def to_fetch(held: Mapping[int, Held], *, now: float) -> tuple[int, ...]:
    """The versions whose files are to be downloaded now."""
    return tuple(
        number
        for number, each in sorted(held.items())
        if each.wanted and not each.files and each.doing is None and each.may_try(now)
    )


def next_retry(held: Mapping[int, Held], *, now: float) -> float | None:
    """When the next failed version may be tried again, as seconds from `now`. What may be tried already and is not,
    waits for something else than time."""
    times = [each.failure.retry_at for each in held.values() if each.failure and each.failure.retry_at is not None]
    return min((at - now for at in times if at > now), default=None)


def _is_good(held: Held, digest: str | None) -> bool:
    return held.digest is not None and held.digest == digest and held.failure is None
