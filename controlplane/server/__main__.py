"""The controller: of a local system ``python -m controlplane.server --home DIR``, in a pod ``… --kubernetes --config
FILE``."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import structlog
import uvicorn
from pydantic import TypeAdapter

from controlplane.client.access import ControllerAddress
from controlplane.core.errors import STATUS, ControlPlaneError, InvalidInput
from controlplane.fleet.local import LocalFleet
from controlplane.local import processes
from controlplane.local.home import Home, write_private
from controlplane.local.serving import QuietServer
from controlplane.local.system import System, load_system
from controlplane.logs import configure
from controlplane.metrics.source import source_of
from controlplane.registry import open_registry
from controlplane.render.sharing import compatible
from controlplane.server.acting import record_shapes
from controlplane.server.api import make_app
from controlplane.server.claiming import claim
from controlplane.server.controller import Controller, collect_garbage_seldom
from controlplane.server.listening import listen

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
LEAST_STARTS = 4
"""So many replicas of a fleet start at the same time, or as many as there are CPUs: more would all be late."""


async def serve(home: Home, system: System) -> None:
    """Run the controller until it is told to stop. Raises ControlPlaneError when it can't go on."""
    registry = open_registry(system.registry)
    shapes = {fleet.name: fleet.shape() for fleet in system.fleets}
    epoch = await claim(registry, identity=f"{socket.gethostname()}:{home.root.resolve()}")
    await record_shapes(registry, shapes.values())
    controller = Controller(
        registry=registry,
        epoch=epoch,
        shapes=shapes,
        backend=LocalFleet(home),
        settings=replace(system.controller.settings(), starts_at_once=max(LEAST_STARTS, os.cpu_count() or 1)),
        poll_s=system.controller.poll_s,
        clash=compatible,
        source=source_of(system.metrics, home),
    )
    listener = listen(HOST, system.controller.port)
    server = QuietServer(
        uvicorn.Config(
            make_app(controller, home.token_file.read_text().strip()),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    write_private(home.controller_file, TypeAdapter(ControllerAddress).dump_json(_address(url)).decode())
    log.info("controller serves", url=url, epoch=epoch, registry=system.registry)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = {
        asyncio.create_task(server.serve(sockets=[listener]), name="api"),
        asyncio.create_task(controller.run(), name="loop"),
        asyncio.create_task(stop.wait(), name="stop"),
    }
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        if task.get_name() != "api":
            task.cancel()
    controller.orders.close()  # ends the long polls, so that the API can end at once
    server.should_exit = True
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


def _address(url: str) -> ControllerAddress:
    return ControllerAddress(url=url, pid=os.getpid())


def main() -> int:
    """Parse the arguments and serve; the exit status says what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.server", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--home", type=Path, help="the home folder that `ctl up` prepared")
    where.add_argument("--kubernetes", action="store_true", help="this is a pod that the chart has made")
    parser.add_argument("--config", type=Path, help="with --kubernetes: the system's definition")
    parser.add_argument("--kubeconfig", type=Path, help="with --kubernetes: the way there, outside of a pod")
    found = parser.parse_args()
    configure()
    processes.allow_open_files()
    collect_garbage_seldom()
    try:
        if found.kubernetes:
            from controlplane.server import pod  # noqa: PLC0415 - only a pod has to have what this needs

            if found.config is None:
                parser.error("--kubernetes needs --config")
            asyncio.run(pod.serve(pod.system_of(found.config), pod.pod_of(os.environ), found.kubeconfig))
            return 0
        home = Home(found.home)
        system = load_system(home)
        if system is None:
            raise InvalidInput(f"{home.root} holds no system", remedy="start it with `ctl up`")
        asyncio.run(serve(home, system))
    except ControlPlaneError as error:
        log.error("controller ends", code=error.code, reason=str(error))
        return STATUS[error.code].exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
