"""Many more models than memory: how often a request finds its model not loaded, by who leaves when room is needed.

Run ``python -m benchmarks.density [requests]``. 1,000 models, room for some of them, one request after the other; a
request for a model that is not loaded is a cold start, loads it, and makes others leave. The first third is not
counted. Compared in one run: the least recently used leaves; who the controller's own placement lets go leaves; the
best fixed set, chosen with perfect knowledge. First with models of one size, by cold starts, beside Belady's optimum,
which knows the future. Limits: at most 1.1 times the best fixed set while the traffic is steady, and fewer cold starts
than LRU when it drifts. Then with models of 1 to 8 units of memory, by the time that is spent loading, beside the
least asked leaving whatever it costs. Limits: the same two, and always less than with the least asked leaving. Belady's
rule is no optimum there, and none is known that is quick to compute, so that is left out; and the best fixed set is
filled by what each model saves for its memory, which misses the best by one model's worth at most.
"""

from __future__ import annotations

import heapq
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Models:
    """What each takes: `sizes` of memory (in some unit), and `load_s`, how long its load lasts."""

    sizes: NDArray[np.int64]
    load_s: NDArray[np.float64]


EQUAL = Models(np.ones(MODELS, np.int64), np.ones(MODELS))
"""Seconds of loading are cold starts there."""


def by_size(random: np.random.Generator) -> Models:
    """1 to 8 units; a load lasts as many seconds, half to twice as long for two thirds of them."""
    sizes = random.integers(1, 9, MODELS)
    return Models(sizes, sizes * random.lognormal(0, np.log(2), MODELS))


def anyhow(random: np.random.Generator) -> Models:
    """1 to 8 units; how long a load lasts has nothing to do with that: 4 s in the middle, most of them 1 to 16 s."""
    return Models(random.integers(1, 9, MODELS), 4 * random.lognormal(0, np.log(2), MODELS))


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


def lru(trace: Trace, room: int, counted: int, models: Models = EQUAL) -> float:
    """The least recently used leaves. Like the others, this gives the seconds of loading for each request."""
    sizes, load_s = models.sizes.tolist(), models.load_s.tolist()
    loaded: OrderedDict[int, None] = OrderedDict()
    took_s, free = 0.0, room
    for index, model in enumerate(trace.tolist()):
        if model in loaded:
            loaded.move_to_end(model)
            continue
        took_s += load_s[model] * (index >= counted)
        while free < sizes[model]:
            free += sizes[loaded.popitem(last=False)[0]]
        loaded[model] = None
        free -= sizes[model]
    return float(took_s / (len(trace) - counted))


def least_asked(trace: Trace, room: int, counted: int, models: Models = EQUAL) -> float:
    """The least asked leaves, whatever it takes."""
    sizes, load_s = models.sizes.tolist(), models.load_s.tolist()
    keys = [Key(str(number), 1) for number in range(MODELS)]
    popularity = Popularity()
    loaded: dict[int, int] = {}
    took_s, free = 0.0, room
    for index, model in enumerate(trace.tolist()):
        if model not in loaded:
            took_s += load_s[model] * (index >= counted)
            use = popularity.counts() if free < sizes[model] else {}
            leaving = iter(sorted(loaded, key=lambda each: (use.get(keys[each], 0.0), loaded[each])) if use else ())
            while free < sizes[model]:
                leaves = next(leaving)
                del loaded[leaves]
                free += sizes[leaves]
            free -= sizes[model]
        loaded[model] = index
        popularity.add({keys[model]: 1}, loaded=len(loaded))
    return float(took_s / (len(trace) - counted))


