"""Which fleet an entry goes to, what a copy takes, and how a rollout is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.entry import Entry
from controlplane.core.errors import STATUS, ControlPlaneError
from controlplane.core.fleets import BASE_COPY_BYTES, copy_bytes, fleet_of, memory_told
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


SILENT = Manifest(
    entry=Entry(name="m", backend="python"), files=(ArtifactFile(path="model.py", sha256="0", size_bytes=100),)
)


@pytest.mark.parametrize(
    ("stated_mib", "measured_mib", "expected_mib", "told"),
    [
        pytest.param(7, None, 7, "", id="stated"),
        pytest.param(None, 5, 5, "", id="measured"),
        pytest.param(7, 5, 7, "states 7 MiB of memory, and 5 MiB were measured", id="more was stated"),
        pytest.param(100, 150, 150, "states 100 MiB of memory, and 150 MiB were measured", id="more was measured"),
        pytest.param(100, 110, 110, "", id="hardly more"),
        pytest.param(100, 5000, 1000, "1000 MiB", id="no more than a replica has"),
        pytest.param(2000, 5000, 2000, "1000 MiB", id="though more is stated"),
    ],
)
def test_the_larger_of_stated_and_measured_counts(
    stated_mib: int | None, measured_mib: int | None, expected_mib: int, told: str
) -> None:
    version = manifest("m", size_mib=stated_mib) if stated_mib is not None else SILENT
    shape = FleetShape(name="cpu", memory_bytes=1000 << 20)
    measured = {"d": measured_mib << 20} if measured_mib is not None else {}
    on = FleetRecord(shape=shape, measured_bytes=measured)
    assert copy_bytes(version, "d", on) == expected_mib << 20
    reason = memory_told(KEY, version, "d", on)
    assert bool(told) is (reason is not None)
    assert reason is None or (told in reason.text and "fleet cpu" in reason.text)
    assert copy_bytes(SILENT, "other", on) == BASE_COPY_BYTES + 200


def table(*targets: Target) -> RouteTable:
    return RouteTable(routes={"m": Route(model="m", targets=targets)})


SERVED = table(Target(version=2, pool="p"))
READY = TargetState(planned=("r0", "r1"), ready=("r0", "r1"))


@pytest.mark.parametrize(
    ("state", "tables", "known_s", "expected"),
    [
        pytest.param(READY, [SERVED], 1, (100, "succeeded", "SERVED"), id="confirmed by all"),
        pytest.param(READY, [], 1, (100, "succeeded", "SERVED"), id="no gateway is there"),
        pytest.param(READY, [SERVED, table()], 1, (100, None, "CONFIRMING"), id="one has not switched"),
        pytest.param(READY, [None], 1, (100, None, "CONFIRMING"), id="one has not said"),
        pytest.param(
            READY, [table(Target(version=2, pool=None))], 1, (100, None, "CONFIRMING"), id="led there, but cold"
        ),
        pytest.param(
            TargetState(planned=("r0", "r1"), ready=("r0",), waiting="r1 loads"),
            [SERVED],
            1,
            (0, None, "LOADING"),
            id="one replica is not ready",
        ),
        pytest.param(READY, [None], 61, (0, "failed", "DEADLINE"), id="never confirmed"),
        pytest.param(TargetState(), [SERVED], 1, (0, None, "LOADING"), id="nothing is planned"),
        pytest.param(TargetState(waiting="disk"), [SERVED], 61, (0, "failed", "DEADLINE"), id="too late"),
        pytest.param(
            TargetState(failed=Reason(code="LOAD_FAILED", text="bad")), [], 1, (0, "failed", "LOAD_FAILED"), id="bad"
        ),
        pytest.param(
            TargetState(blocked=Reason(code="TOO_LARGE", text="big")),
            [],
            1,
            (0, "failed", "TOO_LARGE"),
            id="blocked",
        ),
    ],
)
def test_progress(
    state: TargetState, tables: list[RouteTable | None], known_s: float, expected: tuple[int, str | None, str]
) -> None:
    result = progress(ROLLOUT, KEY, state, tables, known_s)
    assert (result.weight_percent, result.end, result.reason.code) == expected


def test_a_step_of_less_than_all_does_not_end_the_rollout() -> None:
    canary = replace(ROLLOUT, steps=(Step(weight_percent=10), Step()))
    result = progress(canary, KEY, READY, [SERVED], 1)
    assert (result.weight_percent, result.end) == (10, None)


def test_every_code_has_a_status() -> None:
    def codes(family: type[ControlPlaneError]) -> set[str]:
        return {family.code}.union(*(codes(each) for each in family.__subclasses__()))

    assert codes(ControlPlaneError) == set(STATUS)
