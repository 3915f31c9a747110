"""Snapshot → plan: what each replica shall hold, the route table, and what is to be done, each with its reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from controlplane.core.actions import Action, FinishRollout
from controlplane.core.census import Census
from controlplane.core.load import Room, Scaler
from controlplane.core.messages import IN_MEMORY
from controlplane.core.models import Model
from controlplane.core.names import Key, Place, Reason
from controlplane.core.placement.placing import place
from controlplane.core.placement.room import Needs, missing
from controlplane.core.placement.terms import Placement, Slot, Want
from controlplane.core.placement.wants import apart, serving_of, wants_of
from controlplane.core.records import records
from controlplane.core.replicas import Changes, depart, resize, worth
from controlplane.core.rollout import Progress, confirmed, progress, target_state
from controlplane.core.routes import RouteTable
from controlplane.core.routing import Serving, build_table, leads
from controlplane.core.scaling.budget import Budget, budget_of
from controlplane.core.scaling.decision import Decision, decide, is_quiet
from controlplane.core.scaling.ejection import eject, ejected
from controlplane.core.scaling.fitness import distrusted, down, missing_bytes, replace_unfit
from controlplane.core.scaling.forecasts import contest_of
from controlplane.core.scaling.limits import Limits, limits_of
from controlplane.core.snapshot import ReplicaView, Snapshot
from controlplane.core.unserved import unserved

SETTLING = Reason(code="SETTLING", text="the controller has just started and waits for reports")
"""Until it has heard from all, what it does not know may be served all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What shall be.

    `holds`: by replica, the versions its assignment names. `stop`: replicas whose assignment says stop. `leaving` and
    `stopping` go into the next snapshot. `table` has no epoch and generation yet. `placed`: how many versions are put
    where they were not before. `decisions` on sizes and `scalers` (for the next snapshot) are by fleet, `reasons` by
    subject: ``model/NAME``, ``version/NAME@N``, ``fleet/NAME``, ``replica/NAME``.
    """

    holds: Mapping[str, frozenset[Key]] = field(default_factory=dict)
    stop: frozenset[str] = frozenset()
    leaving: Mapping[Place, float | None] = field(default_factory=dict)
    stopping: Mapping[str, Reason] = field(default_factory=dict)
    table: RouteTable = field(default_factory=RouteTable)
    placed: int = 0
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    scalers: Mapping[str, Scaler] = field(default_factory=dict)
    actions: tuple[Action, ...] = ()
    reasons: Mapping[str, tuple[Reason, ...]] = field(default_factory=dict)


def plan(snapshot: Snapshot, now: float) -> Plan:
    """Decide. Pure: the same snapshot and instant give the same plan. `now` is in seconds since 1970."""
    return _Planner(snapshot, now).run()


class _Planner:
    def __init__(self, snapshot: Snapshot, now: float) -> None:
        self.snapshot = snapshot
        self.now = now
        self.reasons: dict[str, list[Reason]] = defaultdict(list)
        self.actions: list[Action] = []
        self.budget = Budget()
        self.decisions: dict[str, Decision] = {}
        self.scalers: dict[str, Scaler] = {}
        self.needs: dict[str, Needs] = {}
        """Of fleets whose size may change."""
        self.may_grow: set[str] = set()
        """Fleets that may get one more replica, or whose next one is not there yet."""
        self._known_sizes: dict[str, Mapping[Key, int]] = {}
        self._known_holders: dict[str, Mapping[Key, list[str]]] = {}
        self._known_clashes: dict[str, Mapping[tuple[Key, Key], str]] = {}
        self.census = Census(snapshot, now)
        self.distrusted: dict[str, Reason] = {}
        for replicas in self.census.by_fleet.values():
            self.distrusted.update(distrusted(replicas, now))
        self.down: frozenset[str] = frozenset()
        for replicas in self.census.by_fleet.values():
            self.down |= down(replicas, self.census.lost)
        self.untrusted = set(self.distrusted)
        """Replicas that get nothing new that has room elsewhere: these, the slow, and who is being replaced."""
        self.slow: dict[str, float] = {}
        """Replicas that are to get no requests where others can take them, and how many times as long they take."""

    def run(self) -> Plan:
        census = self.census
        self.actions += census.crashed
        for name, reason in self.distrusted.items():
            self.reasons[f"replica/{name}"].append(reason)
        serving = {name: serving_of(model, census) for name, model in self.snapshot.models.items()}
        wants = wants_of(serving.values(), census)
        waited_for = self._waited_for()
        self.budget = budget_of(self.snapshot, waited_for.keys(), self.now)
        changes = {
            name: self._resize(name, wants.get(name, []), waited_for.get(name, ""))
            for name in sorted(self.snapshot.fleets)
        }
        stopping = {name: reason for each in changes.values() for name, reason in each.stopping.items()}
        placements = {name: self._place(name, stopping, wants.get(name, [])) for name in self.snapshot.fleets}
        self._note_cramped(placements, stopping)
        departures = depart(
            {name for name in stopping if self._is_replaced(name, stopping, placements)}, self.snapshot, self.now
        )
        for placement in placements.values():
            for key, reason in placement.why_added():
                self.reasons[f"version/{key}"].append(reason)
        holds, leaving = self._release(placements)
        for name, replicas in census.by_fleet.items():
            if name not in placements:  # a fleet without a record: leave alone what it has
                holds.update({each.name: frozenset(each.ordered or each.copies) for each in replicas})
        table = build_table(
            self.snapshot,
            self.now,
            serving={
                name: self._with_progress(self.snapshot.models[name], each, placements)
                for name, each in serving.items()
            },
            ready=census.ready,
            holds=holds,
            going=leaving,
            draining=departures.draining,
            gone=departures.unrouted,
            lost=census.lost,
            distrusted=self.distrusted,
            slow=self.slow,
            reasons=self._unserved(placements),
        )
        self.actions += records(self.snapshot, census, self.scalers)
        return Plan(
            holds=holds,
            stop=departures.stop,
            leaving=leaving,
            stopping=stopping,
            table=table,
            placed=sum(len(each.added) for each in placements.values()),
            decisions=self.decisions,
            scalers=self.scalers,
            actions=tuple(self.actions),
            reasons={subject: tuple(each) for subject, each in self.reasons.items()},
        )

    # How many there are.

    def _resize(self, fleet: str, wants: list[Want], waited_for: str) -> Changes:
        snapshot, record, replicas = self.snapshot, self.snapshot.fleets[fleet], self.census.by_fleet.get(fleet, ())
        load, scaler = snapshot.loads.get(fleet), snapshot.scalers.get(fleet)
        if scaler is None:
            scaler = Scaler(contest=contest_of(record.history))
        staying = [each for each in replicas if each.name not in snapshot.stopping]
        scaler, told = replace_unfit(
            scaler,
            staying,
            record.shape,
            load,
            room=self.budget.has_room(fleet),
            lost=self.census.lost,
            now=self.now,
        )
        scaler = eject(scaler, load, {each.name for each in replicas}, self.now)
        self.untrusted |= {scaler.replacing[0]} if scaler.replacing is not None else set()
        for name, (ratio, reason) in ejected(scaler.ejections, self.now).items():
            self.untrusted.add(name)
            self.slow[name] = ratio
            self.reasons[f"replica/{name}"].append(reason)
        present = len(staying) - (scaler.replacing is not None)
        limits = self.budget.allows(fleet, limits_of(record, self.now))
        decision, scaler = self._decide(fleet, wants, limits, scaler, waited_for, staying=staying, present=present)
        if decision.desired < limits.most:
            self.may_grow.add(fleet)
        extra = scaler.replacing is not None
        self.budget.take(fleet, decision.desired + extra)
        self.decisions[fleet], self.scalers[fleet] = decision, scaler
        changes = resize(
            fleet,
            decision,
            replicas,
            snapshot,
            self.now,
            lost=self.census.lost,
            down=self.down,
            replacing=scaler.replacing,
        )
        self.actions += changes.actions
        self.reasons[f"fleet/{fleet}"] += [changes.reason, *told]
        for name, reason in changes.stopping.items():
            self.reasons[f"replica/{name}"].append(reason)
        return changes

    def _decide(
        self,
        fleet: str,
        wants: list[Want],
        limits: Limits,
        scaler: Scaler,
        waited_for: str,
        *,
        staying: list[ReplicaView],
        present: int,
    ) -> tuple[Decision, Scaler]:
        """How many there shall be: as many as the load needs, and what must have a place."""
        shape, load, needs, room = self.snapshot.fleets[fleet].shape, self.snapshot.loads.get(fleet), None, Room()
        if limits.least < limits.most:
            resting = limits.least == 0 and not waited_for and is_quiet(shape, load, scaler, present=present)
            needs = self.needs[fleet] = Needs(
                wants,
                scaler.room,
                capacity_bytes=shape.memory_bytes,
                sizes=self._sizes(fleet, wants),
                clashes=self._clashes(fleet, wants),
                loaded=self.census.copies.keys(),
                bad={want.key for want in wants if self.census.is_bad(want.key)},
                resting=resting,
            )
            room = needs.room(present, limits.most, self.now)

        replaced = scaler.replacing[0] if scaler.replacing is not None else ""
        unled = self.distrusted.keys() | self.slow.keys()
        out = sum(each.name in unled and each.name != replaced for each in staying)

        def decided() -> tuple[Decision, Scaler]:
            why = needs.why(room.replicas) if needs is not None and room.replicas else ""
            return decide(
                shape,
                limits,
                load,
                scaler,
                present=present,
                out=out,
                waited_for=waited_for,
                pinned=room.replicas,
                pinned_why=why,
                now=self.now,
            )

        decision, after = decided()
        if needs is not None and decision.desired < min(present, limits.most):
            first = sorted(staying, key=lambda each: (each.name == replaced, worth(each)))[: min(present, limits.most)]
            slots = [self._slot(each, frozenset(), frozenset()) for each in first]
            fewest = needs.still_fits(decision.desired, slots)
            if fewest > decision.desired:
                room = replace(room, replicas=fewest)
                decision, after = decided()
        if needs is not None and room.replicas > max(present, limits.least):
            room = replace(room, kept=needs.kept())
        return decision, replace(after, room=room)

    def _note_cramped(self, placements: Mapping[str, Placement], stopping: Collection[str]) -> None:
        """What found no place although it must have one, for the next plan; unless a replica is about to come."""
        for name, placement in placements.items():
            up = [each for each in self.census.by_fleet.get(name, ()) if self._is_open(each, stopping)]
            if len(up) < self.decisions[name].desired:
                self.may_grow.add(name)
            else:
                needs = self.needs.get(name)
                cramped = needs.cramped(placement) if needs is not None else missing(placement, self.snapshot, self.now)
                if cramped != self.scalers[name].room.cramped:
                    room = replace(self.scalers[name].room, cramped=cramped)
                    self.scalers[name] = replace(self.scalers[name], room=room)

    def _waited_for(self) -> dict[str | None, str]:
        """Fleets of which a replica is waited for, and why, as a sentence: to see what servers can do, against which
        registering and rendering check; for a request for a version that is cold; for a rollout's target."""
        snapshot, found = self.snapshot, dict[str | None, str]()
        for fleet, record in snapshot.fleets.items():
            if record.capabilities is None:
                found[fleet] = "what its servers can do has to be seen once"
        for key, at in snapshot.demand.items():
            if key.model in snapshot.models and self.now - at <= snapshot.settings.demand_s:
                found[self.census.fleet(key)] = f"somebody has asked for {key}"
        for name, model in snapshot.models.items():
            if (rollout := model.running_rollout) is not None:
                key = Key(name, rollout.target)
                found[self.census.fleet(key)] = f"{key} is being rolled out"
        return found

    # Where it goes.

    def _place(self, fleet: str, stopping: Collection[str], wants: list[Want]) -> Placement:
        sizes = self._sizes(fleet, wants)
        banned = frozenset(self.census.quarantined.get(fleet, set()) & sizes.keys())
        placement = place(
            [self._slot(replica, stopping, banned) for replica in self.census.by_fleet.get(fleet, ())],
            wants,
            sizes=sizes,
            leaving_before=[place for place in self.snapshot.leaving if place.replica in self.snapshot.replicas],
            clashes=self._clashes(fleet, wants),
        )
        decision = self.decisions[fleet]
        if decision.desired:
            return placement
        # Whoever asks why it is not served is to hear why there is nobody.
        unplaced = {
            key: replace(reason, text=f"{reason.text}; {decision.reason.text}")
            if reason.code == "NO_REPLICA"
            else reason
            for key, reason in placement.unplaced.items()
        }
        return replace(placement, unplaced=unplaced)

    def _slot(self, replica: ReplicaView, stopping: Collection[str], banned: frozenset[Key]) -> Slot:
        shape = self.snapshot.fleets[replica.fleet].shape
        return Slot(
            replica=replica.name,
            capacity_bytes=shape.memory_bytes,
            leaked_bytes=missing_bytes(replica, shape),
            held=frozenset(_held(replica)),
            unloading=frozenset(_unloading(replica)),
            failed=frozenset(
                key for key, copy in replica.copies.items() if copy.state == "failed" and copy.blames != "environment"
            ),
            banned=banned,
            open=self._is_open(replica, stopping),
            trusted=replica.name not in self.untrusted,
            counts=not self._is_away(replica.name, stopping),
        )

    def _is_open(self, replica: ReplicaView, stopping: Collection[str]) -> bool:
        """Whether it may get something new."""
        return replica.report is not None and not self._is_away(replica.name, stopping)

    def _is_away(self, name: str, stopping: Collection[str]) -> bool:
        """Whether it is on its way out, silent, or does not come up: what it has should be elsewhere, too."""
        return name in stopping or name in self.census.lost or name in self.down

    def _sizes(self, fleet: str, wants: list[Want]) -> Mapping[Key, int]:
        """The memory of all that is wanted or held there, in bytes."""
        if fleet not in self._known_sizes:
            keys = {key for want in wants for key in (want.key, *want.requires)}
            replicas = self.census.by_fleet.get(fleet, ())
            keys = keys.union(*(_held(each) for each in replicas), *(_unloading(each) for each in replicas))
            self._known_sizes[fleet] = {key: self.census.size_bytes(key, fleet) for key in keys}
        return self._known_sizes[fleet]

    def _clashes(self, fleet: str, wants: list[Want]) -> Mapping[tuple[Key, Key], str]:
        """Which versions can't share a server, or are not to."""
        if fleet not in self._known_clashes:
            self._known_clashes[fleet] = {**apart(wants, self.snapshot), **self.snapshot.clashes}
        return self._known_clashes[fleet]

    def _is_replaced(self, name: str, stopping: Collection[str], placements: Mapping[str, Placement]) -> bool:
        """Whether whatever a leaving replica serves is ready on another one, or shall not be anywhere else."""
        replica = self.snapshot.replicas[name]
        placement = placements.get(replica.fleet)
        if placement is None:
            return True
        holders = self._holders(replica.fleet, placement)
        for key in replica.copies:
            elsewhere = {
                other
                for other in holders.get(key, ())
                if other not in stopping and other not in self.census.lost and not self.census.has_failed(key, other)
            }
            if name not in self.census.ready.get(key, ()):
                continue
            waits = placement.unplaced.get(key)
            comes = waits is not None and waits.code == "NO_REPLICA" and self.decisions[replica.fleet].desired > 0
            if comes or (elsewhere and not elsewhere & set(self.census.ready[key])):
                where = ", ".join(sorted(elsewhere)) or "the replica that comes for it"
                self.reasons[f"replica/{name}"].append(
                    Reason(code="REPLACING", text=f"{name} leaves when {key} is ready on {where}")
                )
                return False
        return True

    def _holders(self, fleet: str, placement: Placement) -> Mapping[Key, list[str]]:
        """By version, the replicas that shall hold it."""
        if fleet not in self._known_holders:
            holders: dict[Key, list[str]] = defaultdict(list)
            for name, held in placement.holds.items():
                for key in held:
                    holders[key].append(name)
            self._known_holders[fleet] = holders
        return self._known_holders[fleet]

    def _release(
        self, placements: Mapping[str, Placement]
    ) -> tuple[dict[str, frozenset[Key]], dict[Place, float | None]]:
        """Take what leaves out of the assignments once no gateway can lead there, and what was in flight has ended."""
        holds: dict[str, frozenset[Key]] = {}
        leaving: dict[Place, float | None] = {}
        for placement in placements.values():
            holds.update(placement.holds)
            for place_, reason in placement.leaving.items():
                if not self.snapshot.settled:
                    continue
                key, name = place_
                if self._may_be_led_to(place_):
                    leaving[place_] = None
                    continue
                since = self.snapshot.leaving.get(place_)
                copy = self.snapshot.replicas[name].copies.get(key)
                never_served = copy is None or copy.state != "ready"
                if never_served or (since is not None and self.now - since >= self.snapshot.settings.drain_s):
                    holds[name] = holds[name] - {key}
                else:
                    leaving[place_] = since if since is not None else self.now
                self.reasons[f"version/{key}"].append(reason)
        return holds, leaving

    def _may_be_led_to(self, place_: Place) -> bool:
        for gateway in self.snapshot.gateways.values():
            if self.now - gateway.heard_at > self.snapshot.settings.gateway_lost_s:
                continue
            if gateway.table is None:
                return True  # it may serve anything: it has not said yet
            if any(leads(table, place_) for table in gateway.tables()):
                return True
        return False

    # Who gets the requests.

    def _with_progress(self, model: Model, serving: Serving, placements: Mapping[str, Placement]) -> Serving:
        rollout = model.running_rollout
        if rollout is None:
            return serving
        key = Key(model.name, rollout.target)
        tables = confirmed(self.snapshot, self.now)
        state: Progress
        if self.snapshot.settled or tables:
            known_s = self.now - self.snapshot.rollouts.get(rollout.id, self.now)
            state = progress(
                rollout, key, target_state(key, self.snapshot, self.census, placements, self.may_grow), tables, known_s
            )
        else:
            state = Progress(reason=SETTLING)
        self.reasons[f"model/{model.name}"].append(state.reason)
        if state.end is not None:
            self.actions.append(
                FinishRollout(
                    fleet=self.census.fleet(key),
                    model=model.name,
                    target=rollout.target,
                    rollout=rollout.id,
                    state=state.end,
                    reason=state.reason.text,
                )
            )
        return Serving(
            model=serving.model,
            stable=serving.stable,
            target=serving.target,
            warm=serving.warm,
            aliased=serving.aliased,
            weight_percent=0 if state.end == "failed" else state.weight_percent,
        )

    def _unserved(self, placements: Mapping[str, Placement]) -> Mapping[Key, Reason]:
        """Why versions are not served: shown by `explain`, and to whoever asks for them."""
        why = unserved(self.snapshot, self.census, placements)
        for key, reason in why.items():
            if reason not in self.reasons[f"version/{key}"]:
                self.reasons[f"version/{key}"].append(reason)
        return why


def _held(replica: ReplicaView) -> Collection[Key]:
    """What it holds, as far as is known: what was ordered, or what it reports where nothing was."""
    return replica.copies if replica.ordered is None else replica.ordered


def _unloading(replica: ReplicaView) -> set[Key]:
    """What it was told to unload, and has not, as far as it has said."""
    if replica.ordered is None:
        return set()
    return {key for key, copy in replica.copies.items() if key not in replica.ordered and copy.state in IN_MEMORY}
