"""What the controller counts of itself."""

from __future__ import annotations

import re

from controlplane.server.metrics import Metrics
from tests.core.world import World, promoted


class Counted(World):
    """A world whose controller counts."""

    metrics = Metrics()

    def turn(self, seconds: float = 0.5) -> None:
        snapshot = self.memory.snapshot(self.orders, self.clash, self.now)
        super().turn(seconds)
        self.metrics.cycle(snapshot, self.plan, 0.0)

    def moves(self) -> dict[str, int]:
        text = self.metrics.expose().decode()
        found = re.findall(r'^ctl_placement_moves_total{what="(\w+)"} (\S+)$', text, re.MULTILINE)
        return {what: int(float(count)) for what, count in found}


def test_moves_are_counted_once() -> None:
    world = Counted(replicas=2)
    key = promoted(world)
    assert world.served(key) == {"cpu-0", "cpu-1"}
    assert world.moves() == {"placed": 2, "left": 0}
    world.run()
    assert world.moves() == {"placed": 2, "left": 0}, "what stays where it is does not move"
    world.registry.delete(key, world.now)
    world.run()
    assert world.moves() == {"placed": 2, "left": 2}
