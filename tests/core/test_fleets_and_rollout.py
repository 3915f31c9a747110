"""Which fleet an entry goes to, what a copy takes, and how a rollout is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.entry import Entry
from controlplane.core.errors import STATUS, ControlPlaneError
from controlplane.core.fleets import BASE_COPY_BYTES, copy_bytes, fleet_of
from controlplane.core.models import ArtifactFile, FleetRecord, FleetShape, Manifest, Rollout, Step
from controlplane.core.names import Key, Reason
from controlplane.core.rollout import TargetState, progress
from controlplane.core.routes import Route, RouteTable, Target
from tests.core.world import at, manifest

KEY = Key("m", 2)
ROLLOUT = Rollout(id="r", source=1, target=2, actor="test", started_at=at(1000), deadline_s=60)


def record(name: str, *, default: bool = False) -> FleetRecord:
    return FleetRecord(shape=FleetShape(name=name, default=default))


@pytest.mark.parametrize(
    ("wanted", "fleets", "expected"),
    [
        pytest.param("cpu", [record("cpu"), record("gpu")], "cpu", id="named"),
        pytest.param(None, [record("cpu")], "cpu", id="the only one"),
        pytest.param(None, [record("cpu"), record("gpu", default=True)], "gpu", id="the default"),
        pytest.param("tpu", [record("cpu"), record("gpu")], "NOT_FOUND", id="an unknown name"),
        pytest.param(None, [record("cpu"), record("gpu")], "INVALID", id="no choice is clear"),
        pytest.param(None, [], "INVALID", id="no fleet at all"),
    ],
)
def test_fleet_of(wanted: str | None, fleets: list[FleetRecord], expected: str) -> None:
    entry = Entry(name="m", backend="python", fleet=wanted)
    by_name = {each.shape.name: each for each in fleets}
    try:
        assert fleet_of(entry, by_name) == expected
    except ControlPlaneError as error:
        assert error.code == expected
        assert error.field == "fleet" and error.remedy
        assert all(name in str(error) for name in by_name), "it lists what there is"


def test_stated_beats_measured_beats_estimated() -> None:
    stated = manifest("m", size_mib=7)
    silent = Manifest(
        entry=Entry(name="m", backend="python"), files=(ArtifactFile(path="model.py", sha256="0", size_bytes=100),)
    )
    measured = replace(record("cpu"), measured_bytes={"d": 5})
    assert copy_bytes(stated, "d", measured) == 7 << 20
    assert copy_bytes(silent, "d", measured) == 5
    assert copy_bytes(silent, "other", measured) == BASE_COPY_BYTES + 200


def table(*targets: Target) -> RouteTable:
    return RouteTable(routes={"m": Route(model="m", targets=targets)})


SERVED = table(Target(version=2, pool="p"))
READY = TargetState(planned=("r0", "r1"), ready=("r0", "r1"))


@pytest.mark.parametrize(
    ("state", "tables", "now", "expected"),
    [
        pytest.param(READY, [SERVED], 1001, (100, "succeeded", "SERVED"), id="confirmed by all"),
        pytest.param(READY, [], 1001, (100, "succeeded", "SERVED"), id="no gateway is there"),
        pytest.param(READY, [SERVED, table()], 1001, (100, None, "CONFIRMING"), id="one has not switched"),
        pytest.param(READY, [None], 1001, (100, None, "CONFIRMING"), id="one has not said"),
        pytest.param(
            READY, [table(Target(version=2, pool=None))], 1001, (100, None, "CONFIRMING"), id="led there, but cold"
        ),
        pytest.param(
            TargetState(planned=("r0", "r1"), ready=("r0",), waiting="r1 loads"),
            [SERVED],
            1001,
            (0, None, "LOADING"),
            id="one replica is not ready",
        ),
        pytest.param(READY, [None], 1061, (0, "failed", "DEADLINE"), id="never confirmed"),
        pytest.param(TargetState(), [SERVED], 1001, (0, None, "LOADING"), id="nothing is planned"),
        pytest.param(TargetState(waiting="disk"), [SERVED], 1061, (0, "failed", "DEADLINE"), id="too late"),
        pytest.param(
            TargetState(failed=Reason(code="LOAD_FAILED", text="bad")), [], 1001, (0, "failed", "LOAD_FAILED"), id="bad"
        ),
        pytest.param(
            TargetState(blocked=Reason(code="TOO_LARGE", text="big")),
            [],
            1001,
            (0, "failed", "TOO_LARGE"),
            id="blocked",
        ),
    ],
)
def test_progress(
    state: TargetState, tables: list[RouteTable | None], now: float, expected: tuple[int, str | None, str]
) -> None:
    result = progress(ROLLOUT, KEY, state, tables, now)
    assert (result.weight_percent, result.end, result.reason.code) == expected


def test_a_step_of_less_than_all_does_not_end_the_rollout() -> None:
    canary = replace(ROLLOUT, steps=(Step(weight_percent=10), Step()))
    result = progress(canary, KEY, READY, [SERVED], 1001)
    assert (result.weight_percent, result.end) == (10, None)


def test_every_code_has_a_status() -> None:
    def codes(family: type[ControlPlaneError]) -> set[str]:
        return {family.code}.union(*(codes(each) for each in family.__subclasses__()))

    assert codes(ControlPlaneError) == set(STATUS)
