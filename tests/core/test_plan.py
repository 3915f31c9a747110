"""The plan, through a pretended world: what users see of promoting, failing, sharing memory, and restarting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.core.entry import Serving
from controlplane.core.load import Load
from controlplane.core.messages import Demand
from controlplane.core.names import Key
from tests.core.world import World, ensemble, manifest, promoted


def test_a_promoted_version_is_on_every_replica_and_routed() -> None:
    world = World(replicas=2)
    key = promoted(world)
    assert world.stable("m") == 1
    assert world.served(key) == {"cpu-0", "cpu-1"}
    route = world.gateways["gw-0"].table.routes["m"]
    assert [target.version for target in route.targets] == [1]


def test_a_new_version_is_tried_on_one_replica_first() -> None:
    world = World(replicas=3)
    promoted(world)
    second = world.registry.register(manifest("m"), world.now)
    world.registry.promote(second, world.now)
    held = set()
    while not world.plan.holds or not any(
        second in replica.copies and replica.copies[second].state == "ready" for replica in world.replicas.values()
    ):
        world.turn()
        held |= {replica.name for replica in world.replicas.values() if second in replica.copies}
    assert len(held) == 1
    world.run()
    assert world.stable("m") == 2
    assert world.served(second) == {"cpu-0", "cpu-1", "cpu-2"}


def test_what_was_stable_stays_warm_and_then_leaves() -> None:
    world = World()
    first = promoted(world)
    second = world.registry.register(manifest("m"), world.now)
    world.registry.promote(second, world.now)
    world.run(20)
    assert world.stable("m") == 2
    assert world.served(first) == {"cpu-0", "cpu-1"}
    world.run(120)
    assert world.served(first) == set()
    assert all(first not in replica.copies for replica in world.replicas.values())
    assert 1 not in world.gateways["gw-0"].table.routes["m"].pinned


@pytest.mark.parametrize("blames", ["model", "crash"])
def test_a_bad_target_ends_the_rollout_and_leaves_stable_alone(blames: str) -> None:
    world = World()
    first = promoted(world)
    second = world.registry.register(manifest("m"), world.now)
    world.bad[second] = blames
    world.registry.promote(second, world.now)
    tried: set[str] = set()
    for _ in range(100):
        world.run(1)
        tried |= {name for name, replica in world.replicas.items() if second in replica.copies}
    assert len(tried) == 1, "it is tried on one replica only"
    rollout = world.registry.models["m"].rollout
    assert rollout is not None and rollout.state == "failed"
    assert "it is bad" in rollout.reason
    assert world.stable("m") == 1
    assert world.served(first) == {"cpu-0", "cpu-1"}
    assert all(second not in replica.copies for replica in world.replicas.values())
    quarantined = {each.version for each in world.registry.fleets["cpu"].quarantines}
    assert quarantined == ({2} if blames == "crash" else set())


def test_a_quarantine_takes_nothing_away_that_serves() -> None:
    world = World()
    key = world.registry.register(manifest("m"), world.now)
    world.registry.promote(key, world.now)
    world.run()
    assert world.served(key) == {"cpu-0", "cpu-1"}
    crashed = world.replicas["cpu-0"]
    crashed.copies[key] = replace(crashed.copies[key], state="failed", blames="crash", reason="it died of it")
    world.run()
    assert [each.version for each in world.registry.fleets["cpu"].quarantines] == [1]
    assert world.served(key) == {"cpu-1"}
    assert key not in crashed.copies
    world.replicas["cpu-1"].crash()
    world.run()
    assert world.served(key) == {"cpu-1"}, "it comes back where it was, for nobody says that it failed there"
    world.registry.fleets["cpu"] = replace(world.registry.fleets["cpu"], quarantines=())
    world.run()
    assert world.served(key) == {"cpu-0", "cpu-1"}


def test_a_version_that_nobody_else_serves_is_quarantined_at_once_and_refused_for_as_long() -> None:
    world = World(replicas=1)
    key = world.registry.register(manifest("m"), world.now)
    world.registry.promote(key, world.now)
    world.run()
    only = world.replicas["cpu-0"]
    only.copies[key] = replace(only.copies[key], state="failed", blames="crash", reason="it died of it")
    world.run()
    assert [each.version for each in world.registry.fleets["cpu"].quarantines] == [1]
    route = world.gateways["gw-0"].table.routes["m"]
    assert route.refused == (1,) and "`ctl unquarantine m@1` lifts it" in route.reasons[1]
    world.registry.fleets["cpu"] = replace(world.registry.fleets["cpu"], quarantines=())
    world.run()
    assert world.served(key) == {"cpu-0"} and not world.gateways["gw-0"].table.routes["m"].refused


def test_an_environment_failure_waits_for_the_deadline() -> None:
    world = World()
    key = world.registry.register(manifest("m"), world.now)
    world.bad[key] = "environment"
    world.registry.promote(key, world.now, deadline_s=10)
    world.run(10)
    assert world.registry.models["m"].running_rollout is not None
    world.run(40)
    rollout = world.registry.models["m"].rollout
    assert rollout is not None and rollout.state == "failed" and "it is bad" in rollout.reason


def test_a_version_that_fits_nowhere_fails_at_once_with_the_sizes() -> None:
    world = World(memory_mib=100)
    key = world.registry.register(manifest("m", size_mib=200), world.now)
    world.registry.promote(key, world.now)
    world.run(10)
    rollout = world.registry.models["m"].rollout
    assert rollout is not None and rollout.state == "failed"
    assert "200 MiB" in rollout.reason and "100 MiB" in rollout.reason


def test_clashing_versions_on_one_replica_fail_with_the_reason() -> None:
    world = World(replicas=1)
    world.clash = lambda one, other: "outputs differ"
    promoted(world)
    second = world.registry.register(manifest("m"), world.now)
    world.registry.promote(second, world.now)
    world.run(10)
    rollout = world.registry.models["m"].rollout
    assert rollout is not None and rollout.state == "failed" and "outputs differ" in rollout.reason
    assert world.stable("m") == 1


def test_a_clashing_version_takes_turns_on_the_replicas() -> None:
    world = World(replicas=4)
    world.clash = lambda one, other: "outputs differ"
    first = promoted(world)
    second = world.registry.register(manifest("m"), world.now)
    world.registry.promote(second, world.now)
    fewest = 4
    while world.stable("m") == 1:
        world.turn()
        world.check()
        fewest = min(fewest, len(world.served(first)))
    assert fewest == 2, "half of them serve on until all have the new version"
    world.run(120)
    assert len(world.served(second)) == 4 and not world.served(first)


def test_models_that_want_to_be_apart_share_no_replica() -> None:
    world = World(replicas=2)
    first = promoted(world, "big")
    second = promoted(world, "other", serving=Serving(apart_from=("big",)))
    assert len(world.served(first)) == len(world.served(second)) == 1
    world.resize(3)
    world.run(60)
    assert not world.served(first) & world.served(second)
    assert len(world.served(first) | world.served(second)) == 3


def test_models_beyond_memory_load_on_demand_and_the_least_recently_used_leaves() -> None:
    world = World(replicas=1, memory_mib=250)
    keys = [promoted(world, name) for name in ("a", "b", "c")]
    loaded = {key for key in keys if world.served(key)}
    assert len(loaded) == 2
    (cold,) = set(keys) - loaded
    route = world.gateways["gw-0"].table.routes[cold.model]
    assert [target.pool for target in route.targets] == [None]
    hot = next(iter(sorted(loaded)))
    replica = world.replicas["cpu-0"]
    replica.copies[hot] = replace(replica.copies[hot], last_used_at=world.now)
    world.gateways["gw-0"].demand = (Demand(model=cold.model, version=1, waiting=3),)
    world.run(20)
    world.gateways["gw-0"].demand = ()
    world.run(10)
    assert world.served(cold) == {"cpu-0"}
    assert world.served(hot) == {"cpu-0"}, "the one in use stays"


@pytest.mark.parametrize("anew", [False, True])
def test_what_loads_quickly_leaves_before_what_loads_slowly_also_after_a_restart(anew: bool) -> None:
    """How long loads took is in the fleet's record: a new controller and a new agent need not see them."""
    world = World(replicas=1, memory_mib=250)
    third, slow, quick = Key("another", 1), Key("slow", 1), Key("quick", 1)
    world.load_s = {third: 2.0, slow: 20.0, quick: 2.0}
    for key in (third, slow, quick):
        promoted(world, key.model)
    replica = world.replicas["cpu-0"]
    assert replica.copies.keys() == {slow, quick}
    replica.copies[slow] = replace(replica.copies[slow], last_used_at=world.now - 60)
    replica.copies[quick] = replace(replica.copies[quick], last_used_at=world.now)
    if anew:
        replica.copies = {key: replace(copy, load_s=None) for key, copy in replica.copies.items()}
        world.restart_controller()
        world.run(30)
    world.load = Load(at=world.now, step_s=2.0, use={slow: 5.0, quick: 6.0, third: 1.0})
    ask(world, third)
    assert replica.copies.keys() == {slow, third}
    world.run(30)
    assert replica.copies.keys() == {slow, third}, "nobody asks for the one that has left"


