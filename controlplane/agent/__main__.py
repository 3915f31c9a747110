"""One replica's agent: ``python -m controlplane.agent --home DIR --replica NAME --fleet NAME``.

SIGTERM and SIGINT end the server, then the agent. Killed in any other way, it leaves the server running; the next agent
of the same name takes it over. With ``--pod-ip`` the server is another container of its pod, and its own affair.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import structlog

from controlplane.agent.agent import Agent
from controlplane.agent.probes import answering
from controlplane.agent.settings import Settings
from controlplane.agent.triton.installation import find_installation
from controlplane.agent.triton.pod import PodProcess
from controlplane.agent.triton.process import LocalProcess
from controlplane.agent.triton.server import TritonServer
from controlplane.client.access import Access, fixed_access, read_access
from controlplane.core.errors import STATUS, ControlPlaneError
from controlplane.fleet.local import stopped_file
from controlplane.local.home import Home
from controlplane.logs import configure

log = structlog.get_logger(__name__)


def parse(arguments: list[str] | None = None) -> tuple[Settings, Callable[[], Access]]:
    """The settings that an argument list gives, and the way to the controller. Raises InvalidInput."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.agent", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the home folder that `ctl up` prepared")
    parser.add_argument("--replica", required=True, help="the replica's name")
    parser.add_argument("--fleet", required=True, help="the fleet it belongs to")
    parser.add_argument("--controller-url", help="where the controller is (default: as the home says)")
    parser.add_argument("--token-file", type=Path, help="what is shown to it (default: the home's token)")
    defaults = Settings(home=Path(), replica="", fleet="")
    for setting in fields(Settings)[3:]:
        default = getattr(defaults, setting.name)
        option = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"default: {default}")
    found = vars(parser.parse_args(arguments))
    home = Home(found["home"].resolve())
    url, token_file = found.pop("controller_url"), found.pop("token_file") or home.token_file
    settings = Settings(**{**found, "home": home.root})

    def access() -> Access:
        return read_access(home.controller_file, token_file)

    return settings, access if url is None else fixed_access(url, token_file)


async def run(settings: Settings, access: Callable[[], Access]) -> None:
    """Run the agent until it is told to stop."""
    process = PodProcess(settings) if settings.pod_ip else LocalProcess(settings, find_installation())
    agent = Agent(settings, TritonServer(settings, process), access)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.stop)
    async with contextlib.AsyncExitStack() as stack:
        if settings.pod_ip:
            await stack.enter_async_context(answering(agent, settings.pod_ip, settings.port, settings.drain_s))
        ordered = await agent.run()
    if ordered and not settings.pod_ip:
        stopped_file(Home(settings.home), settings.replica).touch()


def main() -> int:
    """Parse the arguments and run; the exit status says what went wrong."""
    configure()
    try:
        settings, access = parse()
        structlog.contextvars.bind_contextvars(replica=settings.replica, fleet=settings.fleet)
        asyncio.run(run(settings, access))
    except ControlPlaneError as error:
        log.error("the agent ends", code=error.code, reason=str(error))
        return STATUS[error.code].exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
