"""`python -m gateway --home HOME`: run one gateway in the foreground.

On one machine everything else is in the home: the settings, where the controller is, the token. Elsewhere it is given.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from controlplane.client.access import fixed_access
from controlplane.core.errors import STATUS, ControlPlaneError, InvalidInput
from controlplane.local.home import Home
from controlplane.local.processes import allow_open_files
from controlplane.logs import configure
from gateway import probes
from gateway.service import Gateway
from gateway.settings import read_settings, read_settings_file


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="gateway", description="Envoy with the control plane's routes.")
    parser.add_argument("--home", type=Path, required=True, help="the system's folder, for what the gateway keeps")
    parser.add_argument("--settings", type=Path, help="the settings' file (default: gateway/settings.json in the home)")
    parser.add_argument("--name", help="this gateway's name (default: as the settings say)")
    parser.add_argument("--controller-url", help="where the controller is (default: as the home says)")
    parser.add_argument("--token-file", type=Path, help="the token for the controller (default: token in the home)")
    parser.add_argument(
        "--port", type=int, help="serve /livez, /readyz and /drain there (default: they are not served)"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        help="serve /metrics there (default: on loopback alone, at the Python side's port)",
    )
    parser.add_argument(
        "--drain-s", type=float, default=30.0, help="what /drain waits for requests in flight (%(default)s)"
    )
    parser.add_argument(
        "--grace-s", type=float, default=5.0, help="what requests in flight get at the end (%(default)s)"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Parse the arguments, run until SIGTERM or SIGINT, return the exit status."""
    arguments = parse()
    configure()
    allow_open_files()
    try:
        asyncio.run(_run(arguments))
    except ControlPlaneError as error:
        sys.stderr.write(f"{error}\n")
        return STATUS[error.code].exit
    return 0


def make(arguments: argparse.Namespace) -> Gateway:
    """The gateway that the arguments describe. Raises InvalidInput."""
    home = Home(arguments.home)
    home.logs.mkdir(parents=True, exist_ok=True)
    settings = read_settings_file(arguments.settings) if arguments.settings else read_settings(home.gateway)
    if arguments.name:
        settings = replace(settings, name=arguments.name)
    access = None
    if arguments.controller_url:
        access = fixed_access(arguments.controller_url, arguments.token_file or home.token_file)
    elif arguments.token_file:
        raise InvalidInput(
            "--token-file is for a controller at a given URL", field="--token-file", remedy="add --controller-url"
        )
    return Gateway(home, settings, access)


async def _run(arguments: argparse.Namespace) -> None:
    gateway = make(arguments)
    async with contextlib.AsyncExitStack() as stack:
        if arguments.port is not None:
            app = probes.application(gateway, drain_s=arguments.drain_s)
            await stack.enter_async_context(probes.serving(app, option="--port", port=arguments.port))
        if arguments.metrics_port is not None:
            app = probes.metrics(gateway)
            await stack.enter_async_context(probes.serving(app, option="--metrics-port", port=arguments.metrics_port))
        await _until_told(gateway, arguments.grace_s)


async def _until_told(gateway: Gateway, grace_s: float) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    running = asyncio.ensure_future(gateway.run())
    ended = asyncio.ensure_future(stopped.wait())
    await asyncio.wait((running, ended), return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if not running.done():
        # Envoy first, while the Python side still answers what is in flight there.
        await gateway.stop(grace_s)
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await running
        except ExceptionGroup as group:
            raise group.exceptions[0] from group


if __name__ == "__main__":
    sys.exit(main())
