"""What the registry is told of a fleet: what is new, and no more often than it must be."""

from __future__ import annotations

from dataclasses import replace

from controlplane.core.actions import RecordFleet
from controlplane.core.census import Census
from controlplane.core.load import Contest, Load, Scaler
from controlplane.core.models import Cost, FleetRecord, FleetShape, History
from controlplane.core.records import REMEMBER_SLOTS, records
from controlplane.core.snapshot import Snapshot

RECORD = FleetRecord(shape=FleetShape(name="cpu"))
LOAD = Load(at=1e9, step_s=2.0)
SCALER = Scaler(contest=Contest(believed="yesterday", moved=0.25))


def recorded(record: FleetRecord, load: Load) -> RecordFleet | None:
    """What is to be written down."""
    snapshot = Snapshot(fleets={"cpu": record}, loads={"cpu": load})
    return next(records(snapshot, Census(snapshot, load.at), {"cpu": SCALER}), None)


def test_nothing_new_is_not_written() -> None:
    assert recorded(RECORD, LOAD) is None
    assert recorded(replace(RECORD, start_s=10.0), replace(LOAD, start_s=11.0, started=True)) is None
    assert recorded(RECORD, replace(LOAD, start_s=11.0)) is None, "no start was seen"


def test_what_was_measured_is_written_where_it_differs() -> None:
    cost = Cost(fixed_s=0.0, each_s=0.1, executions=100)
    found = recorded(replace(RECORD, start_s=10.0), replace(LOAD, start_s=20.0, started=True, costs={"d": cost}))
    assert found == RecordFleet(fleet="cpu", capabilities=None, start_s=20.0, costs={"d": cost})


def test_history_is_written_twice_an_hour_with_what_is_believed() -> None:
    history = History(first=100, most=(1.0, 2.0))
    found = recorded(RECORD, replace(LOAD, history=history))
    assert found is not None
    assert found.history == History(first=100, most=(1.0, 2.0), believed="yesterday", moved=0.25)
    known = replace(RECORD, history=found.history)
    more = replace(history, most=(*history.most, *(0.0,) * (REMEMBER_SLOTS - 1)))
    assert recorded(known, replace(LOAD, history=more)) is None
    enough = replace(history, most=(*history.most, *(0.0,) * REMEMBER_SLOTS))
    again = recorded(known, replace(LOAD, history=enough))
    assert again is not None and again.history is not None
    assert again.history.last == 107
