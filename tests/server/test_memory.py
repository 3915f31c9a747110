"""What the controller remembers of whom it has heard."""

from __future__ import annotations

from controlplane.core.messages import GatewayReport
from controlplane.core.snapshot import Settings
from controlplane.server.memory import HeardGateway, Memory

NOW = 1000.0
LIVE_S = Settings().gateway_live_s


def test_a_silent_gateway_is_forgotten_once_it_is_known_to_be_gone() -> None:
    memory = Memory(started_at=0.0, settings=Settings(), shapes={})
    for name, silent_s in (("there", LIVE_S + 1), ("gone", LIVE_S + 1), ("young", LIVE_S - 1)):
        report = GatewayReport(gateway=name, incarnation="one", epoch=1, generation=1)
        memory.gateways[name] = HeardGateway(report, NOW - silent_s)
    memory.forget_gateways(None, NOW)
    assert set(memory.gateways) == {"there", "gone", "young"}, "unknown is not gone"
    memory.forget_gateways(["there"], NOW)
    assert set(memory.gateways) == {"there", "young"}, "the backend may not have seen the young one yet"
