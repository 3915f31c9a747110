"""What the API shows: the state of things and the plan's reasons, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from controlplane.core.errors import NotFound
from controlplane.core.fleets import memory_told
from controlplane.core.messages import Copy
from controlplane.core.models import Model
from controlplane.core.names import Key, Reason
from controlplane.core.plan import SETTLING
from controlplane.core.scaling.limits import sizes
from controlplane.core.snapshot import ReplicaView
from controlplane.server.executions import batches, batching, capacity, signals_of, too_tight

if TYPE_CHECKING:
    from controlplane.server.controller import Controller

LEAST_RATE = 0.1
"""Smaller rates are not told to the digit."""
MOST_SHARE = 0.8
"""A replica with this share of a version's failures is named."""


def status(controller: Controller, now: float) -> dict[str, Any]:
    """The controller itself."""
    memory, source = controller.memory, controller.measuring.scraper
    return {
        "epoch": controller.orders.epoch,
        "settled": memory.settled,
        "up_s": round(now - memory.started_at, 1),
        "planned_s_ago": None if controller.planned_at is None else round(now - controller.planned_at, 1),
        "problems": {
            **memory.problems,
            **({"planning": controller.problem} if controller.problem else {}),
            **({"Prometheus": source.problem} if source.problem else {}),
            **({"measuring": controller.measuring.problem} if controller.measuring.problem else {}),
            **({"registry": controller.watch.problem} if controller.watch.problem else {}),
            **({"replicas": controller.unlisted} if controller.unlisted else {}),
            **controller.backend.problems(),
            **{
                about: "; ".join(reason.text for reason in reasons)
                for about, reasons in controller.actor.failures().items()
            },
        },
        "names": controller.names.problems,
        "models": len(memory.models),
        "replicas_ready": sum(report.server == "ready" for report, _ in memory.reports.values()),
        "replicas_wanted": sum(each.desired for each in memory.last_plan.decisions.values()),
        "gateways_ready": sum(each.report.ready and each.confirmed is not None for each in memory.gateways.values()),
    }


def models(controller: Controller, now: float) -> list[dict[str, Any]]:
    """Every model, in short."""
    return [_model(controller, name) for name in sorted(controller.snapshot.models)]


def _model(controller: Controller, name: str) -> dict[str, Any]:
    document = controller.snapshot.models[name]
    route = controller.memory.last_plan.table.routes.get(name)
    rollout = document.rollout
    return {
        "name": name,
        "stable": document.stable,
        "aliases": dict(document.aliases),
        "versions": [each.number for each in document.versions if each.deleted_at is None],
        "served": [
            {
                "version": number,
                "replicas": list(controller.memory.last_plan.table.pools.get(pool or "", ())),
                "reason": route.reasons.get(number, ""),
            }
            for number, pool in sorted(route.pinned.items())
        ]
        if route
        else [],
        "targets": [{"version": t.version, "weight_percent": t.weight_percent} for t in route.targets] if route else [],
        "rollout": {"target": rollout.target, "state": rollout.state, "reason": rollout.reason} if rollout else None,
    }


def model(controller: Controller, name: str, now: float) -> dict[str, Any]:
    """One model, with every reason that is known."""
    problem = controller.memory.problems.get(f"models/{name}.json")
    if name not in controller.snapshot.models:
        if problem:
            return {"name": name, "problem": problem, "reasons": [{"code": "UNREADABLE", "text": problem}]}
        is_fleet = name in controller.snapshot.fleets
        remedy = f"`ctl explain fleet {name}` is about the fleet" if is_fleet else "`ctl get models` lists them"
        raise NotFound(f"there is no model {name!r}", remedy=remedy)
    reasons = controller.memory.last_plan.reasons
    subjects = [f"model/{name}"]
    subjects += [f"version/{Key(name, each.number)}" for each in controller.snapshot.models[name].versions]
    copies = [
        {
            **_copy(copy, now),
            "replica": replica.name,
            "errors_per_s": _errors_per_s(controller, replica.name, key, now),
            "signals": signals_of(controller, replica.name, key, now),
        }
        for replica in controller.snapshot.replicas.values()
        for key, copy in sorted(replica.copies.items())
        if key.model == name
    ]
    return {
        **_model(controller, name),
        "problem": problem,
        "copies": copies,
        "reasons": [
            {"code": reason.code, "text": reason.text}
            for reason in (
                *([] if controller.memory.settled else [SETTLING]),
                *_how_it_is(controller, controller.snapshot.models[name], now),
                *(reason for subject in subjects for reason in reasons.get(subject, ())),
            )
        ],
        "memory": [
            {"code": reason.code, "text": reason.text}
            for reason in _memory(controller, controller.snapshot.models[name])
        ],
        "batches": list(batches(controller, controller.snapshot.models[name], now)),
        "capacity": [
            {"code": reason.code, "text": reason.text}
            for reason in capacity(controller, controller.snapshot.models[name])
        ],
        "batching": [
            {"code": reason.code, "text": reason.text}
            for reason in batching(controller, controller.snapshot.models[name], now)
        ],
    }


