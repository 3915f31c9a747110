"""Which of the replicas that have a version ready get the requests for it, where some are not trusted or slow."""

from __future__ import annotations

from collections.abc import Collection, Mapping

ONE_IN = 3
"""Of so many copies of a version one may be left out because it is slow; of fewer one all the same. Where many are out
the others have too much to do, which makes them slow, too: what is left has to carry it all."""


def trusted(members: tuple[str, ...], distrusted: Collection[str], draining: Collection[str]) -> tuple[str, ...]:
    """Those that are trusted, if one of them may take a new request; else all of them."""
    found = tuple(name for name in members if name not in distrusted)
    return found if any(name not in draining for name in found) else members


def quick(members: tuple[str, ...], slow: Mapping[str, float], draining: Collection[str]) -> tuple[str, ...]:
    """All but the slowest (how many times as long they take): one in `ONE_IN` of those that may take a new request at
    most, or one; never the last of these."""
    taking = [name for name in members if name not in draining]
    slowest = sorted((name for name in taking if name in slow), key=lambda name: (-slow[name], name))
    out = slowest[: max(len(taking) // ONE_IN, 1)]
    return tuple(name for name in members if name not in out) if len(out) < len(taking) else members
