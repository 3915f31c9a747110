"""Replicas as pods: a fleet is a Deployment that somebody else makes; here only its scale is changed, and notes on its
pods."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from kubernetes.client import ApiClient, AppsV1Api, CoreV1Api

from controlplane.core.errors import Conflict, ControlPlaneError, NotFound, Unavailable
from controlplane.core.models import FleetShape
from controlplane.fleet.cluster import call
from controlplane.fleet.events import AGAIN_S, Events
from controlplane.fleet.hands import MANAGER, Hands, has_size_owner, take_size
from controlplane.fleet.informer import Informer
from controlplane.fleet.protocol import FleetReplica, News

log = structlog.get_logger(__name__)

FLEET_LABEL: Final = "triton-controlplane.io/fleet"
GATEWAY: Final = "app.kubernetes.io/component=gateway"
COST: Final = "controller.kubernetes.io/pod-deletion-cost"
LEAST_COST: Final = "-1000"
"""Whoever costs so little goes first when there are to be fewer. A hint only: a pod that is not ready goes before."""
APPLY: Final = "application/apply-patch+yaml"
ATTEMPTS, PAUSE_S = 10, 0.1
"""How often a size is set that was just changed otherwise, if only by whoever counts a Deployment's pods."""
FIRST_S = 20.0
"""How long the first look at the cluster may take."""
PENDING, ENDED = "Pending", ("Failed", "Succeeded")


@dataclass(slots=True)
class _Batch:
    done: asyncio.Task[None]
    names: list[str] = field(default_factory=list)


