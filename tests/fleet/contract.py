"""What every fleet backend does. Its tests are collected where a `make` fixture says which backend is meant."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from controlplane.core.models import FleetShape
from controlplane.fleet.protocol import FleetBackend, News

CPU = FleetShape(name="cpu", disk_bytes=1 << 30)
OTHER = FleetShape(name="other", disk_bytes=1 << 30)


class Make(Protocol):
    """Makes the backend anew, as a controller that starts does; all of them see the same replicas."""

    async def __call__(self) -> FleetBackend: ...

    async def settled(self, backend: FleetBackend) -> None:
        """Wait until replicas have the names that they keep, and nobody is on the way out."""


async def names(make: Make, backend: FleetBackend) -> dict[str, str]:
    """The replicas, each with its fleet, once everything has settled."""
    await make.settled(backend)
    found = await backend.list()
    assert all(each.state == "running" for each in found)
    return {each.name: each.fleet for each in found}


async def test_replicas_are_there_from_start_to_removal(make: Make) -> None:
    backend = await make()
    assert await backend.list() == ()
    await backend.start(CPU, "cpu-0")
    await backend.start(OTHER, "other-0")
    assert Counter(each.fleet for each in await backend.list()) == {"cpu": 1, "other": 1}, "at once, by whatever name"
    found = await names(make, backend)
    assert sorted(found.values()) == ["cpu", "other"]
    (cpu,) = (name for name, fleet in found.items() if fleet == "cpu")
    (other,) = (name for name, fleet in found.items() if fleet == "other")
    await backend.remove(cpu)
    assert await names(make, backend) == {other: "other"}
    await backend.remove(other)
    assert await names(make, backend) == {}


async def test_everything_may_be_asked_twice(make: Make) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    await backend.start(CPU, "cpu-0")
    (name,) = await names(make, backend)
    await backend.remove(name)
    await backend.remove(name)
    await backend.remove("never-there")
    assert await names(make, backend) == {}


async def test_the_one_that_is_named_goes(make: Make) -> None:
    backend = await make()
    for number in range(3):
        await backend.start(CPU, f"cpu-{number}")
    first, second, third = sorted(await names(make, backend))
    await backend.remove(second)
    await backend.remove(second)
    assert sorted(await names(make, backend)) == [first, third]


async def test_the_next_controller_finds_them(make: Make) -> None:
    first = await make()
    await first.start(CPU, "cpu-0")
    found = await names(make, first)
    second = await make()
    assert await names(make, second) == found and list(found.values()) == ["cpu"]
    await second.remove(*found)
    assert await names(make, await make()) == {}


async def test_a_name_can_be_used_again(make: Make) -> None:
    backend = await make()
    await backend.start(CPU, "cpu-0")
    await backend.remove(*await names(make, backend))
    assert await names(make, backend) == {}
    await backend.start(CPU, "cpu-0")
    assert list((await names(make, backend)).values()) == ["cpu"]


async def test_nobody_else_has_set_a_size_at_first(make: Make) -> None:
    backend = await make()
    assert backend.notes() == {}
    await backend.start(CPU, "cpu-0")
    await names(make, backend)
    assert backend.notes() == {}


async def test_news_of_who_is_not_there_harm_nobody(make: Make) -> None:
    backend = await make()
    backend.tell(News(fleet="never-there", code="SCALING", text="to none"))
    backend.tell(News(fleet="never-there", replica="never-there-0", code="LEAVING", text="it leaves", warning=True))
    backend.tell(News(fleet="cpu", replica="never-there", code="LEAVING", text="it leaves"))
    await backend.start(CPU, "cpu-0")
    assert list((await names(make, backend)).values()) == ["cpu"]
