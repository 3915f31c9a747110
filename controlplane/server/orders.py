"""What has been ordered: each replica's assignment and the route tables, numbered, and who waits for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane.core.messages import Assignment, GatewayReport, Wanted
from controlplane.core.names import Key
from controlplane.core.plan import Plan
from controlplane.core.routes import RouteTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """An assignment and the versions it names, each with the generation since which it is named without a break."""

    since: Mapping[Key, int]
    stop: bool
    assignment: Assignment

    @property
    def keys(self) -> frozenset[Key]:
        """The versions."""
        return frozenset(self.since)


class Orders:
    """The orders of one controller, that is of one epoch. Lives in the event loop's thread."""

    def __init__(self, epoch: int, wanted: Callable[[Key], Wanted | None]) -> None:
        """`wanted` builds what an assignment says of a version; None where it can't be named (its manifest is gone)."""
        self.epoch = epoch
        self._wanted = wanted
        self._assignments: dict[str, Issued] = {}
        self._tables: list[RouteTable] = []
        self._generation = 0
        self._news: dict[str, asyncio.Event] = {}
        self.closed = False

    # Assignments.

    def ordered(self, replica: str) -> frozenset[Key] | None:
        """What the replica's assignment names; None before its first."""
        issued = self._assignments.get(replica)
        return issued.keys if issued else None

    def outdated(self, replica: str, key: Key, epoch: int, generation: int) -> bool:
        """Whether a report of this age may speak of a copy that was to be given up since, wanted again or not."""
        issued = self._assignments.get(replica)
        if issued is None:
            return False
        since = issued.since.get(key, issued.assignment.generation)
        return since > (generation if epoch == self.epoch else 0)

    def assignment(self, replica: str) -> Assignment | None:
        """The latest assignment."""
        issued = self._assignments.get(replica)
        return issued.assignment if issued else None

    def is_told_to_stop(self, replica: str) -> bool:
        """Whether its latest assignment says so."""
        issued = self._assignments.get(replica)
        return issued is not None and issued.stop

    def renew(self, replica: str) -> None:
        """Issue the replica's assignment anew (its download addresses may have expired)."""
        issued = self._assignments.get(replica)
        if issued is not None:
            self._issue(replica, issued.keys, issued.stop)

    def forget(self, replica: str) -> None:
        """The replica is gone."""
        self._assignments.pop(replica, None)
        self._news.pop(f"replica/{replica}", None)

    def issue(self, plan: Plan) -> None:
        """Put a plan's assignments and table into force; whoever waits for a change is woken."""
        for replica, keys in plan.holds.items():
            issued = self._assignments.get(replica)
            stop = replica in plan.stop
            if issued is None or issued.keys != keys or issued.stop != stop:
                self._issue(replica, keys, stop)
        self._issue_table(plan.table)

    def _issue(self, replica: str, keys: frozenset[Key], stop: bool) -> None:
        before = self._assignments.get(replica)
        named = {key: self._wanted(key) for key in sorted(keys)}
        if None in named.values():
            return  # leaving it out would make the replica give it up: rather no order than that one
        self._generation += 1
        # In the first assignment of an epoch nothing is new: whatever the replica has, nobody has taken it away.
        since = {key: before.since.get(key, self._generation) if before else 0 for key in keys}
        wanted = tuple(each for each in named.values() if each is not None)
        assignment = Assignment(epoch=self.epoch, generation=self._generation, wanted=wanted, stop=stop)
        self._assignments[replica] = Issued(since=since, stop=stop, assignment=assignment)
        self.event(f"replica/{replica}").set()

    # Tables.

    @property
    def table(self) -> RouteTable | None:
        """The latest table; None before the first."""
        return self._tables[-1] if self._tables else None

    def _issue_table(self, table: RouteTable) -> None:
        latest = self.table
        if latest is not None and replace(latest, epoch=0, generation=0) == table:
            return
        self._generation += 1
        self._tables.append(replace(table, epoch=self.epoch, generation=self._generation))
        for recipient, event in self._news.items():
            if recipient.startswith("gateway/"):
                event.set()

    def pending(self, report: GatewayReport) -> tuple[RouteTable, ...]:
        """Each table that a gateway may be putting into force, after what it reports."""
        confirmed, refused = self._known(report)
        return tuple(each for each in self._tables if each.generation > confirmed and each.generation >= refused)

    def table_of(self, generation: int) -> RouteTable | None:
        """The table with this generation, while it is kept."""
        return next((table for table in self._tables if table.generation == generation), None)

    def keep_tables(self, reports: Iterable[GatewayReport]) -> None:
        """Forget tables that none of the gateways which report so serves, or may be putting into force."""
        if len(self._tables) > 1:
            known = {self._known(report) for report in reports}
            self._tables = [
                each
                for each in self._tables[:-1]
                if any(each.generation == of or each.generation >= max(of, refused) for of, refused in known)
            ] + self._tables[-1:]

    def _known(self, report: GatewayReport) -> tuple[int, int]:
        """The generation of this epoch that a gateway serves, and the newest that it refused; 0 for none."""
        epoch, refused = report.refused
        return report.generation if report.epoch == self.epoch else 0, refused if epoch == self.epoch else 0

    # Waiting.

    def close(self) -> None:
        """Wake whoever waits: there will be nothing newer from here."""
        self.closed = True
        for event in self._news.values():
            event.set()

    def event(self, recipient: str) -> asyncio.Event:
        """Set when there is something new for ``replica/NAME`` or ``gateway/NAME``."""
        return self._news.setdefault(recipient, asyncio.Event())
