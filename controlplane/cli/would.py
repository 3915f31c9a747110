"""What `ctl up` would start and `ctl down` would end: their dry runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.cli.output import DRY_RUN, print_table, size
from controlplane.core.errors import Conflict
from controlplane.local.home import Home
from controlplane.local.supervisor import owner
from controlplane.local.system import FleetSettings, System

if TYPE_CHECKING:
    import psutil

    from gateway.settings import Settings


def print_start(home: Home, system: System, gateway: Settings) -> None:
    """Print the parts that a start would have. Raises InvalidInput for a registry's address that is none, and Conflict
    for a home that is in use."""
    from controlplane.registry import open_registry

    pid = owner(home)
    if pid is not None:
        raise Conflict(f"{home.root} belongs to a running `ctl up` (process {pid})", remedy="end it with `ctl down`")
    registry = open_registry(system.registry)
    rows = [
        ("registry", registry.url),
        ("controller", f"port {_port(system.controller.port)}"),
        (
            "gateway",
            f"address {gateway.address}, gRPC port {_port(gateway.grpc_port)}, HTTP port {_port(gateway.http_port)}",
        ),
        *([("prometheus", system.metrics.program)] if system.metrics.program else []),
        *((f"fleet {fleet.name}", _fleet(fleet)) for fleet in system.fleets),
    ]
    print_table(("PART", "WHAT"), rows)
    click.echo(f"{home.root} would be the home{DRY_RUN}", err=True)


def print_end(home: Home) -> None:
    """Print the processes that would be ended."""
    import psutil

    from controlplane.local import processes

    pid = owner(home)
    found = {each.pid: each for each in processes.of_home(home.root)}
    with contextlib.suppress(psutil.NoSuchProcess):
        found |= {pid: psutil.Process(pid)} if pid is not None and pid != os.getpid() else {}
    if not found:
        click.echo(f"nothing is running for {home.root}{DRY_RUN}", err=True)
        return
    print_table(("PROCESS", "WHAT"), [(str(each), _what(found[each], pid)) for each in sorted(found)])
    click.echo(f"{len(found)} processes would be ended; the registry stays{DRY_RUN}", err=True)


def _port(number: int) -> str:
    return str(number) if number else "any that is free"


def _fleet(fleet: FleetSettings) -> str:
    least, most = fleet.replicas.min, fleet.replicas.max
    count = str(least) if least == most else f"{least} to {most}"
    gpus = f", {fleet.gpus} GPUs" if fleet.gpus else ""
    return f"{count} {'replica' if most == 1 else 'replicas'} with {size(fleet.memory_bytes)} for models each{gpus}"


def _what(process: psutil.Process, owner_pid: int | None) -> str:
    """A process in a word: the module that Python runs, or the program."""
    import psutil

    if process.pid == owner_pid:
        return "ctl up"
    try:
        command = process.cmdline()
    except psutil.Error:
        command = []
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return Path(command[0]).name if command else "has just ended"
