"""Synthetic traffic for simulations: a day's rise and fall, bursts, many models of unequal popularity.

Run ``python -m benchmarks.traffic diurnal`` (or bursts, zipf) for a trace that `ctl simulate` reads.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from controlplane.simulate.traces import Codes, Floats, Trace, trace_of

GRAIN_S = 10.0
"""Rates change so often, at most."""


def by_rate(name: str, rate_per_s: Floats, seed: int, mean_work_s: float = 0.5) -> Trace:
    """Random arrivals at these rates, each for `GRAIN_S` seconds; work is gamma distributed (shape 2)."""
    random = np.random.default_rng(seed)
    counts = random.poisson(rate_per_s * GRAIN_S)
    begins = np.repeat(np.arange(len(counts)) * GRAIN_S, counts)
    at = np.sort(begins + random.random(len(begins)) * GRAIN_S)
    return trace_of(name, at, random.gamma(2, mean_work_s / 2, len(at)).astype(np.float32))


def diurnal(length_s: float, mean_per_s: float, seed: int = 1, mean_work_s: float = 0.5) -> Trace:
    """One day, in `length_s` seconds: a sine from 0.2 to 1.8 times the mean."""
    at = np.arange(0, length_s, GRAIN_S)
    rate_per_s = mean_per_s * (1 - 0.8 * np.cos(2 * np.pi * at / length_s))
    return by_rate("diurnal", rate_per_s, seed, mean_work_s)


def bursts(length_s: float, mean_per_s: float, seed: int = 2) -> Trace:
    """Half of the rate, and every 6 min or so, at random, a burst: for 30 s to 2 min, at once 2 to 5 times as much."""
    random = np.random.default_rng(seed)
    rate_per_s = np.full(int(length_s / GRAIN_S), mean_per_s / 2)
    for begin in np.sort(random.uniform(0, length_s, int(length_s / 360))):
        first = int(begin / GRAIN_S)
        lasts = int(random.uniform(30, 120) / GRAIN_S)
        rate_per_s[first : first + lasts] += mean_per_s * random.uniform(0.5, 2)
    return by_rate("bursts", rate_per_s, seed)


def zipf(length_s: float, mean_per_s: float, models: int, seed: int = 3) -> Trace:
    """Steady traffic for so many models, the k-th asked for in proportion to 1/k; each has a cost of its own."""
    plain = by_rate("Zipf", np.full(int(length_s / GRAIN_S), mean_per_s), seed)
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, models + 1)
    model: Codes = random.choice(models, len(plain), p=weights / weights.sum()).astype(np.int32)
    factor = random.uniform(0.3, 1.7, models).astype(np.float32)
    names = tuple(f"model-{number}" for number in range(models))
    return trace_of("Zipf", plain.arrival_s, plain.work_s * factor[model], model, names)


def synthetic() -> Mapping[str, Trace]:
    """What is replayed besides recorded traces: two hours each, but for many models half one."""
    return {
        "diurnal, 20/s": diurnal(7200, 20.0),
        "bursts, 10/s": bursts(7200, 10.0),
        "Zipf, 1,000 models, 20/s": zipf(1800, 20.0, 1000),
    }


def main() -> int:
    """Print one of them as CSV; 2 when none is named."""
    traces = {name.split(",", maxsplit=1)[0].lower(): trace for name, trace in synthetic().items()}
    if len(sys.argv) != 2 or sys.argv[1] not in traces:
        print(f"usage: python -m benchmarks.traffic {'|'.join(traces)}", file=sys.stderr)
        return 2
    trace = traces[sys.argv[1]]
    print("timestamp,model,work")
    for at, model, work_s in zip(trace.arrival_s, trace.model, trace.work_s, strict=True):
        print(f"{at:.3f},{trace.models[model]},{work_s:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