def _how_it_is(controller: Controller, document: Model, now: float) -> Iterator[Reason]:
    """What unversioned requests get, whether they fail, and how the last rollout ended."""
    table = controller.memory.last_plan.table
    route = table.routes.get(document.name)
    if document.stable is None and document.running_rollout is None:
        yield Reason(code="NOT_STABLE", text=f"no version of {document.name} is stable: `ctl promote` makes one so")
    for target in route.targets if route else ():
        key = Key(document.name, target.version)
        if target.pool is None:
            told = route is not None and target.version in route.reasons  # as a reason of the version's
            yield Reason(code="COLD", text=f"{key} is loaded nowhere{'' if told else '; the first request loads it'}")
        else:
            names = ", ".join(table.pools[target.pool])
            text = f"{key} gets {target.weight_percent} % of unversioned requests, served by {names}"
            yield Reason(code="SERVED", text=text)
    for number, pool in sorted(route.pinned.items()) if route else ():
        if (pace := table.crowded.get(pool or "")) is not None:
            text = (
                f"more is asked of {Key(document.name, number)} than a copy can do, {pace.per_s:g} requests a second: "
                "gateways refuse what would take longer than their max_wait_s (RESOURCE_EXHAUSTED, 429)"
            )
            yield Reason(code="CROWDED", text=text)
    refused = controller.memory.refused(now)
    for key, errors_per_s in controller.memory.failing(now).items():
        if key.model == document.name:
            rate = f"{errors_per_s:.1f}" if errors_per_s >= LEAST_RATE else f"less than {LEAST_RATE}"
            text = f"{rate} requests a second for {key} failed in the last half minute"
            if (refused_per_s := refused.get(key, 0.0)) >= LEAST_RATE:
                text += f", {refused_per_s:.1f} of them refused since there was too much"
            text += _where(controller, key, errors_per_s, now)
            yield Reason(code="FAILING", text=text)
    last = document.rollout
    if last is not None and last.state in ("failed", "aborted"):
        key = Key(document.name, last.target)
        yield Reason(code=f"ROLLOUT_{last.state.upper()}", text=f"the rollout to {key} {last.state}: {last.reason}")


def _where(controller: Controller, key: Key, errors_per_s: float, now: float) -> str:
    """Says where most of a version's failures are, if that is one of several replicas that hold it; else empty."""
    found = controller.memory.failing_on(key, now) or {}
    holders = [replica for replica in controller.snapshot.replicas.values() if key in replica.copies]
    worst = max(found, key=lambda replica: found[replica], default="")
    if not worst or len(holders) < 2 or found[worst] < MOST_SHARE * errors_per_s:
        return ""
    return f"; of these, {100 * found[worst] / errors_per_s:.0f} % on {worst}"


def _errors_per_s(controller: Controller, replica: str, key: Key, now: float) -> float | None:
    """How many requests a second failed on a copy of late, as clients saw it; None: no gateway tells."""
    found = controller.memory.failing_on(key, now)
    return None if found is None else round(found.get(replica, 0.0), 3)


def _memory(controller: Controller, document: Model) -> Iterator[Reason]:
    """Whether its versions take another memory than is stated."""
    for key in (Key(document.name, each.number) for each in document.versions):
        manifest, digest = controller.snapshot.manifest(key), controller.snapshot.digest(key)
        if manifest is None or digest is None:
            continue
        told = (memory_told(key, manifest, digest, record) for record in controller.snapshot.fleets.values())
        yield from (each for each in told if each is not None)


def replicas(controller: Controller, now: float) -> list[dict[str, Any]]:
    """Every replica."""
    return [_replica(controller, each, now) for _, each in sorted(controller.snapshot.replicas.items())]


def _replica(controller: Controller, replica: ReplicaView, now: float) -> dict[str, Any]:
    report = replica.report
    return {
        "name": replica.name,
        "fleet": replica.fleet,
        "server": report.server if report else "unknown",
        "reason": _state(controller, replica),
        "heard_s_ago": None if replica.heard_at is None else round(now - replica.heard_at, 1),
        "endpoint": None
        if replica.endpoint is None
        else {key: getattr(replica.endpoint, key) for key in ("host", "grpc_port", "http_port")},
        "metrics_port": report.metrics_port if report else None,
        "crashes": report.crashes if report else 0,
        "failed_starts": report.failed_starts if report else 0,
        "leaked_bytes": report.leaked_bytes if report else 0,
        "disk_free_bytes": report.disk_free_bytes if report else None,
        "copies": [_copy(copy, now) for _, copy in sorted(replica.copies.items())],
        "leaving": [str(place.key) for place in controller.memory.last_plan.leaving if place.replica == replica.name],
        "stopping": replica.name in controller.memory.last_plan.stopping,
    }


