"""What the controller remembers of whom it has heard."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from controlplane.core.load import Scaler
from controlplane.core.messages import Failing, GatewayReport, ReplicaReport
from controlplane.core.names import Key, Place
from controlplane.core.plan import Plan
from controlplane.core.routes import RouteTable
from controlplane.core.snapshot import Settings
from controlplane.server.memory import HeardGateway, Memory, Start
from controlplane.server.orders import Orders

NOW = 1000.0
LIVE_S = Settings().gateway_live_s


def test_a_silent_gateway_is_forgotten_once_it_is_known_to_be_gone() -> None:
    memory = Memory(started_at=0.0, settings=Settings(), shapes={})
    for name, silent_s in (("there", LIVE_S + 1), ("gone", LIVE_S + 1), ("young", LIVE_S - 1)):
        report = GatewayReport(gateway=name, incarnation="one", epoch=1, generation=1)
        memory.gateways[name] = HeardGateway(report, NOW - silent_s)
    memory.take_gateways(None, NOW)
    assert set(memory.gateways) == {"there", "gone", "young"}, "unknown is not gone"
    memory.take_gateways(["there"], NOW)
    assert set(memory.gateways) == {"there", "young"}, "the backend may not have seen the young one yet"


def test_failures_by_replica_are_added_up_over_gateways() -> None:
    memory, orders = Memory(started_at=NOW, settings=Settings(), shapes={}), Orders(2, lambda key: None)
    key = Key("m", 1)
    assert memory.failing_on(key, NOW) is None, "no gateway is heard"

    def heard(name: str, *failing: Failing) -> None:
        memory.hear_gateway(GatewayReport(gateway=name, incarnation="one", epoch=2, failing=failing), orders, NOW)

    heard("one", Failing(model="m", version=1, errors_per_s=3.0, replicas={"cpu-0": 1.0, "cpu-1": 0.5}))
    heard("two", Failing(model="m", version=1, errors_per_s=2.0, replicas={"cpu-1": 2.0}))
    heard("three", Failing(model="m", version=2, errors_per_s=9.0))
    assert memory.failing_on(key, NOW) == {"cpu-0": 1.0, "cpu-1": 2.5}
    assert memory.failing_on(Key("n", 1), NOW) == {}
    heard("four", Failing(model="m", version=1, errors_per_s=1.0))
    assert memory.failing_on(key, NOW) is None, "one of an older release does not tell where"
    assert memory.failing(NOW)[key] == 6.0


def test_a_report_of_an_older_release_and_of_a_newer_one_can_be_read() -> None:
    reports = TypeAdapter(GatewayReport)
    text = '{"gateway": "gw", "incarnation": "1", "failing": [{"model": "m", "version": 1, "errors_per_s": 2.0}]}'
    assert reports.validate_json(text).failing == (Failing(model="m", version=1, errors_per_s=2.0),)
    newer = text.replace('"version": 1', '"version": 1, "not_yet_known": {}')
    assert reports.validate_json(newer) == reports.validate_json(text)


def test_what_is_heard_after_a_snapshot_lets_nothing_be_ordered_that_was_planned_for_it() -> None:
    memory, orders = Memory(started_at=NOW, settings=Settings(), shapes={}), Orders(2, lambda key: None)
    memory.snapshot(orders, lambda one, other: None, NOW)
    served = RouteTable(epoch=1, generation=7)
    report = GatewayReport(gateway="gw", incarnation="one", epoch=1, generation=7, table=served)
    memory.hear_gateway(report, orders, NOW)
    assert not memory.may_order
    memory.snapshot(orders, lambda one, other: None, NOW)
    assert memory.may_order

    memory.take_gateways(["gw", "another"], NOW)
    assert not memory.snapshot(orders, lambda one, other: None, NOW).settled
    assert not memory.may_order, "another one may lead anywhere"
    memory.snapshot(orders, lambda one, other: None, NOW + Settings().settle_s + 1)
    assert memory.may_order


@pytest.mark.parametrize("step_s", [7200.0, 90.0, -7200.0])
def test_a_clock_that_is_set_ages_nobody(step_s: float) -> None:
    memory, orders = Memory(started_at=NOW - 500, settings=Settings(), shapes={}), Orders(2, lambda key: None)
    place = Place(Key("m", 1), "r-1")
    memory.last_plan = Plan(leaving={place: NOW - 3.0, Place(Key("m", 1), "r-2"): None})
    for name, at in (("r-1", NOW - 5.0), ("r-2", NOW - 500.0), ("r-3", NOW + step_s)):  # the third after the step
        memory.hear_replica(ReplicaReport(replica=name, fleet="cpu", incarnation="one", server="ready"), at)
    memory.hear_gateway(GatewayReport(gateway="gw", incarnation="one", epoch=2), orders, NOW - 5.0)
    now = NOW + step_s + 1.0
    memory.clock_stepped(step_s, now)
    ages = {name: now - at for name, (_, at) in memory.reports.items()}
    assert ages["r-1"] == pytest.approx(6.0)
    assert 0.0 <= ages["r-3"] <= 1.0
    assert step_s < 0 or ages["r-2"] == pytest.approx(501.0), "who was silent before still is"
    assert now - memory.gateways["gw"].heard_at == pytest.approx(6.0)
    assert memory.last_plan.leaving == {place: pytest.approx(now - 4.0), Place(Key("m", 1), "r-2"): None}


@pytest.mark.parametrize("step_s", [7200.0, -7200.0])
def test_a_clock_that_is_set_changes_no_decision_on_sizes(step_s: float) -> None:
    """Idle for 100 of the 300 s; 4 replicas wanted 5 s ago; a start that has lasted for 8 s."""
    memory = Memory(started_at=NOW - 500, settings=Settings(), shapes={})
    scaler = Scaler(began=NOW - 400, at=NOW - 1, wants=((NOW - 5, 4),), idle_since=NOW - 100, replaced_at=NOW - 60)
    memory.last_plan = Plan(scalers={"cpu": scaler})
    memory.starts["cpu-0"] = Start(NOW - 8)
    memory.crashed_at["cpu-0"] = (NOW - 3,)
    memory.used[Key("m", 1)] = memory.demand[Key("m", 1)] = NOW - 2
    now = NOW + step_s
    memory.clock_stepped(step_s, now)
    scaler = memory.last_plan.scalers["cpu"]
    idle_since = scaler.idle_since
    assert idle_since is not None and scaler.began is not None
    ages = [scaler.began, scaler.at, scaler.wants[0][0], idle_since, scaler.replaced_at, memory.starts["cpu-0"].began]
    assert [now - each for each in ages] == pytest.approx([400, 1, 5, 100, 60, 8])
    assert [now - each for each in (*memory.crashed_at["cpu-0"], *memory.used.values())] == pytest.approx([3, 2])
    assert memory.demand == memory.used
