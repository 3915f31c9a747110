"""One of several controllers, in a process of its own: the real election, API and loop, with a registry in a directory.

It prints what happens to it as JSON, one line each, with the machine's monotonic time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import uvicorn

from controlplane.core.models import FleetShape
from controlplane.core.snapshot import Settings
from controlplane.fleet.cluster import configured
from controlplane.fleet.protocol import FleetReplica, News
from controlplane.logs import configure
from controlplane.registry import open_registry
from controlplane.render.sharing import compatible
from controlplane.server import leases
from controlplane.server.api import Serving, application
from controlplane.server.claiming import claim
from controlplane.server.controller import Controller
from controlplane.server.identity_tokens import ReviewedTokens, reviewer
from controlplane.server.leading import Election, Record, new_identity
from controlplane.server.leases import KubernetesLease

SHAPE = FleetShape(name="cpu", memory_bytes=1 << 30)
REPLICA = "serving-cpu-0"


class Pods:
    """A fleet of one pod that is always there."""

    async def list(self) -> tuple[FleetReplica, ...]:
        return (FleetReplica(name=REPLICA, fleet=SHAPE.name),)

    async def start(self, shape: FleetShape, replica: str) -> None:
        pass

    def notes(self) -> Mapping[str, str]:
        return {}

    def past(self) -> Mapping[str, str]:
        return {}

    def problems(self) -> Mapping[str, str]:
        return {}

    def tell(self, news: News) -> None:
        pass

    def gateways(self) -> None:
        return

    async def remove(self, replica: str) -> None:
        pass


class Watched(KubernetesLease):
    """A Lease that tells when it is looked at."""

    def read(self) -> Record | None:
        tell("looks")
        return super().read()


class Wrong(datetime):
    """The time as a machine has it whose clock is `by` off."""

    by = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + cls.by


def set_wrong(by: timedelta) -> None:
    """Have this process's wall clock be off, for what it writes into the Lease and whatever else asks Python for it."""
    right = time.time
    Wrong.by = by
    leases.datetime = Wrong  # type: ignore[attr-defined]
    time.time = lambda: right() + by.total_seconds()


def tell(event: str, **what: object) -> None:
    """From whatever thread: a line is written in one piece."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **what}) + "\n")
    sys.stdout.flush()


async def serve(arguments: argparse.Namespace) -> None:
    configuration = configured(arguments.kubeconfig)
    registry = open_registry(str(arguments.registry))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        lease = Watched(configuration, namespace=arguments.namespace, name=f"{arguments.release}-controller")
        election = Election(lease, identity=new_identity(arguments.name), address=url)
        serving = Serving(leader=lambda: election.elsewhere, ready=lambda: election.heard)
        identify = ReviewedTokens(reviewer(configuration), namespace=arguments.namespace, release=arguments.release)
        server = uvicorn.Server(
            uvicorn.Config(application(serving, identify), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        )
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]

        async def lead() -> None:
            tell("leads")
            epoch = await claim(registry, f"kubernetes:{arguments.namespace}/{arguments.release}")
            controller = Controller(
                registry=registry,
                epoch=epoch,
                shapes={SHAPE.name: SHAPE},
                backend=Pods(),
                settings=Settings(settle_s=1.0),
                poll_s=0.5,
                clash=compatible,
            )
            serving.controller = controller
            tell("serves", epoch=epoch)
            try:
                await controller.run()
            finally:
                serving.controller = None
                controller.orders.close()
                tell("stops", epoch=epoch)

        tell("listens", url=url)
        api = asyncio.create_task(server.serve(sockets=[listener]))
        running = asyncio.create_task(election.run(lead))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        await asyncio.wait((running,))
        tell("ends", error=None if running.cancelled() else repr(running.exception()))
        server.should_exit = True
        await asyncio.gather(api, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--release", default="serving")
    parser.add_argument("--name", required=True)
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--clock-offset", type=float, default=0.0, metavar="SECONDS")
    arguments = parser.parse_args()
    set_wrong(timedelta(seconds=arguments.clock_offset))
    configure()
    asyncio.run(serve(arguments))
