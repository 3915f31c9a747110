"""`python -m gateway --home HOME`: run one gateway in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from controlplane.core.errors import STATUS, ControlPlaneError
from controlplane.local.home import Home
from controlplane.logs import configure
from gateway.service import Gateway
from gateway.settings import read_settings


def main() -> int:
    """Parse the arguments, run until SIGTERM or SIGINT, return the exit status."""
    parser = argparse.ArgumentParser(prog="gateway", description="Envoy with the control plane's routes.")
    parser.add_argument(
        "--home", type=Path, required=True, help="the system's folder; settings in gateway/settings.json"
    )
    parser.add_argument(
        "--grace-s", type=float, default=5.0, help="what requests in flight get at the end (%(default)s)"
    )
    arguments = parser.parse_args()
    configure()
    try:
        asyncio.run(_run(arguments.home, arguments.grace_s))
    except ControlPlaneError as error:
        sys.stderr.write(f"{error}\n")
        return STATUS[error.code].exit
    return 0


async def _run(folder: Path, grace_s: float) -> None:
    home = Home(folder)
    gateway = Gateway(home, read_settings(home.gateway))
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