def placed(trace: Trace, room: int, counted: int, models: Models = EQUAL) -> float:
    """Who leaves is asked of the controller's own placement, on one replica, with what it would know then."""
    keys = [Key(str(number), 1) for number in range(MODELS)]
    sizes: dict[Key, int] = dict(zip(keys, models.sizes.tolist(), strict=True))
    load_s: dict[Key, float] = dict(zip(keys, models.load_s.tolist(), strict=True))
    popularity = Popularity()
    loaded: dict[Key, int] = {}
    took_s = 0.0

    def want(key: Key, rank: Rank, used: int, use: float) -> Want:
        return Want(key=key, size_bytes=sizes[key], rank=rank, last_used_at=used, use=use, reload_s=load_s[key])

    for index, key in enumerate(keys[model] for model in trace.tolist()):
        if key not in loaded:
            took_s += load_s[key] * (index >= counted)
            use = popularity.counts()
            wants = [want(each, Rank.KEEP, used, use.get(each, 0.0)) for each, used in loaded.items()]
            wants.append(want(key, Rank.DEMAND, index, use.get(key, 0.0)))
            slot = Slot(replica="one", capacity_bytes=room, held=frozenset(loaded))
            for leaves in place([slot], wants, sizes=sizes).leaving:
                del loaded[leaves.key]
        loaded[key] = index
        popularity.add({key: 1}, loaded=len(loaded))
    return took_s / (len(trace) - counted)


def fixed(trace: Trace, room: int, counted: int, models: Models = EQUAL) -> float:
    """Those whose loads would take longest, as often as they are asked, for the memory that they take; for ever."""
    costs_s = np.bincount(trace[counted:], minlength=MODELS) * models.load_s
    cold_s, free = costs_s.sum(), room
    for model in np.argsort(-costs_s / models.sizes):
        if models.sizes[model] <= free:
            free -= models.sizes[model]
            cold_s -= costs_s[model]
    return float(cold_s / (len(trace) - counted))


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


SIZES: dict[str, Callable[[np.random.Generator], Models]] = {"by size": by_size, "anyhow": anyhow}
"""How long loads last."""


def equal(requests: int) -> int:
    """Measure and print models of one size; how many limits are missed."""
    print(f"{MODELS} models of one size, {requests} requests; cold starts as a share of the requests")
    print(f"{'traffic':20} {'room':>5} {'LRU':>7} {'ours':>7} {'fixed':>7} {'Belady':>7}   ours / fixed   ours / LRU")
    missed = 0
    for name, (is_steady, make) in TRACES.items():
        trace = make(requests, np.random.default_rng(1))
        for room in (50, 100, 200):
            counted = requests // 3
            of_lru, ours, best = (each(trace, room, counted) for each in (lru, placed, fixed))
            optimum = belady(trace, room, counted)
            kept = ours <= LIMIT * best if is_steady else ours < of_lru
            missed += not kept
            print(
                f"{name:20} {room:5} {of_lru:7.3f} {ours:7.3f} {best:7.3f} {optimum:7.3f}   "
                f"{ours / best:12.2f}   {ours / of_lru:10.2f}  {'ok' if kept else 'MISSED'}",
                flush=True,
            )
    return missed


def of_sizes(requests: int) -> int:
    """The same of models of several sizes that take different times to load."""
    print(f"\n{MODELS} models of 1 to 8 units of memory, {requests} requests; seconds of loading for each request")
    print(
        f"{'traffic':20} {'loads':8} {'room':>5} {'LRU':>7} {'asked':>7} {'ours':>7} {'fixed':>7}   "
        "ours / fixed   ours / LRU   ours / asked"
    )
    missed = 0
    for name in ("steady, Zipf 0.9", "moving, Zipf 1.1"):
        is_steady, make = TRACES[name]
        trace = make(requests, np.random.default_rng(1))
        for loads, sized in SIZES.items():
            models = sized(np.random.default_rng(2))
            for room in (225, 900):
                of_lru, asked, ours, best = (
                    each(trace, room, requests // 3, models) for each in (lru, least_asked, placed, fixed)
                )
                kept = ours < asked and (ours <= LIMIT * best if is_steady else ours < of_lru)
                missed += not kept
                print(
                    f"{name:20} {loads:8} {room:5} {of_lru:7.3f} {asked:7.3f} {ours:7.3f} {best:7.3f}   "
                    f"{ours / best:12.2f}   {ours / of_lru:10.2f}   {ours / asked:12.2f}  {'ok' if kept else 'MISSED'}",
                    flush=True,
                )
    return missed


def main() -> int:
    """Measure and print; 1 when a limit is missed, 2 for what is no number of requests."""
    given = sys.argv[1:] or [str(REQUESTS)]
    if len(given) > 1 or not given[0].isdecimal() or int(given[0]) < 1:
        print("usage: python -m benchmarks.density [requests]", file=sys.stderr)
        return 2
    requests = int(given[0])
    missed = equal(requests) + of_sizes(requests)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