def test_an_always_model_is_not_evicted_for_demand() -> None:
    world = World(replicas=1, memory_mib=150)
    fixed = promoted(world, "fixed", serving=Serving(load="always"))
    other = world.registry.register(manifest("other"), world.now)
    world.registry.promote(other, world.now, deadline_s=5)
    world.run(30)
    assert world.served(fixed) == {"cpu-0"}
    assert world.stable("other") is None


def test_an_ensemble_has_its_steps_beside_it() -> None:
    world = World(replicas=2)
    step = promoted(world, "step", serving=Serving(max_copies=1))
    whole = world.registry.register(ensemble("whole", step), world.now)
    world.registry.promote(whole, world.now)
    world.run()
    assert world.stable("whole") == 1
    for name in world.served(whole):
        assert step in world.replicas[name].copies


def test_a_deleted_version_leaves_after_the_drain() -> None:
    world = World()
    first = promoted(world)
    second = world.registry.register(manifest("m"), world.now)
    world.registry.promote(second, world.now)
    world.run(20)
    world.registry.delete(first, world.now)
    world.run(20)
    assert all(first not in replica.copies for replica in world.replicas.values())


def test_a_retired_model_leaves_with_what_was_kept_warm_of_it() -> None:
    world = World()
    first, second = promoted(world), promoted(world)
    assert world.served(first) and world.served(second), "a moment after the promotion"
    world.registry.retire("m")
    world.run(1)
    assert "m" not in world.plan.table.routes
    world.run(10)
    assert not any(first in each.copies or second in each.copies for each in world.replicas.values())


