"""One replica's agent: ``python -m controlplane.agent --home DIR --replica NAME --fleet NAME``.

SIGTERM and SIGINT end the server, then the agent. Killed in any other way, it leaves the server running; the next agent
of the same name takes it over.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import fields
from pathlib import Path

import structlog

from controlplane.agent.agent import Agent
from controlplane.agent.settings import Settings
from controlplane.agent.triton.server import TritonServer
from controlplane.client.access import Access, read_access
from controlplane.core.errors import STATUS, ControlPlaneError
from controlplane.fleet.local import stopped_file
from controlplane.local.home import Home
from controlplane.logs import configure

log = structlog.get_logger(__name__)


def parse(arguments: list[str] | None = None) -> Settings:
    """The settings that an argument list gives."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.agent", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the home folder that `ctl up` prepared")
    parser.add_argument("--replica", required=True, help="the replica's name")
    parser.add_argument("--fleet", required=True, help="the fleet it belongs to")
    defaults = Settings(home=Path(), replica="", fleet="")
    for setting in fields(Settings)[3:]:
        default = getattr(defaults, setting.name)
        option = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"default: {default}")
    found = parser.parse_args(arguments)
    found.home = found.home.resolve()
    return Settings(**vars(found))


async def run(settings: Settings) -> None:
    """Run the agent until it is told to stop."""
    home = Home(settings.home)

    def access() -> Access:
        return read_access(home.controller_file, home.token_file)

    agent = Agent(settings, TritonServer(settings), access)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.stop)
    if await agent.run():
        stopped_file(home, settings.replica).touch()


def main() -> int:
    """Parse the arguments and run; the exit status says what went wrong."""
    settings = parse()
    configure()
    structlog.contextvars.bind_contextvars(replica=settings.replica, fleet=settings.fleet)
    try:
        asyncio.run(run(settings))
    except ControlPlaneError as error:
        log.error("the agent ends", code=error.code, reason=str(error))
        return STATUS[error.code].exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
