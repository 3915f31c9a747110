"""What the registry is told of a fleet: what is new, and no more often than it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from controlplane.core.actions import RecordFleet
from controlplane.core.census import Census
from controlplane.core.fleets import ANY_LOAD_S
from controlplane.core.load import Believed, Contest, Load, Scaler
from controlplane.core.messages import Copy, CopyState, ReplicaReport
from controlplane.core.models import Cost, FleetRecord, FleetShape, History, Model, Version
from controlplane.core.names import Key
from controlplane.core.records import REMEMBER_SLOTS, SHORTEST_LOAD_S, records
from controlplane.core.snapshot import ReplicaView, Snapshot
from controlplane.server.acting import with_news

RECORD = FleetRecord(shape=FleetShape(name="cpu"))
LOAD = Load(at=1e9, step_s=2.0)
SCALER = Scaler(contest=Contest(season=Believed("yesterday", 0.25)))


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


def replica(name: str, load_s: float | None, state: CopyState = "ready") -> ReplicaView:
    """One with a copy of the version `d`, which took so long to load."""
    copy = Copy(model="m", version=1, digest="d", state=state, load_s=load_s)
    report = ReplicaReport(replica=name, fleet="cpu", incarnation="1", server="ready", copies=(copy,))
    return ReplicaView(name=name, fleet="cpu", report=report, copies={Key("m", 1): copy})


def loads(record: FleetRecord, *replicas: ReplicaView) -> Mapping[str, float]:
    """Of loads, what is to be written down."""
    snapshot = Snapshot(fleets={"cpu": record}, replicas={each.name: each for each in replicas})
    found = next(records(snapshot, Census(snapshot, 1e9), {}), None)
    return found.load_s if found is not None else {}


def test_how_long_a_load_took_is_remembered_where_it_differs_much() -> None:
    assert loads(RECORD, replica("a", 4.0), replica("b", 2.5)) == {"d": 2.5}, "what else went on made the other longer"
    known = replace(RECORD, load_s={"d": 2.5})
    assert not loads(known, replica("a", 3.5)) and not loads(known, replica("a", 1.7)), "no load is like another"
    assert loads(known, replica("a", 6.0)) == {"d": pytest.approx(math.sqrt(2.5 * 6.0))}
    assert loads(known, replica("a", 1.0)) == {"d": pytest.approx(math.sqrt(2.5 * 1.0))}
    swinging, written = RECORD, 0
    for turn in range(20):
        if news := loads(swinging, replica("a", (5.0, 2.0)[turn % 2])):
            swinging, written = replace(swinging, load_s=news), written + 1
    assert written == 2, "a cold disk and a warm one"
    assert not loads(RECORD, replica("a", None)), "an agent that does not tell, or has not loaded it"
    assert not loads(RECORD, replica("a", 4.0, "failed"), replica("b", 0.0), replica("c", float("nan")))
    assert loads(RECORD, replica("a", 0.02)) == {"d": SHORTEST_LOAD_S}
    quick = replace(RECORD, load_s={"d": SHORTEST_LOAD_S})
    assert not loads(quick, replica("a", 0.02)) and not loads(quick, replica("a", 0.9)), "nothing but noise"
    assert loads(RECORD, replica("a", 1e9)) == {"d": RECORD.shape.load_timeout_s}, "no load may take longer"


def test_what_is_not_in_the_registry_any_more_is_forgotten() -> None:
    known = replace(RECORD, load_s={"gone": 1.0, "d": 2.0})
    news = RecordFleet(fleet="cpu", capabilities=None, load_s={"new": 3.0})
    assert with_news(known, news, {"d", "new"}).load_s == {"d": 2.0, "new": 3.0}


def test_a_version_whose_load_was_not_measured_takes_as_long_as_is_usual() -> None:
    key, version = Key("m", 1), Version(number=1, digest="d", created_at=datetime.now(UTC), actor="test")
    models = {"m": Model(name="m", versions=(version,))}
    for known, expected in (({}, ANY_LOAD_S), ({"x": 1.0, "y": 3.0, "z": 90.0}, 3.0), ({"d": 7.0, "x": 1.0}, 7.0)):
        snapshot = Snapshot(fleets={"cpu": replace(RECORD, load_s=known)}, models=models)
        assert Census(snapshot, 1e9).reload_s(key, "cpu") == expected
