"""Whatever happens in whatever order, no request is led astray, and once things calm down everything converges."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from controlplane.core.entry import Load, Priority, Serving
from controlplane.core.load import Load as Measured
from controlplane.core.messages import Demand
from controlplane.core.names import Key
from controlplane.core.routes import Pace
from tests.core.world import World, manifest

NAMES = st.sampled_from(["a", "b", "c"])
LOADS: st.SearchStrategy[Load] = st.sampled_from(["auto", "always", "on_demand"])

PRIORITIES: st.SearchStrategy[Priority] = st.sampled_from(["normal", "normal", "high"])


class Interleavings(RuleBasedStateMachine):
    """Each rule is one thing that one party does; the controller may be killed after any of its actions."""

    @initialize(
        replicas=st.integers(1, 3),
        gateways=st.integers(1, 2),
        memory=st.sampled_from([150, 350, 1000]),
        clash=st.sampled_from([None, None, "they differ"]),
        more=st.sampled_from([0, 0, 2]),
    )
    def begin(self, replicas: int, gateways: int, memory: int, clash: str | None, more: int) -> None:
        self.world = World(
            replicas, most=replicas + more, memory_mib=memory, gateways=gateways, idle_s=10.0, down_after_s=5.0
        )
        self.world.load = Measured(at=self.world.now, step_s=2.0)
        self.world.clash = lambda one, other: clash
        self.world.run(6)

    @rule(
        name=NAMES,
        load=LOADS,
        idle_s=st.sampled_from([None, None, 4.0]),
        size=st.sampled_from([50, 100]),
        bad=st.sampled_from(["", "", "model", "crash"]),
        priority=PRIORITIES,
        copies=st.sampled_from([1, 1, 2]),
    )
    def register_and_promote(
        self, *, name: str, load: Load, idle_s: float | None, size: int, bad: str, priority: Priority, copies: int
    ) -> None:
        apart_from = ("a",) if name == "c" else ()
        serving = Serving(load=load, idle_s=idle_s, apart_from=apart_from, priority=priority, min_copies=copies)
        made = manifest(name, size_mib=size, serving=serving)
        key = self.world.registry.register(made, self.world.now)
        if bad:
            self.world.bad[key] = bad
        self.world.registry.promote(key, self.world.now, deadline_s=20)

    @rule(name=NAMES)
    def roll_back(self, name: str) -> None:
        model = self.world.registry.models.get(name)
        if model is not None and model.previous_stable is not None:
            self.world.registry.promote(Key(name, model.previous_stable), self.world.now, deadline_s=20)

    @rule(name=NAMES, waiting=st.integers(0, 3))
    def ask_for(self, name: str, waiting: int) -> None:
        model = self.world.registry.models.get(name)
        if model is not None and model.stable is not None:
            for gateway in self.world.gateways.values():
                gateway.demand = (Demand(model=name, version=model.stable, waiting=waiting),)

    @rule()
    def sync_replicas(self) -> None:
        self.world.sync_replicas()

    @rule()
    def sync_gateways(self) -> None:
        self.world.sync_gateways()

    @rule()
    def apply_tables(self) -> None:
        self.world.apply_tables()

    @rule(actions=st.one_of(st.none(), st.integers(0, 2)))
    def cycle(self, actions: int | None) -> None:
        self.world.cycle(actions)

    @rule()
    def work(self) -> None:
        self.world.work()

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(turns=st.integers(1, 15))
    def go_on(self, turns: int) -> None:
        self.world.run(turns)

    @rule()
    def a_new_gateway_is_the_first_that_a_new_controller_hears(self) -> None:
        """The others speak before it has waited for long enough."""
        if len(self.world.gateways) < 4:
            self.world.restart_controller()
            self.world.join(f"gw-{len(self.world.gateways)}")
            self.world.cycle()
            self.world.sync_replicas()
            self.world.sync_gateways()
            self.world.sync_gateways()  # with their tables, which they were asked for

    @rule(replicas=st.integers(1, 3), more=st.sampled_from([0, 0, 2]))
    def resize(self, replicas: int, more: int) -> None:
        self.world.resize(replicas, more)

    @rule(data=st.data())
    def fall_silent_or_speak(self, data: st.DataObject) -> None:
        if self.world.replicas:
            name = data.draw(st.sampled_from(sorted(self.world.replicas)))
            replica = self.world.replicas[name]
            replica.silent = not replica.silent

    @rule(data=st.data(), times=st.sampled_from([1, 3]))
    def end_unexpectedly(self, data: st.DataObject, times: int) -> None:
        """Its server does, so often in a moment. Three times, and it is not trusted."""
        if self.world.replicas:
            replica = self.world.replicas[data.draw(st.sampled_from(sorted(self.world.replicas)))]
            if replica.server == "ready":
                replica.crash()
                replica.crashes += times - 1
                replica.crashed = True

    @rule(data=st.data(), leaked=st.sampled_from([5 << 20, 100 << 20]))
    def lose_memory(self, data: st.DataObject, leaked: int) -> None:
        if self.world.replicas:
            self.world.replicas[data.draw(st.sampled_from(sorted(self.world.replicas)))].leaked_bytes += leaked

    @rule(data=st.data(), slow=st.booleans())
    def compute_slowly(self, data: st.DataObject, slow: bool) -> None:
        if self.world.replicas:
            name = data.draw(st.sampled_from(sorted(self.world.replicas)))
            self.world.load = Measured(at=self.world.now, step_s=2.0, slow={name: 4.0} if slow else {})

    @rule(names=st.sets(NAMES), per_s=st.sampled_from([0.0, 20.0]))
    def ask_for_more_than_can_be_done(self, names: set[str], per_s: float) -> None:
        stable = {name: model.stable for name, model in self.world.registry.models.items() if name in names}
        paces = {Key(name, number): Pace(per_s=per_s, at_once=1) for name, number in stable.items() if number}
        self.world.load = Measured(at=self.world.now, step_s=2.0, crowded=paces)

    @invariant()
    def nobody_is_led_astray(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for replica in world.replicas.values():
            replica.silent = False
            replica.leaked_bytes = 0
        for gateway in world.gateways.values():
            gateway.demand = ()
        world.load = Measured(at=world.now, step_s=2.0)
        world.run(200, seconds=1.0)
        if any(world.memory.crashed_at.values()) or world.plan.scalers["cpu"].ejections:
            world.run(90, seconds=5.0)  # until all get requests again; not until fewer replicas are tried again
        for model in world.registry.models.values():
            assert model.running_rollout is None, f"the rollout of {model.name} never ends: {world.plan.reasons}"
        assert not world.plan.leaving
        assert world.shape.min_replicas <= len(world.replicas) <= world.shape.max_replicas
        assert len(world.replicas) == world.plan.decisions["cpu"].desired
        before = world.orders.table
        world.run(5)
        assert world.orders.table is before, "nothing changes any more"
        for gateway in world.gateways.values():
            assert gateway.table == before


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck))
