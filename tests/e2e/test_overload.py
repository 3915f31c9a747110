"""More is asked of one model than its replica can do: little of it waits, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.system import Load, System, eventually

DEFINITION = "fleets: [{name: cpu, replicas: 1, memory_bytes: 1Gi}]"
REFUSED = "have as many requests in flight as they may have"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("overload"), DEFINITION, gateway="max_wait_s: 2")
    try:
        made.up()
        yield made
    finally:
        made.down()


def waiting(system: System) -> float:
    (copy,) = system.told("/v1/models/slow/explain")["copies"]
    return float(copy["signals"]["waiting"])


def test_of_a_slow_model_little_waits_and_others_are_not_refused(system: System) -> None:
    system.serve("slow", execute="time.sleep(0.05)")  # not more than 20 a second
    system.serve("quick")
    quick, slow = (
        Load(system.client, name, clients=count, pause_s=0.1) for name, count in (("quick", 2), ("slow", 100))
    )
    with quick, slow:
        eventually(lambda: slow.failures, 120, "nothing is refused")
        eventually(lambda: 0 < waiting(system) <= 50, 120, "more waits than is done in two seconds")
        quick.more(50)
        reasons = {each["code"]: each["text"] for each in system.told("/v1/models/slow/explain")["reasons"]}
        assert "CROWDED" in reasons
        assert "refused since there was too much" in reasons["FAILING"]
        slow.more(5)
    assert not quick.failures
    assert all(REFUSED in text and "RESOURCE_EXHAUSTED" in text for _, text in slow.failures)
    assert system.ask("slow")[0] == 6.0
