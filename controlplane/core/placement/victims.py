"""Who leaves when memory is needed: of those that may, whoever costs least to have back for the memory that it frees.

A copy is worth the time that loading it anew takes, as often as its version is asked for. By memory, since of two that
are worth the same the larger makes more room: the idea of GreedyDual-Size (Cao and Irani 1997) with frequencies
(Cherkasova 1998); what ages them is that counts fade (`popularity.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from controlplane.core.names import Key
from controlplane.core.placement.terms import Want


def who_leaves(
    candidates: Iterable[Want], missing: int, *, sizes: Mapping[Key, int], is_last: Callable[[Key], bool]
) -> list[Want] | None:
    """Those of `candidates` that leave one replica to free `missing` bytes more, and none beside them; None where all
    of them are too few. `sizes` in bytes; `is_last`: whether no copy of it is one to spare.

    Where all are of one size and load equally long, whoever is asked least leaves, then who was asked longest ago.
    """

    def order(want: Want) -> tuple[bool, int, bool, float, float, float, Key]:
        by_memory = want.worth_s / max(sizes.get(want.key, 0), 1)
        return is_last(want.key), -want.rank, want.high, by_memory, want.use, want.last_used_at, want.key

    leaving: list[Want] = []
    for want in sorted(candidates, key=order):
        if missing <= 0:
            break
        leaving.append(want)
        missing -= sizes.get(want.key, 0)
    if missing > 0:
        return None
    # A large one that came last may have been enough without some before it: those stay, the most worth first.
    spare, needed = -missing, []
    for want in reversed(leaving):
        size = sizes.get(want.key, 0)
        if size <= spare:
            spare -= size
        else:
            needed.append(want)
    return needed[::-1]