class KubernetesFleet:
    """The fleets of one release. `changed` is called, in any thread, when a pod or a Deployment is different."""

    def __init__(
        self,
        api: ApiClient,
        *,
        namespace: str,
        selector: str,
        changed: Callable[[], None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """`selector` finds what is of the release. Deployments and pods of its fleets have FLEET_LABEL, too. `labels`
        are for what is made here, which is events."""
        self._namespace = namespace
        self._core, self._apps = CoreV1Api(api), AppsV1Api(api)
        fleets = {"namespace": namespace, "label_selector": f"{selector},{FLEET_LABEL}"}
        gateways = {"namespace": namespace, "label_selector": f"{selector},{GATEWAY}"}
        self._pods = Informer("pods", self._core.list_namespaced_pod, fleets, changed)

        def deployments_changed() -> None:
            self._look_at_hands()
            changed()

        self._deployments = Informer("deployments", self._apps.list_namespaced_deployment, fleets, deployments_changed)
        self._gateways = Informer("gateways' pods", self._core.list_namespaced_pod, gateways, changed)
        self._informers = (self._pods, self._deployments, self._gateways)
        self._events = Events(api, namespace, labels or {})
        self._lock = asyncio.Lock()
        self._ordered: dict[str, tuple[str, ...]] = {}
        """By fleet, the names under which replicas were asked for that have no pod yet."""
        self._batches: dict[str, _Batch] = {}
        """By fleet, those that are asked for in the next call."""
        self._promised: dict[str, int] = {}
        """By fleet, the size that a call under way asks for: its answer and the watch may come in any order."""
        self._hands = Hands()
        self._asked: dict[str, bool] = {}
        """Names that were asked for since the last list, with whether that was done: whoever asks for one of them again
        can't know yet that its pod is there by another name."""

    async def open(self) -> None:
        """Look at the cluster for the first time. Raises Unavailable when it does not answer in time."""
        self._events.start()
        for each in self._informers:
            each.start()
        for each in self._informers:
            if not await asyncio.to_thread(each.wait, FIRST_S):
                raise Unavailable(str(each.problem or "the Kubernetes API server does not answer"))
        await self._own_sizes()

    def close(self) -> None:
        """Look no longer."""
        self._events.stop()
        for each in self._informers:
            each.stop()

    async def list(self) -> tuple[FleetReplica, ...]:
        """Every pod, and for pods that the Deployment does not have yet the name under which they were asked for."""
        if not (self._pods.synced and self._deployments.synced):
            raise Unavailable("the cluster has not been looked at yet")
        self._asked = {name: done for name, done in self._asked.items() if not done}
        pods = self._pods.objects()  # once: one that came in between would neither be there nor be missing
        extra = {name for fleet in self.fleets() for name in self._extra(self._living(fleet, pods), fleet)}
        found = [
            FleetReplica(
                name=name,
                fleet=_fleet(pod),
                state="leaving" if _ends(pod) else "running",
                reason=_why(pod),
                extra=name in extra,
            )
            for name, pod in sorted(pods.items())
            if pod.status.phase not in ENDED
        ]
        for fleet in self.fleets():
            batch = self._batches.get(fleet)
            asked = (*self._missing(fleet, pods), *(batch.names if batch is not None else ()))
            why = _why_none(self._deployment(fleet))
            found += [
                FleetReplica(name=name, fleet=fleet, reason=why) for name in dict.fromkeys(asked) if name not in pods
            ]
        return tuple(found)

    async def start(self, shape: FleetShape, replica: str) -> None:
        """One more, unless one goes by this name already. Those that are asked for while a call is under way become one
        call, which succeeds or fails for all of them."""
        fleet = shape.name
        if fleet not in self._batches:
            self._batches[fleet] = _Batch(asyncio.create_task(self._start(fleet)))
        batch = self._batches[fleet]
        if replica not in batch.names:
            batch.names.append(replica)
        await asyncio.shield(batch.done)

    async def _start(self, fleet: str) -> None:
        async with self._lock:
            names = self._batches.pop(fleet).names
            missing, pods = self._missing(fleet), self._pods.objects()
            news = [name for name in names if name not in missing and name not in self._asked and name not in pods]
            if not news:
                return
            size = self._size(fleet) + len(news)
            self._promised[fleet] = size
            self._ordered[fleet] = (*missing, *news)
            self._asked |= dict.fromkeys(news, False)
            try:
                await self._scale(fleet, size)
            except ControlPlaneError:
                self._ordered[fleet] = tuple(name for name in self._ordered[fleet] if name not in news)
                self._asked = {name: done for name, done in self._asked.items() if name not in news}
                raise
            finally:
                del self._promised[fleet]
            self._asked |= dict.fromkeys(news, True)

    async def remove(self, replica: str) -> None:
        """Have this one go: it is marked, and the Deployment told to have as many as are not marked. While a Deployment
        has more than it is to have, by a rolling update say, who goes is its own business, and nothing is done."""
        async with self._lock:
            for fleet in self.fleets():
                missing = self._missing(fleet)
                if replica in missing:
                    await self._scale(fleet, self._size(fleet) - 1)
                    self._ordered[fleet] = tuple(name for name in missing if name != replica)
                    return
            pod = self._pods.objects().get(replica)
            if pod is None or _ends(pod) or pod.status.phase in ENDED:
                return
            fleet = _fleet(pod)
            living = self._living(fleet, self._pods.objects())
            marked = {name for name, each in living.items() if _is_marked(each)}
            if len(living) <= self._size(fleet):
                # None of them is to go: another went in place of whoever was marked.
                for name in sorted(marked - {replica}):
                    await self._mark(name, None)
                marked &= {replica}
            if replica not in marked:
                if self._extra(living, fleet):
                    return
                await self._mark(replica, LEAST_COST)
                marked.add(replica)
            await self._scale(fleet, len(living) - len(marked) + len(self._missing(fleet)))

    async def _mark(self, replica: str, cost: str | None) -> None:
        body = {"metadata": {"annotations": {COST: cost}}}
        doing = f"marking pod {replica} as {'one to stay' if cost is None else 'the one to remove'}"
        marked = await call(self._core.patch_namespaced_pod, replica, self._namespace, body, doing=doing)
        self._pods.put(marked)

    def notes(self) -> Mapping[str, str]:
        """Whose hand set a Deployment's size last, where it was not ours, and who else has changed its pods."""
        self._look_at_hands()
        return self._hands.texts(ended=False)

    def past(self) -> Mapping[str, str]:
        """The same of what was so in the last hour."""
        return self._hands.texts(ended=True)

    def _look_at_hands(self) -> None:
        """Tell each that is new, as one event, whoever leads meanwhile. Done at each change of a Deployment: its size
        may be ours again a moment later."""
        deployments = {_fleet(each): each for each in self._deployments.objects().values()}
        for fleet, hand in self._hands.look(deployments):
            # Of an older one there was an event, which the cluster has forgotten.
            if hand.at is not None and (datetime.now(UTC) - hand.at).total_seconds() < AGAIN_S:
                log.info(hand.text, code=hand.code, fleet=fleet)
                reason = _in_camel_case(hand.code)
                self._events.tell(deployments[fleet], "Deployment", reason, hand.text, warning=True, mark=hand.mark)

    def problems(self) -> Mapping[str, str]:
        """What can't be watched, and whether events can't be written; the API server's own words name a right that is
        missing."""
        watched = {each.what: str(each.problem) for each in self._informers if each.problem is not None}
        return {**watched, **({"events": self._events.problem} if self._events.problem else {})}

    def tell(self, news: News) -> None:
        """An event on the fleet's Deployment, or on the replica's pod; none when that is gone."""
        reason = _in_camel_case(news.code)
        if news.replica:
            about, kind = self._pods.objects().get(news.replica), "Pod"
        else:
            found = (each for each in self._deployments.objects().values() if _fleet(each) == news.fleet)
            about, kind = next(found, None), "Deployment"
        if about is not None:
            self._events.tell(about, kind, reason, news.text, warning=news.warning)

    def gateways(self) -> Collection[str] | None:
        """Those that have a pod which has begun and not ended. While the cluster can't be looked at, nothing new is
        known."""
        if self._gateways.problem is not None:
            return None
        return [name for name, pod in self._gateways.objects().items() if pod.status.phase not in (PENDING, *ENDED)]

    # What there is.

    def fleets(self) -> tuple[str, ...]:
        """Those that have a Deployment."""
        return tuple(sorted({_fleet(each) for each in self._deployments.objects().values()}))

    def _deployment(self, fleet: str) -> Any:
        found = [each for each in self._deployments.objects().values() if _fleet(each) == fleet]
        if not found:
            raise NotFound(
                f"there is no Deployment of the fleet {fleet!r} in namespace {self._namespace}",
                field="fleets",
                remedy="`helm upgrade` makes the Deployments of all fleets in the values",
            )
        return found[0]

    def _living(self, fleet: str, pods: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            name: pod
            for name, pod in pods.items()
            if _fleet(pod) == fleet and not _ends(pod) and pod.status.phase not in ENDED
        }

    def _extra(self, living: Mapping[str, Any], fleet: str) -> Collection[str]:
        """The youngest of those that are not to go, beyond the Deployment's size: a rolling update has made them."""
        staying = sorted(
            (name for name, each in living.items() if not _is_marked(each)),
            key=lambda name: (living[name].metadata.creation_timestamp, name),
        )
        return staying[max(self._size(fleet), self._promised.get(fleet, 0)) :]

    def _size(self, fleet: str) -> int:
        return int(self._deployment(fleet).spec.replicas or 0)

    def _missing(self, fleet: str, pods: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """Names for the pods that the Deployment is to have and has not yet: those asked for first have come first."""
        size = max(self._size(fleet), self._promised.get(fleet, 0))
        count = max(size - len(self._living(fleet, self._pods.objects() if pods is None else pods)), 0)
        names = self._ordered.get(fleet, ())
        self._ordered[fleet] = names = names[max(len(names) - count, 0) :]
        return (*names, *(f"{fleet}-pending-{number}" for number in range(count - len(names))))

    async def _scale(self, fleet: str, size: int) -> None:
        deployment = self._deployment(fleet)
        if deployment.spec.replicas == size:
            return
        name = deployment.metadata.name
        log.info("a Deployment is scaled", fleet=fleet, deployment=name, before=deployment.spec.replicas, size=size)
        await self._set_size(deployment, size, doing=f"scaling Deployment {name} to {size}")
        # The watch tells the same a moment later, or has by now; until then nothing is to be decided on the old number.
        deployment = self._deployment(fleet)
        deployment.spec.replicas = size
        take_size(deployment)
        self._deployments.put(deployment)

    async def _own_sizes(self) -> None:
        """Have the API server record whose each size is. It keeps no record of who scales a Deployment that was applied
        without a size, as Helm does, until somebody has applied one: we do, as it is."""
        for deployment in self._deployments.objects().values():
            if not has_size_owner(deployment):
                try:
                    name = deployment.metadata.name
                    await self._set_size(deployment, None, doing=f"taking over the size of Deployment {name}")
                except ControlPlaneError as error:
                    log.warning("who scales a fleet by hand will not be known by name", reason=str(error))

    async def _set_size(self, deployment: Any, size: int | None, *, doing: str) -> None:
        """Change the size from the one that this was decided on: by now another controller may lead, and have set it.
        None: it becomes ours as it is. Raises Conflict."""
        name, before = deployment.metadata.name, deployment.spec.replicas or 0
        for attempt in range(1, ATTEMPTS + 1):
            found: Any = await call(self._apps.read_namespaced_deployment_scale, name, self._namespace, doing=doing)
            if size is not None and (found.spec.replicas or 0) != before:
                raise Conflict(f"{doing}: it has {found.spec.replicas or 0} by now, not {before}")
            metadata = {
                "name": name,
                "namespace": self._namespace,
                "resourceVersion": found.metadata.resource_version,
            }
            spec = {"replicas": (found.spec.replicas or 0) if size is None else size}
            try:
                await call(
                    self._apps.patch_namespaced_deployment_scale,
                    name,
                    self._namespace,
                    {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec},
                    field_manager=MANAGER,
                    force=True,
                    _content_type=APPLY,
                    doing=doing,
                )
            except Conflict:
                if attempt == ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0.5, 1.0) * PAUSE_S)  # noqa: S311 - jitter, not a secret
            else:
                return


def _in_camel_case(code: str) -> str:
    return code.title().replace("_", "")


def _fleet(found: Any) -> str:
    return str(found.metadata.labels[FLEET_LABEL])


def _ends(pod: Any) -> bool:
    return pod.metadata.deletion_timestamp is not None


def _is_marked(pod: Any) -> bool:
    return (pod.metadata.annotations or {}).get(COST) == LEAST_COST


def _why_none(deployment: Any) -> str:
    """Why a Deployment makes no pods: a quota, say, or a rule of admission."""
    failures = [each for each in deployment.status.conditions or () if each.type == "ReplicaFailure"]
    return next((f"no pod can be made for it: {each.message}" for each in failures if each.status == "True"), "")


def _why(pod: Any) -> str:
    """Why a pod leaves, or is not up yet, in the cluster's own words."""
    conditions = {each.type: each for each in pod.status.conditions or ()}
    if _ends(pod):
        disruption = conditions.get("DisruptionTarget")
        return f"its pod is ended: {disruption.reason}, {disruption.message}" if disruption else "its pod is deleted"
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return f"its pod has no node: {scheduled.message or scheduled.reason}"
    for status in [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]:
        waiting = status.state.waiting if status.state is not None else None
        if waiting is not None and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"container {status.name} waits: {waiting.reason}{f', {waiting.message}' if waiting.message else ''}"
    return ""