def test_an_alias_may_be_asked_for_and_is_loaded_by_the_first_request() -> None:
    world = World()
    promoted(world)
    candidate = world.registry.register(manifest("m"), world.now)
    model = world.registry.models["m"]
    world.registry.models["m"] = replace(model, aliases={**model.aliases, "candidate": 2})
    world.run(5)
    assert world.gateways["gw-0"].table.routes["m"].pinned[2] is None
    world.gateways["gw-0"].demand = (Demand(model="m", version=2, waiting=1),)
    world.run(10)
    assert world.served(candidate)


def test_a_manifest_of_another_model_is_not_served() -> None:
    world = World()
    promoted(world)
    foreign = world.registry.register(manifest("m"), world.now)
    world.registry.manifests["m-2"] = manifest("somebody-else")
    world.registry.promote(foreign, world.now)
    world.run(10)
    rollout = world.registry.models["m"].rollout
    assert rollout is not None and rollout.state == "failed" and "somebody-else" in rollout.reason
    assert all(foreign not in replica.copies for replica in world.replicas.values())


# Replicas that are replaced.


def test_a_replica_whose_server_keeps_ending_is_replaced_make_before_break() -> None:
    world = World(replicas=2)
    key = promoted(world)
    for _ in range(3):
        world.replicas["cpu-0"].crash()
        world.run(6)
    assert "cpu-2" in world.replicas, "the new one comes first"
    seen = set()
    for _ in range(60):
        world.run(1)
        seen.add(len(world.served(key)))
    assert set(world.replicas) == {"cpu-1", "cpu-2"}
    assert world.served(key) == {"cpu-1", "cpu-2"}
    assert min(seen) >= 1
    for _ in range(3):
        world.replicas["cpu-2"].crash()
        world.run(6)
    assert set(world.replicas) == {"cpu-1", "cpu-2"}, "not one after the other: the next one has to wait"


def test_a_replica_that_loses_memory_is_replaced_in_a_quiet_moment() -> None:
    world = World(replicas=2)
    promoted(world)
    world.replicas["cpu-1"].leaked_bytes = 200 << 20
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, demand=1.5)
    world.run()
    assert set(world.replicas) == {"cpu-0", "cpu-1"}, "not while it is needed"
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, demand=0.3)
    world.run(80)
    assert set(world.replicas) == {"cpu-0", "cpu-2"}


def test_a_slow_replica_is_replaced_also_when_there_is_much_to_do() -> None:
    world = World(replicas=2)
    key = promoted(world)
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, demand=1.9, slow={"cpu-0": 4.0})
    world.run(3)
    assert set(world.replicas) == {"cpu-0", "cpu-1", "cpu-2"}, "the new one comes first"
    world.run(80)
    assert set(world.replicas) == {"cpu-1", "cpu-2"}
    assert world.served(key) == {"cpu-1", "cpu-2"}
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, demand=1.9, slow={"cpu-1": 4.0})
    world.run(80)
    assert set(world.replicas) == {"cpu-1", "cpu-2"}, "not one after the other: the next one has to wait"