def _state(controller: Controller, replica: ReplicaView) -> str:
    """Why a replica is as it is, in its agent's words and, where its server is not ready, of whoever runs it."""
    told = replica.report.reason if replica.report is not None else "not heard from yet"
    known = controller.memory.backend_replicas.get(replica.name)
    if known is None or (replica.report is not None and replica.report.server == "ready"):
        return told
    return ": ".join(each for each in (told, known.reason) if each)


def _copy(copy: Copy, now: float) -> dict[str, Any]:
    return {
        "model": copy.model,
        "version": copy.version,
        "state": copy.state,
        "reason": copy.reason,
        "memory_bytes": copy.memory_bytes,
        "idle_s": None if copy.last_used_at is None else round(max(0.0, now - copy.last_used_at), 1),
    }


def gateways(controller: Controller, now: float) -> list[dict[str, Any]]:
    """Every gateway."""
    return [
        {
            "name": name,
            "ready": each.report.ready,
            "reason": each.report.reason,
            "heard_s_ago": round(now - each.heard_at, 1),
            "epoch": each.report.epoch,
            "generation": each.report.generation,
            "waiting": [
                {"model": demand.model, "version": demand.version, "waiting": demand.waiting}
                for demand in each.report.demand
            ],
        }
        for name, each in sorted(controller.memory.gateways.items())
    ]


def fleets(controller: Controller, now: float) -> list[dict[str, Any]]:
    """Every fleet."""
    return [_fleet(controller, name, now) for name in sorted(controller.memory.shapes)]


def _fleet(controller: Controller, name: str, now: float) -> dict[str, Any]:
    shape = controller.memory.shapes[name]
    record = controller.snapshot.fleets.get(name)
    there = [each for each in controller.snapshot.replicas.values() if each.fleet == name]
    capabilities = record.capabilities if record else None
    decision = controller.memory.last_plan.decisions.get(name)
    return {
        "name": name,
        **sizes(shape, record, now),
        "replicas": len(there),
        "desired": decision.desired if decision is not None else None,
        "ready": sum(each.report is not None and each.report.server == "ready" for each in there),
        "memory_bytes": shape.memory_bytes,
        "gpus": shape.gpus,
        "default": shape.default,
        "server_version": capabilities.server_version if capabilities else None,
        "backends": list(capabilities.backends) if capabilities else [],
        "quarantines": [
            {"model": each.model, "version": each.version, "reason": each.reason}
            for each in (record.quarantines if record else ())
        ],
    }


def fleet(controller: Controller, name: str, now: float) -> dict[str, Any]:
    """One fleet, with every reason that is known."""
    if name not in controller.memory.shapes:
        raise NotFound(f"there is no fleet {name!r}", remedy="`ctl get fleets` lists them")
    subjects = [f"fleet/{name}"]
    there = [each for each in controller.snapshot.replicas.values() if each.fleet == name]
    subjects += [f"replica/{each.name}" for each in there]
    reasons: Mapping[str, Any] = controller.memory.last_plan.reasons
    told = [{"code": reason.code, "text": reason.text} for subject in subjects for reason in reasons.get(subject, ())]
    for each in there:
        if each.report is None or each.report.server != "ready":
            server = f"{each.report.server}: " if each.report else ""
            text = f"{each.name} is {server}{_state(controller, each)}".removesuffix(": ")
            told.append({"code": "NOT_READY", "text": text})
    reasons_why = [
        *controller.actor.failures().get(f"fleet {name}", ()),
        *(Reason(code="NOT_KNOWN", text=why) for why in controller.backend.problems().values()),
    ]
    reasons_why += too_tight(controller, name)
    if (note := controller.backend.notes().get(name)) is not None:
        reasons_why.append(Reason(code="BY_HAND", text=note))
    if (note := controller.backend.past().get(name)) is not None:
        reasons_why.append(Reason(code="WAS_BY_HAND", text=f"{note}; it is not so any more"))
    told += [{"code": reason.code, "text": reason.text} for reason in reasons_why]
    return {**_fleet(controller, name, now), "reasons": told}


def routes(controller: Controller, now: float) -> list[dict[str, Any]]:
    """Every route of the latest table."""
    table = controller.orders.table or controller.memory.last_plan.table
    return [
        {
            "model": route.model,
            "targets": [
                {
                    "version": target.version,
                    "weight_percent": target.weight_percent,
                    "replicas": list(table.pools.get(target.pool or "", ())),
                }
                for target in route.targets
            ],
            "pinned": {str(number): list(table.pools.get(pool or "", ())) for number, pool in route.pinned.items()},
            "sequence": route.sequence_idle_s is not None,
            "reasons": {str(number): text for number, text in route.reasons.items()},
        }
        for _, route in sorted(table.routes.items())
    ]
