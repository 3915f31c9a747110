"""The agent's client of a Triton whose connection is gone."""

from __future__ import annotations

import pytest
from tritonclient.grpc import service_pb2

from controlplane.agent.server import ServerDied
from controlplane.agent.triton.client import TritonClient


async def test_a_call_on_a_closed_connection_says_that_the_server_died() -> None:
    """Whoever ended a server closes its client; others may be about to use it."""
    client = TritonClient("127.0.0.1", 1)
    await client.close()
    with pytest.raises(ServerDied):
        await client.use()
    with pytest.raises(ServerDied):
        await client.infer_stream(service_pb2.ModelInferRequest(), 1.0)
