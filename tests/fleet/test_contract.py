"""What every fleet backend does."""

from __future__ import annotations

from controlplane.core.models import FleetShape
from controlplane.fleet.protocol import FleetReplica
from tests.fleet.conftest import Make

CPU = FleetShape(name="cpu", disk_bytes=1 << 30)
OTHER = FleetShape(name="other", disk_bytes=1 << 30)


async def test_replicas_are_there_from_start_to_removal(make: Make) -> None:
    backend = make()
    assert await backend.list() == ()
    await backend.start(CPU, "cpu-0")
    await backend.start(OTHER, "other-0")
    assert await backend.list() == (
        FleetReplica(name="cpu-0", fleet="cpu"),
        FleetReplica(name="other-0", fleet="other"),
    )
    await backend.remove("cpu-0")
    assert await backend.list() == (FleetReplica(name="other-0", fleet="other"),)
    await backend.remove("other-0")
    assert await backend.list() == ()


async def test_everything_may_be_asked_twice(make: Make) -> None:
    backend = make()
    await backend.start(CPU, "cpu-0")
    await backend.start(CPU, "cpu-0")
    assert await backend.list() == (FleetReplica(name="cpu-0", fleet="cpu"),)
    await backend.remove("cpu-0")
    await backend.remove("cpu-0")
    await backend.remove("never-there")
    assert await backend.list() == ()


async def test_the_next_controller_finds_them(make: Make) -> None:
    await make().start(CPU, "cpu-0")
    assert await make().list() == (FleetReplica(name="cpu-0", fleet="cpu"),)
    await make().remove("cpu-0")
    assert await make().list() == ()


async def test_a_name_can_be_used_again(make: Make) -> None:
    backend = make()
    await backend.start(CPU, "cpu-0")
    await backend.remove("cpu-0")
    await backend.start(CPU, "cpu-0")
    assert await backend.list() == (FleetReplica(name="cpu-0", fleet="cpu"),)