def test_a_hot_model_gets_more_copies_and_a_cold_one_fewer() -> None:
    world = World(replicas=3, memory_mib=150)
    cold, hot = promoted(world, "cold"), promoted(world, "hot")
    assert (len(world.served(cold)), len(world.served(hot))) == (2, 1)
    world.memory.loads["cpu"] = Load(
        at=world.now, step_s=2.0, demand=1.5, copies={hot: 1.5, cold: 0.1}, use={hot: 100.0, cold: 1.0}
    )
    why: dict[str, str] = {}
    for _ in range(80):
        world.run(1)
        told = (each for key in (hot, cold) for each in world.plan.reasons.get(f"version/{key}", ()))
        why = {each.code: each.text for each in told} | why
    assert (len(world.served(cold)), len(world.served(hot))) == (1, 2), "nobody's last copy leaves for it"
    assert why["WAITS_FOR_ROOM"] == "hot@1 waits until cold@1 has left cpu-1"
    assert why["PLACED"] == "hot@1 comes to cpu-1: its load keeps 2 copies busy"


def idle_world(**shape: object) -> World:
    world = World(replicas=1)
    world.shape = replace(world.shape, model_idle_s=60.0, **shape)  # type: ignore[arg-type]
    world.memory.shapes = {"cpu": world.shape}
    return world


def ask(world: World, key: Key) -> None:
    """Somebody waits for it at the gateway until it is served."""
    world.gateways["gw-0"].demand = (Demand(model=key.model, version=key.version, waiting=1),)
    world.run(10)
    world.gateways["gw-0"].demand = ()
    world.run(3)


def test_an_idle_model_leaves_and_the_next_request_loads_it() -> None:
    world = idle_world()
    busy = promoted(world, "busy", serving=Serving(idle_s=1e6))
    fixed = promoted(world, "fixed", serving=Serving(load="always"))
    key = promoted(world)
    world.run(30)
    assert world.served(key) == {"cpu-0"}, "it was promoted a moment ago"
    world.run(120)
    assert world.served(key) == set() and key not in world.replicas["cpu-0"].copies
    assert [each.pool for each in world.gateways["gw-0"].table.routes["m"].targets] == [None]
    assert "not asked for 60 s" in world.gateways["gw-0"].table.routes["m"].reasons[1]
    assert world.served(busy) == world.served(fixed) == {"cpu-0"}
    ask(world, key)
    assert world.served(key) == {"cpu-0"}
    world.run(140)
    assert world.served(key) == set()


def test_where_nobody_serves_it_is_said_why_there_is_nobody() -> None:
    world = World(replicas=1)
    key = promoted(world)
    world.run(30)
    assert world.served(key) == {"cpu-0"}
    world.resize(0)
    world.run(60)
    assert not world.replicas
    why = world.gateways["gw-0"].table.routes["m"].reasons[1]
    assert "the fleet has none running; the deployment asks for 0" in why


def test_an_idle_model_that_is_used_stays_and_survives_its_replica() -> None:
    world = idle_world()
    key = promoted(world)
    for _ in range(10):
        replica = world.replicas["cpu-0"]
        replica.copies[key] = replace(replica.copies[key], last_used_at=world.now)
        world.run(30)
        assert world.served(key) == {"cpu-0"}
    replica.crash()
    world.run(10)
    assert world.served(key) == {"cpu-0"}


def test_some_stay_however_idle() -> None:
    world = idle_world(min_loaded=2)
    keys = [world.registry.register(manifest(name), world.now) for name in ("a", "b", "c")]
    for key in keys:
        world.registry.promote(key, world.now)
    world.memory.loads["cpu"] = Load(at=world.now, step_s=2.0, use={keys[0]: 1.0, keys[2]: 3.0})
    world.run(40)
    assert all(world.served(key) for key in keys)
    world.run(160)
    assert [bool(world.served(key)) for key in keys] == [True, False, True], "the least asked leaves"


def test_an_idle_ensemble_leaves_with_its_steps_and_a_used_one_keeps_them() -> None:
    world = idle_world()
    step = promoted(world, "step")
    key = world.registry.register(ensemble("both", step), world.now)
    world.registry.promote(key, world.now)
    world.run()
    for _ in range(4):
        replica = world.replicas["cpu-0"]
        replica.copies[key] = replace(replica.copies[key], last_used_at=world.now)
        world.run(30)
    assert step in replica.copies
    world.run(200)
    assert not replica.copies
    ask(world, key)
    assert world.served(key) == {"cpu-0"}
