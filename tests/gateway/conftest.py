"""Real parts for the gateway's tests: two Tritons for the whole run, a gateway a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.core.routes import RouteTable
from tests.gateway.running import Running, route, table
from tests.gateway.triton import MODELS, Gate, Triton


@pytest.fixture(scope="session")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Triton, Triton]]:
    """Two servers with all models, which tests leave as they are."""
    folder = tmp_path_factory.mktemp("tritons")
    servers = [Triton(name, folder, tuple(MODELS)) for name in ("r1", "r2")]
    try:
        yield servers[0].wait(), servers[1].wait()
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def gate(tritons: tuple[Triton, Triton]) -> Iterator[Gate]:
    """Shut: `slow` answers nothing until the test opens it."""
    gate = Gate(tritons)
    yield gate
    gate.open()
    gate.shut()


@pytest.fixture(scope="session")
def full_table(tritons: tuple[Triton, Triton]) -> RouteTable:
    """All models on both servers: `echo` at 2 with 1 pinned besides, though 3 is loaded too."""
    return table(
        *(each.endpoint for each in tritons),
        echo=route("echo", 2, 1),
        other=route("other"),
        repeat=route("repeat"),
        slow=route("slow"),
        sum=route("sum", idle_s=60.0),
        sumtext=route("sumtext", idle_s=60.0),
    )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A running gateway."""
    running = Running(tmp_path_factory.mktemp("gateway"))
    try:
        yield running
    finally:
        running.stop()
