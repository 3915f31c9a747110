"""Models of which more is asked than their copies can do, as the route table has them."""

from __future__ import annotations

from controlplane.core.load import Load
from controlplane.core.names import Key
from controlplane.core.routes import Pace, RouteTable
from tests.core.world import World, promoted

PACE = Pace(per_s=20.0, at_once=1)


def table(world: World) -> RouteTable:
    world.run(5)
    return world.gateways["gw-0"].table


def pool(table: RouteTable, key: Key) -> str:
    found = table.routes[key.model].pinned[key.version]
    assert found is not None
    assert table.routes[key.model].targets[0].pool == found
    return found


def test_it_has_a_pool_of_its_own_until_that_is_over() -> None:
    world = World()
    a, b, c = (promoted(world, name) for name in "abc")
    before = table(world)
    assert (len(before.pools), before.crowded) == (1, {})

    world.load = Load(at=world.now, step_s=2.0, crowded={a: PACE, b: PACE})
    crowded = table(world)
    assert crowded.crowded == {pool(crowded, a): PACE, pool(crowded, b): PACE}
    assert {crowded.pools[pool(crowded, key)] for key in (a, b, c)} == {("cpu-0", "cpu-1")}
    assert len({pool(crowded, key) for key in (a, b, c)}) == 3
    assert pool(crowded, c) == pool(before, c)

    world.load = Load(at=world.now, step_s=2.0)
    after = table(world)
    assert (after.pools, after.crowded, after.routes) == (before.pools, before.crowded, before.routes)


def test_what_the_gateways_go_by_stays_while_nobody_knows() -> None:
    world = World()
    key = promoted(world)
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, crowded={key: PACE})
    crowded = table(world).crowded
    assert crowded

    world.restart_controller()
    assert table(world).crowded == crowded, "a new controller has not measured anything"
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, crowded=None)
    assert table(world).crowded == crowded, "nor all that there is"
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, complete=False)
    assert not table(world).crowded


def test_only_what_is_served_counts() -> None:
    world = World()
    promoted(world)
    world.load = Load(at=world.now, step_s=2.0, crowded={Key("m", 7): PACE, Key("other", 1): PACE})
    assert not table(world).crowded
