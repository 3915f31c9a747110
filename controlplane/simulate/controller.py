"""The controller's own policy: what servers would count goes through its meter, and the load through its decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from controlplane.core.entry import Entry, InstanceGroup
from controlplane.core.load import Load, Scaler
from controlplane.core.models import FleetRecord, Manifest
from controlplane.core.names import Key
from controlplane.core.scaling.capacity import Executions
from controlplane.core.scaling.decision import decide
from controlplane.core.scaling.limits import limits_of
from controlplane.metrics.counters import Counters
from controlplane.metrics.loads import LoadMeter
from controlplane.metrics.readings import Interval
from controlplane.simulate.policies import STEP_S, Begun, Integers, Seen
from controlplane.simulate.replay import Setting

BATCHES_EVERY = 5
"""At every so many steps the costs of executions are read, and where one is not known, as the controller does."""
SERVER = "all"
"""The name under which the executions of all servers are read: only their sum counts."""


@dataclass(slots=True)
class Controller:
    """Decides as the controller does: a measurement at each step, `decide` on it. `origin`: seconds since 1970 at which
    the trace began."""

    name: ClassVar[str] = "this autoscaler"
    setting: Setting
    models: Sequence[str] = ("model",)
    origin: float = 0.0
    scaler: Scaler = field(default_factory=Scaler)
    load: Load | None = None
    meter: LoadMeter = field(default_factory=lambda: LoadMeter(step_s=STEP_S))
    _flying: list[Begun] = field(default_factory=list)
    _executed: dict[int, tuple[float, float]] = field(default_factory=dict)
    _waited: Integers | None = None
    _turn: int = 0
    _keys: tuple[Key, ...] = field(init=False)
    _manifests: Mapping[Key, tuple[str, Manifest]] = field(init=False)
    _record: FleetRecord = field(init=False)

    def __post_init__(self) -> None:
        """What stays the same."""
        self._keys = tuple(Key(model, 1) for model in self.models)
        self._manifests = {key: (key.model, _manifest(key, self.setting.slots)) for key in self._keys}
        self._record = FleetRecord(shape=self.setting.shape, start_s=self.setting.start_s)

    def desired(self, seen: Seen) -> int:
        """Measure, and decide."""
        now, keys, record = self.origin + seen.now, self._keys, self._record
        intervals = self._intervals(seen, now)
        if self._turn % BATCHES_EVERY == 0 or self.meter.is_curious(intervals.values()):
            pages = {
                keys[index]: {1: Executions(size=1, count=count, total_s=total_s)}
                for index, (count, total_s) in self._executed.items()
            }
            self.meter.batches.take({SERVER: pages}, now)
        self._turn += 1
        held = {} if seen.serving else {keys[each]: int(seen.waiting[each]) for each in np.flatnonzero(seen.waiting)}
        self.load = self.meter.measure(
            record,
            intervals,
            manifests=self._manifests,
            serving=frozenset(intervals),
            held=held,
            now=now,
        )
        decision, self.scaler = decide(
            record.shape,
            limits_of(record, now),
            self.load,
            self.scaler,
            present=seen.present,
            waited_for="requests wait" if held else "",
            now=now,
        )
        return decision.desired

    def _intervals(self, seen: Seen, now: float) -> dict[str, Interval]:
        """What each server would have counted in the step: what it answered, and its part of what waits."""
        done, keys = self._answered(seen), self._keys
        models = len(keys)
        codes = done.replica * models + done.model
        most = max(int(done.replica.max(initial=0)), *seen.serving, 0)
        size = (most + 1) * models
        count, wait_s, work_s = (
            np.bincount(codes, weights=weights, minlength=size).reshape(-1, models)
            for weights in (None, done.wait_s, done.work_s)
        )
        for each in np.flatnonzero(count.sum(axis=0)).tolist():
            known = self._executed.get(each, (0.0, 0.0))
            self._executed[each] = (known[0] + float(count[:, each].sum()), known[1] + float(work_s[:, each].sum()))
        before = self._waited if self._waited is not None else np.zeros(models, np.int64)
        # What waits while nobody serves, waits at gateways: no server counts it.
        self._waited = seen.waiting.copy() if seen.serving else None
        intervals = {}
        # Who is on its way out still tells what it answered; nothing waits there.
        for replica in sorted({*seen.serving, *np.flatnonzero(count.any(axis=1)).tolist()}):
            part = (replica in seen.serving) / max(len(seen.serving), 1)
            asked = (count[replica] + before + seen.waiting).nonzero()[0].tolist()
            intervals[str(replica)] = Interval(
                at=now,
                window_s=STEP_S,
                before={keys[each]: Counters(pending=before[each] * part) for each in asked},
                after={
                    keys[each]: Counters(
                        success=float(count[replica, each]),
                        inferences=float(count[replica, each]),
                        executions=float(count[replica, each]),
                        request_us=float(wait_s[replica, each] + work_s[replica, each]) * 1e6,
                        queue_us=float(wait_s[replica, each]) * 1e6,
                        compute_us=float(work_s[replica, each]) * 1e6,
                        pending=seen.waiting[each] * part,
                    )
                    for each in asked
                },
            )
        return intervals

    def _answered(self, seen: Seen) -> Begun:
        """Those that were answered in this step. The rest is remembered."""
        begun = _joined([*self._flying, seen.begun])
        done = begun.end_us <= seen.now * 1e6
        self._flying = [_chosen(begun, ~done)]
        return _chosen(begun, done)


def _manifest(key: Key, slots: int) -> Manifest:
    entry = Entry(name=key.model, backend="python", instances=(InstanceGroup(kind="CPU", count=slots),))
    return Manifest(entry=entry, files=())


def _joined(parts: Sequence[Begun]) -> Begun:
    return Begun(
        replica=np.concatenate([each.replica for each in parts]),
        wait_s=np.concatenate([each.wait_s for each in parts]),
        work_s=np.concatenate([each.work_s for each in parts]),
        model=np.concatenate([each.model for each in parts]),
        end_us=np.concatenate([each.end_us for each in parts]),
    )


def _chosen(begun: Begun, which: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Begun:
    return Begun(
        replica=begun.replica[which],
        wait_s=begun.wait_s[which],
        work_s=begun.work_s[which],
        model=begun.model[which],
        end_us=begun.end_us[which],
    )
