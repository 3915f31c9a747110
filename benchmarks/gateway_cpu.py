"""CPU time of the gateway's Envoy for one small unary gRPC request, in several shapes, interleaved.

`python -m benchmarks.gateway_cpu [requests a round] [rounds]`
"""

from __future__ import annotations

import statistics
import sys

from benchmarks.ending import scratch
from benchmarks.gateway_parts import bare, gateway, load, message, require_h2load, table, upstream
from examples.interrupts import interruptible

LIMITS = {"led by body, forced, 10 models": 1.4, "led by body, forced, 10,000 models": 1.15}


def main(requests: int, rounds: int) -> int:
    """Measure and print; 1 when a limit is missed."""
    require_h2load()
    with scratch() as folder:
        _, endpoint = upstream(folder / "up")
        ten, many = table(10, endpoint), table(10_000, endpoint)
        shapes = {
            "bare Envoy": bare(folder / "bare", endpoint),
            "same filters, one static route": gateway(folder / "plain", ten, led=False),
            "led by body, forced, 10 models": gateway(folder / "ten", ten),
            "led by body, forced, 10,000 models": gateway(folder / "many", many),
        }
        body = folder / "body"
        body.write_bytes(message("model-00007", 1024))
        for proxy in shapes.values():
            load(proxy, body, requests // 4)
        found: dict[str, list[float]] = {shape: [] for shape in shapes}
        for _ in range(rounds):
            for shape, proxy in shapes.items():
                found[shape].append(load(proxy, body, requests))
        memory = {shape: proxy.process.memory_info().rss / 2**20 for shape, proxy in shapes.items()}
    medians = {shape: statistics.median(values) for shape, values in found.items()}
    print(f"{'shape':38} {'µs/request':>10} {'× bare':>7} {'× plain':>8} {'× 10 models':>12} {'RSS MB':>7}")
    for shape, value in medians.items():
        ratios = [value / medians[other] for other in list(medians)[:3]]
        print(f"{shape:38} {value:10.1f} {ratios[0]:7.2f} {ratios[1]:8.2f} {ratios[2]:12.2f} {memory[shape]:7.0f}")
    against = {"led by body, forced, 10 models": "same filters, one static route"}
    missed = 0
    for shape, limit in LIMITS.items():
        other = against.get(shape, "led by body, forced, 10 models")
        ratio = medians[shape] / medians[other]
        print(f"{shape} / {other}: {ratio:.2f} (limit {limit}) {'ok' if ratio <= limit else 'MISSED'}")
        missed += ratio > limit
    return 1 if missed else 0


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    sys.exit(interruptible(lambda: main(*(given + [20_000, 7][len(given) :]))))
