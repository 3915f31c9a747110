"""Many more models than memory: how often a request finds its model not loaded, by who leaves when room is needed.

Run ``python -m benchmarks.density [requests]``. 1,000 models of one size, room for some of them, one request after the
other; a request for a model that is not loaded is a cold start, loads it, and makes another one leave. The first third
is not counted. Compared in one run: the least recently used leaves; who the controller's own placement lets go leaves;
the best fixed set, chosen with perfect knowledge; Belady's optimum, which knows the future. Limits: at most 1.1 times
the best fixed set while the traffic is steady, and fewer cold starts than LRU when it drifts.
"""

from __future__ import annotations

import heapq
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from controlplane.core.names import Key
from controlplane.core.placement.placing import place
from controlplane.core.placement.popularity import Popularity
from controlplane.core.placement.terms import Rank, Slot, Want
from examples.interrupts import interruptible

MODELS, REQUESTS = 1000, 60_000
LIMIT = 1.1
Trace = NDArray[np.int64]


def zipf(exponent: float) -> NDArray[np.float64]:
    """The share of each model, the most popular first."""
    shares = 1 / np.arange(1, MODELS + 1) ** exponent
    made: NDArray[np.float64] = shares / shares.sum()
    return made


def steady(requests: int, exponent: float, random: np.random.Generator) -> Trace:
    """Popularity does not change."""
    made: Trace = random.choice(MODELS, requests, p=zipf(exponent))
    return made


def shuffled(requests: int, exponent: float, random: np.random.Generator, every: int = 2000) -> Trace:
    """After each `every` requests 50 models take each other's popularity."""
    names, parts = np.arange(MODELS), []
    for _ in range(-(-requests // every)):
        parts.append(names[random.choice(MODELS, every, p=zipf(exponent))])
        chosen = random.choice(MODELS, 50, replace=False)
        names[chosen] = names[np.roll(chosen, 1)]
    made: Trace = np.concatenate(parts)[:requests]
    return made


def moving(requests: int, exponent: float, random: np.random.Generator, every: int = 3000) -> Trace:
    """After each `every` requests every model is 20 places less popular, and the last ones are the first."""
    parts = [
        (random.choice(MODELS, every, p=zipf(exponent)) + 20 * step) % MODELS for step in range(-(-requests // every))
    ]
    made: Trace = np.concatenate(parts)[:requests]
    return made


def lru(trace: Trace, room: int, counted: int) -> float:
    """The least recently used leaves."""
    loaded: OrderedDict[int, None] = OrderedDict()
    cold = 0
    for index, model in enumerate(trace.tolist()):
        if model in loaded:
            loaded.move_to_end(model)
            continue
        cold += index >= counted
        if len(loaded) >= room:
            loaded.popitem(last=False)
        loaded[model] = None
    return cold / (len(trace) - counted)


def placed(trace: Trace, room: int, counted: int) -> float:
    """Who leaves is asked of the controller's own placement, on one replica, with what it would know then."""
    keys = [Key(str(number), 1) for number in range(MODELS)]
    sizes = dict.fromkeys(keys, 1)
    popularity = Popularity()
    loaded: dict[Key, int] = {}
    cold = 0
    for index, key in enumerate(keys[model] for model in trace.tolist()):
        if key not in loaded:
            cold += index >= counted
            use = popularity.counts()
            wants = [
                Want(key=each, size_bytes=1, rank=Rank.KEEP, last_used_at=used, use=use.get(each, 0.0))
                for each, used in loaded.items()
            ]
            wants.append(Want(key=key, size_bytes=1, rank=Rank.DEMAND, last_used_at=index, use=use.get(key, 0.0)))
            slot = Slot(replica="one", capacity_bytes=room, held=frozenset(loaded))
            for leaves in place([slot], wants, sizes=sizes).leaving:
                del loaded[leaves.key]
        loaded[key] = index
        popularity.add({key: 1}, loaded=len(loaded))
    return cold / (len(trace) - counted)


def fixed(trace: Trace, room: int, counted: int) -> float:
    """The models that are asked most, for ever."""
    asked = Counter(trace[counted:].tolist())
    return 1 - sum(count for _, count in asked.most_common(room)) / (len(trace) - counted)


def belady(trace: Trace, room: int, counted: int) -> float:
    """Who will be asked last, leaves."""
    never = len(trace)
    following, last = [never] * len(trace), dict[int, int]()
    for index in range(len(trace) - 1, -1, -1):
        following[index] = last.get(int(trace[index]), never)
        last[int(trace[index])] = index
    loaded: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    cold = 0
    for index, model in enumerate(trace.tolist()):
        if model not in loaded:
            cold += index >= counted
            while len(loaded) >= room:
                when, leaves = heapq.heappop(heap)
                if loaded.get(leaves) == -when:
                    del loaded[leaves]
        loaded[model] = following[index]
        heapq.heappush(heap, (-following[index], model))
    return cold / (len(trace) - counted)


TRACES: dict[str, tuple[bool, Callable[[int, np.random.Generator], Trace]]] = {
    "steady, Zipf 0.9": (True, lambda requests, random: steady(requests, 0.9, random)),
    "steady, Zipf 1.1": (True, lambda requests, random: steady(requests, 1.1, random)),
    "shuffled, Zipf 0.9": (False, lambda requests, random: shuffled(requests, 0.9, random)),
    "moving, Zipf 1.1": (False, lambda requests, random: moving(requests, 1.1, random)),
}


def main() -> int:
    """Measure and print; 1 when a limit is missed, 2 for what is no number of requests."""
    given = sys.argv[1:] or [str(REQUESTS)]
    if len(given) > 1 or not given[0].isdecimal() or int(given[0]) < 1:
        print("usage: python -m benchmarks.density [requests]", file=sys.stderr)
        return 2
    requests = int(given[0])
    print(f"{MODELS} models, {requests} requests; cold starts as a share of the requests")
    print(f"{'traffic':20} {'room':>5} {'LRU':>7} {'ours':>7} {'fixed':>7} {'Belady':>7}   ours / fixed   ours / LRU")
    missed = 0
    for name, (is_steady, make) in TRACES.items():
        trace = make(requests, np.random.default_rng(1))
        for room in (50, 100, 200):
            counted = requests // 3
            of_lru, ours, best, optimum = (each(trace, room, counted) for each in (lru, placed, fixed, belady))
            kept = ours <= LIMIT * best if is_steady else ours < of_lru
            missed += not kept
            print(
                f"{name:20} {room:5} {of_lru:7.3f} {ours:7.3f} {best:7.3f} {optimum:7.3f}   "
                f"{ours / best:12.2f}   {ours / of_lru:10.2f}  {'ok' if kept else 'MISSED'}",
                flush=True,
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
