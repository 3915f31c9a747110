"""The controller in a pod: stands by until it holds the lease, leads, and has its replicas run as pods."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from kubernetes.client import Configuration
from starlette.applications import Starlette

from controlplane import __version__
from controlplane.core.errors import ControlPlaneError, InvalidInput
from controlplane.fleet.cluster import client_of, configured
from controlplane.fleet.hands import MANAGER
from controlplane.fleet.kubernetes import KubernetesFleet
from controlplane.local.home import Home
from controlplane.local.serving import QuietServer
from controlplane.local.system import System, read_system
from controlplane.metrics.source import source_of
from controlplane.registry import open_registry
from controlplane.registry.claims import of_release
from controlplane.render.sharing import compatible
from controlplane.server.acting import record_shapes
from controlplane.server.api import Serving, application, metrics_application
from controlplane.server.claiming import claim
from controlplane.server.controller import Controller
from controlplane.server.identity_tokens import ReviewedTokens, reviewer
from controlplane.server.leading import Election, new_identity
from controlplane.server.leases import KubernetesLease, owner_of
from controlplane.server.listening import listen

log = structlog.get_logger(__name__)

NAME = "triton-controlplane"
PORT, METRICS_PORT = 8080, 8081
"""Whoever calls at the first needs a token. At the second there are metrics alone, for a Prometheus, which has none."""
DATA = Path("/data")
"""What a pod may write to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """Which pod this is. `release` begins the names of what the chart makes; `instance` is its label."""

    name: str
    namespace: str
    ip: str
    release: str
    instance: str
    port: int = PORT
    metrics_port: int = METRICS_PORT


def pod_of(environment: Mapping[str, str]) -> Pod:
    """The pod that the chart's variables describe. Raises InvalidInput."""
    missing = [name for name in ("POD_NAME", "POD_NAMESPACE", "POD_IP", "RELEASE") if not environment.get(name)]
    if missing:
        raise InvalidInput(
            f"{', '.join(missing)} must be set", remedy="the chart does that; outside of a pod use --home"
        )
    return Pod(
        name=environment["POD_NAME"],
        namespace=environment["POD_NAMESPACE"],
        ip=environment["POD_IP"],
        release=environment["RELEASE"],
        instance=environment.get("INSTANCE") or environment["RELEASE"],
        port=int(environment.get("PORT") or PORT),
        metrics_port=int(environment.get("METRICS_PORT") or METRICS_PORT),
    )


def labels_of(pod: Pod) -> dict[str, str]:
    """Labels for what a controller makes itself: the chart's objects have the same, but for who manages
    them."""
    return {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": pod.instance,
        "app.kubernetes.io/component": "controller",
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/managed-by": MANAGER,
        "app.kubernetes.io/part-of": NAME,
    }


def system_of(config: Path) -> System:
    """The system in the chart's file. Raises InvalidInput or InvalidEntry."""
    system = read_system(config, Home(DATA))
    if "://" not in system.registry:
        raise InvalidInput(
            f"{system.registry} is a folder, and pods share none",
            field="registry",
            remedy="name a bucket: s3://BUCKET/PREFIX",
        )
    return system


async def serve(system: System, pod: Pod, kubeconfig: Path | None = None) -> None:
    """Run until told to stop, as the leader or standing by. Raises ControlPlaneError when it can't go on."""
    configuration = configured(kubeconfig)
    owner = await _owner(configuration, pod)
    installation = str(owner["uid"]) if owner is not None else ""
    lease = KubernetesLease(
        configuration,
        namespace=pod.namespace,
        name=f"{pod.release}-controller",
        owner=owner,
        labels=labels_of(pod),
    )
    election = Election(lease, identity=new_identity(pod.name), address=f"http://{pod.ip}:{pod.port}")
    serving = Serving(leader=lambda: election.elsewhere, ready=lambda: election.heard)
    identify = ReviewedTokens(reviewer(configuration), namespace=pod.namespace, release=pod.release)
    servers = {
        pod.port: _server(application(serving, identify)),
        pod.metrics_port: _server(metrics_application(serving)),
    }
    listeners = {port: listen("", port) for port in servers}
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    apis = [asyncio.create_task(server.serve(sockets=[listeners[port]])) for port, server in servers.items()]
    stopping = asyncio.create_task(stop.wait())
    standing = asyncio.create_task(election.run(lambda: _lead(system, pod, configuration, serving, installation)))
    try:
        await asyncio.wait((*apis, stopping, standing), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (stopping, standing):
            task.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        for server in servers.values():
            server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await standing
        await asyncio.gather(*apis, return_exceptions=True)


def _server(app: Starlette) -> uvicorn.Server:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    return QuietServer(config)


async def _owner(configuration: Configuration, pod: Pod) -> dict[str, object] | None:
    """The controller's Deployment, with which the lease goes; None where that can't be known: then it stays."""
    try:
        return await asyncio.to_thread(
            owner_of, configuration, namespace=pod.namespace, deployment=f"{pod.release}-controller"
        )
    except ControlPlaneError as error:
        log.warning("the lease will stay behind when this is uninstalled", reason=str(error))
        return None


async def _lead(system: System, pod: Pod, configuration: Configuration, serving: Serving, installation: str) -> None:
    """Control the system for as long as nobody cancels it."""
    registry = open_registry(system.registry)
    shapes = {fleet.name: fleet.shape() for fleet in system.fleets}
    epoch = await claim(registry, of_release(pod.namespace, pod.release), installation)
    await record_shapes(registry, shapes.values())
    loop = asyncio.get_running_loop()
    woken: list[Controller] = []

    def changed() -> None:
        if woken:
            loop.call_soon_threadsafe(woken[0].wake)

    backend = KubernetesFleet(
        client_of(configuration),
        namespace=pod.namespace,
        selector=f"app.kubernetes.io/instance={pod.instance}",
        changed=changed,
        labels=labels_of(pod),
    )
    try:
        await backend.open()
        controller = Controller(
            registry=registry,
            epoch=epoch,
            shapes=shapes,
            backend=backend,
            settings=system.controller.settings(),
            poll_s=system.controller.poll_s,
            clash=compatible,
            source=source_of(system.metrics, Home(DATA)),
            names=[f"{pod.release}-{each}.{pod.namespace}" for each in ("controller", "gateway")],
        )
        woken.append(controller)
        serving.controller = controller
        log.info("controller leads", epoch=epoch, registry=system.registry, pod=pod.name)
        await controller.run()
    finally:
        if serving.controller is not None:
            serving.controller.orders.close()  # ends the long polls
        serving.controller = None
        backend.close()
