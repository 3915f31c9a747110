"""The official clients through the gateway: names, versions, refusals, streams, sequences, large tensors."""

from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

from controlplane.core.routes import RouteTable
from tests.gateway.asking import ask, ask_http, stream
from tests.gateway.running import Running


@pytest.fixture(scope="module", autouse=True)
def served(gateway: Running, full_table: RouteTable) -> None:
    gateway.controller.put(full_table)


def test_versions_over_grpc(gateway: Running) -> None:
    with gateway.grpc() as client:
        assert ask(client, "echo") == 2
        assert ask(client, "echo", "1") == 1
        assert ask(client, "echo", headers={"x-model-name": "echo"}) == 2
        with pytest.raises(InferenceServerException, match="NOT_FOUND.*echo/3"):
            ask(client, "echo", "3")
        with pytest.raises(InferenceServerException, match="NOT_FOUND.*nobody"):
            ask(client, "nobody")
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT.*says other.*says echo"):
            ask(client, "echo", headers={"x-model-name": "other"})
