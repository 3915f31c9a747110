"""A replica that is gone without a word: what it had is served elsewhere, the important first; all when it is back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.system import System, eventually

DEFINITION = "fleets: [{name: cpu, replicas: 2, memory_bytes: 220Mi}]"
"""Each has room for three models."""
NORMAL = ("n1", "n2", "n3", "n4", "n5")


@pytest.mark.timeout(600)
def test_the_models_of_a_lost_replica_return_by_priority(tmp_path: Path) -> None:
    system = System(tmp_path, DEFINITION)
    try:
        system.up()
        for name in NORMAL:
            system.serve(name)
        system.serve("important", more="serving: {priority: high}")
        every = {*NORMAL, "important"}
        (lost,) = eventually(lambda: system.holders("important", 1), 60)
        eventually(lambda: all(len(system.holders(name, 1)) == 1 for name in every), 60, "each is somewhere")
        (left,) = set(system.replicas()) - {lost}

        (agent,) = system.processes("controlplane.agent", lost)
        agent.suspend()
        (server,) = system.processes("tritonserver", lost)
        server.kill()
        eventually(lambda: left in system.holders("important", 1), 120, "the important one is not served elsewhere")
        assert system.ask("important")[0] == 6.0
        assert sum(left in system.holders(name, 1) for name in NORMAL) == 2, "one has left for it"

        agent.resume()
        eventually(lambda: lost in system.holders("important", 1), 120, "it does not come back")
        assert [system.ask(name)[0] for name in sorted(every)] == [6.0] * 6, "also the one that has left"
    finally:
        system.down()
