"""What all fleets together may have."""

from __future__ import annotations

import pytest

from controlplane.core.actions import StartReplica
from controlplane.core.models import FleetRecord, FleetShape
from controlplane.core.plan import plan
from controlplane.core.snapshot import Settings, Snapshot


@pytest.mark.parametrize("settings", [Settings(max_replicas=5), Settings(max_gpus=5)], ids=["replicas", "GPUs"])
def test_fleets_share_a_budget(settings: Settings) -> None:
    fleets = {
        name: FleetRecord(shape=FleetShape(name=name, gpus=1, min_replicas=3, max_replicas=4)) for name in ("a", "b")
    }
    made = plan(Snapshot(fleets=fleets, settings=settings), 1_000.0)
    started = sorted(each.replica for each in made.actions if isinstance(each, StartReplica))
    assert started == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert "leaves 2 more" in made.decisions["b"].reason.text
