"""`ctl reload`: a running system takes over other settings of its fleets and its controller; serving goes on."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import psutil

from controlplane.cli.arguments import dry_run_option
from controlplane.cli.context import Context, pass_context, require
from controlplane.cli.output import DRY_RUN, note
from controlplane.cli.up import gateway_settings
from controlplane.client.access import ControllerAddress
from controlplane.core.errors import DeadlineExceeded, InvalidEntry, Unavailable
from controlplane.local import processes
from controlplane.local.changes import changes
from controlplane.local.home import Home
from controlplane.local.supervisor import last_words, owner
from controlplane.local.system import System, load_system, read_system, save_system

LOOK_S = 0.1


@click.command()
@click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path), required=True, help="The system's definition (YAML)."
)
@click.option("--timeout", "timeout_s", type=float, default=60.0, show_default=True, help="Seconds to wait.")
@dry_run_option
@pass_context
def reload(context: Context, file: Path, timeout_s: float, dry_run: bool) -> None:
    """Have the running system take its definition anew: fleets' sizes, what they are scaled for, budgets, new fleets.

    The controller is started again with it; requests go on. What would need other processes to be started again is
    refused, and nothing is changed then.
    """
    context.refuse_kubernetes("reload", "`helm upgrade` changes a release")
    require(context.home)
    before = load_system(context.home)
    if before is None or owner(context.home) is None:
        raise Unavailable(f"no system of {context.home.root} runs", remedy=f"start it with `ctl up -f {file}`")
    after = read_system(file, context.home)
    if after.registry == str(context.home.registry.resolve()):  # the file names none: `ctl up --registry` may have
        after = replace(after, registry=before.registry)
    found = changes(_told(before), _told(after, file))
    problems = tuple(each.problem for each in found if each.problem is not None)
    if problems:
        raise InvalidEntry(str(file), problems)
    for each in found:
        click.echo(str(each))
    if not found or dry_run:
        note(f"nothing is different{DRY_RUN if dry_run else ''}" if not found else f"would be taken over{DRY_RUN}")
        return
    _take_over(context.home, before, after, timeout_s)
    note("taken over; serving went on")


def _told(system: System, file: Path | None = None) -> System:
    """With all the gateway's settings, also those that are not written down. Raises InvalidEntry, InvalidInput."""
    return replace(system, gateway=asdict(gateway_settings(system, file)))


def _take_over(home: Home, before: System, after: System, timeout_s: float) -> None:
    """Start the controller again with another definition, or, where that fails, with the one before."""
    deadline = time.monotonic() + timeout_s
    ended = _end_controller(home, after)
    while not _is_settled(home, ended):
        if time.monotonic() > deadline:
            log_file = home.logs / "controller.log"
            why = last_words(log_file)
            _end_controller(home, before)
            raise DeadlineExceeded(
                f"no controller has taken it over after {timeout_s:.0f} s; what was defined before holds again. "
                f"Its last word: {why}",
                remedy=f"see {log_file}",
            )
        time.sleep(LOOK_S)


def _end_controller(home: Home, system: System) -> set[int]:
    """Write the definition down and end the controller, which `ctl up` starts again. Returns the processes' ids."""
    save_system(system, home)
    ended = set()
    for process in processes.of_home(home.root):
        with contextlib.suppress(psutil.Error):
            if "controlplane.server" in process.cmdline():
                process.terminate()
                ended.add(process.pid)
    return ended


def _is_settled(home: Home, ended: set[int]) -> bool:
    """Whether another controller than those has heard from everybody, and planned."""
    from pydantic import TypeAdapter

    from controlplane.client.reader import Reader

    with contextlib.suppress(OSError, ValueError, Unavailable):
        if TypeAdapter(ControllerAddress).validate_json(home.controller_file.read_bytes()).pid in ended:
            return False
        with Reader.of(home) as reader:
            status: dict[str, Any] = reader.get("/v1/status")
        return bool(status["settled"]) and status["planned_s_ago"] is not None
    return False
