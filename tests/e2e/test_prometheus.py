"""A system whose signals come from a Prometheus of its own, with real Tritons under a real load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tritonclient.utils import InferenceServerException

from controlplane.server.measuring import STEP_S
from tests.e2e.system import Load, System, eventually
from tests.prometheus import programs

DEFINITION = """\
fleets: [{{name: cpu, replicas: 1, memory_bytes: 1Gi}}]
metrics: {{source: prometheus, program: {program}}}
"""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("prometheus"), DEFINITION.format(program=programs() / "prometheus"))
    try:
        made.up()
        made.serve("slow", delay_s=0.01)
        yield made
    finally:
        made.down()


def measured(system: System, *, since: float) -> dict[str, Any] | None:
    """What `/v1/top` says of the model, once that was scraped later than `since` and shows a load."""
    now, top = time.time(), system.told_if_there("/v1/top")
    for model in top["models"] if top else ():
        age_s = model["measured_s_ago"]
        if age_s is not None and now - age_s > since and model["requests_per_s"]:
            found: dict[str, Any] = model
            return found
    return None


def query(system: System, text: str) -> list[Any]:
    url = system.ok("status", "-o", "json").json()["prometheus"]
    answer = httpx2.get(f"{url}/api/v1/query", params={"query": text}, trust_env=False)
    found: list[Any] = answer.json()["data"]["result"]
    return found


def test_a_load_is_seen_through_prometheus(system: System) -> None:
    with Load(system.client, "slow", clients=4) as load:
        began = time.time()
        model = eventually(lambda: measured(system, since=began), what="no fresh load")
        assert model["in_flight"] > 0 and model["batch_size"] >= 1
        rule = eventually(lambda: query(system, 'triton:duty_cycle{model="slow"}'), what="no recorded duty cycle")
        assert rule[0]["metric"]["replica"] == "cpu-0" and rule[0]["metric"]["fleet"] == "cpu"
        eventually(
            lambda: len(query(system, "up == 1")) == 3, what="not all of replica, controller, gateway are scraped"
        )
    assert not load.failures
    assert "signals come from it" in system.ok("status").out


def test_what_fails_is_recorded_by_model_and_by_replica(system: System) -> None:
    system.serve("sour", execute="raise RuntimeError('sour')")
    # Of a gateway that has been scraped for less, the rates of what is new are extrapolated.
    eventually(lambda: query(system, "envoy_server_live offset 30s"), 120, "the gateway is not scraped for long enough")
    for _ in range(15):
        with pytest.raises(InferenceServerException, match="sour"):
            system.ask("sour")

    def recorded() -> dict[str, float]:
        """A burst, which ends before it is scraped twice, is not overlooked."""
        return {each["metric"]["model"]: float(each["value"][1]) for each in query(system, "gateway:errors:rate30s")}

    errors = eventually(lambda: recorded() if recorded().get("sour") else None, what="no recorded errors")
    assert errors["sour"] <= 15 / 30 + 0.01 and errors.get("slow", 0.0) == 0.0
    where = query(system, 'gateway:replica_errors:rate30s{model="sour"}')
    assert [each["metric"]["replica"] for each in where] == ["cpu-0"]
    assert query(system, 'gateway:requests:rate30s{model="sour",version="1"}')


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("prometheus.yml",), id="Prometheus"),
        pytest.param(("controlplane.metrics.program",), id="its keeper"),
        pytest.param(("controlplane.server",), id="the controller, which then answers elsewhere"),
    ],
)
def test_after_a_kill_requests_go_on_and_the_load_is_seen_again(system: System, words: tuple[str, ...]) -> None:
    with Load(system.client, "slow", clients=2) as load:
        # Whoever keeps Prometheus begins with another one.
        follows = ("prometheus.yml",) if words == ("controlplane.metrics.program",) else words
        seen = {each.pid for each in system.processes(*follows)}
        system.kill(*words)
        killed_at = time.time()
        eventually(lambda: {each.pid for each in system.processes(*follows)} - seen, what="it is not started again")
        eventually(lambda: len(system.processes("prometheus.yml")) == 1, what="one, and no more")
        eventually(lambda: measured(system, since=killed_at + STEP_S), what="no fresh load afterwards")
        eventually(lambda: (system.told_if_there("/v1/status") or {"problems": "away"})["problems"] == {})
    assert not load.failures
    assert len(system.processes("prometheus.yml")) == 1


def test_nothing_is_left(system: System) -> None:
    system.ok("down")
    assert not system.processes()
