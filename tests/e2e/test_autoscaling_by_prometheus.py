"""Replicas follow the load as a Prometheus tells it, to nothing and back; while it is away none of them is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.system import Load, System, eventually
from tests.prometheus import programs

DEFINITION = """\
fleets:
- name: cpu
  replicas: {{min: 0, max: 2}}
  scaling: {{queue_ms: 60, down_after_s: 2, idle_s: 4}}
  memory_bytes: 1Gi
metrics: {{source: prometheus, program: {program}}}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("auto"), DEFINITION.format(program=programs() / "prometheus"))
    try:
        made.up()
        yield made
    finally:
        made.down()


def why(system: System) -> str:
    return str(system.told("/v1/fleets/cpu/explain"))


def blind_s(system: System) -> float:
    """How old the last measurement is, as the controller says it; 0 where it finds it fresh."""
    found = re.search(r"without a fresh measurement \(the last is (\d+) s old\)", why(system))
    return float(found[1]) if found else 0.0


def problems(system: System) -> dict[str, str]:
    found: dict[str, str] = system.ok("status", "-o", "json").json()["problems"]
    return found


def ready(system: System) -> set[str]:
    return {name for name, each in system.replicas().items() if each["server"] == "ready" and not each["stopping"]}


@pytest.mark.timeout(900)  # more than all that it waits for may take
def test_replicas_follow_the_load_and_prometheus_may_go_and_come_back(system: System) -> None:
    system.serve("slow", delay_s=0.04)
    eventually(lambda: not system.replicas(), 120, "none while nothing is asked")
    with Load(system.client, "slow", clients=12) as load:
        eventually(lambda: len(system.replicas()) == 2, 120, "a second one begins")
        system.kill("prometheus.yml")  # in the middle of growing
        eventually(lambda: len(system.holders("slow", 1)) == 2, 120, "two replicas under load")
        eventually(lambda: system.processes("prometheus.yml"), 60, "it is not started again")
        eventually(lambda: "busy" in why(system), 60, "the load is not seen again")
        load.more(200)
        assert len(ready(system)) == 2

        (keeper,) = system.processes("controlplane.metrics.program")
        keeper.suspend()  # it starts no other one for now
        system.kill("prometheus.yml")
        eventually(lambda: blind_s(system), 60, "nobody says that nothing is known")
        # A measurement may have been old already, when Prometheus was killed: the next question finds it away.
        eventually(lambda: "no connection" in problems(system).get("Prometheus", ""), 60, "it is not said to be away")
        load.more(200)
        assert len(ready(system)) == 2

    assert not load.failures
    # Nothing is asked any more, and nobody knows. For longer than that would have taken to make the fleet empty:
    eventually(lambda: blind_s(system) > 20, 60, "it does not say for how long it knows nothing")
    assert len(ready(system)) == 2

    keeper.resume()
    with Load(system.client, "slow", clients=1, pause_s=0.3) as load:
        eventually(lambda: "busy" in why(system), 60, "the load is seen again")
        eventually(lambda: len(ready(system)) == 1, 120, "one replica when the load is small")
        system.kill("controlplane.metrics.program")  # while the other one leaves
        eventually(lambda: len(system.replicas()) == 1, 120, "it does not leave")
        eventually(lambda: system.processes("controlplane.metrics.program"), 60, "who runs it is not started again")
        eventually(lambda: "busy" in why(system), 60, "the load is not seen any more")
    assert not load.failures
    eventually(lambda: not system.replicas(), 120, "none when nothing is asked")
    assert "nothing has been asked" in why(system)
    assert problems(system) == {}
