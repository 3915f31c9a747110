"""`ctl up`: a whole system on this machine, in the foreground or detached."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

import click
import httpx2

from controlplane.cli.arguments import dry_run_option
from controlplane.cli.context import Context, pass_context
from controlplane.core.errors import ControlPlaneError, DeadlineExceeded, InvalidEntry, InvalidInput
from controlplane.entry.document import Path as Place
from controlplane.entry.document import read_document
from controlplane.entry.problems import problem_of
from controlplane.entry.wording import size_bytes
from controlplane.local.gpus import count_gpus
from controlplane.local.home import Home
from controlplane.local.processes import HOME_VARIABLE, sweep
from controlplane.local.supervisor import LOCK_VARIABLE, Supervisor, owned, owner
from controlplane.local.system import System, load_system, read_system

if TYPE_CHECKING:
    from gateway.settings import Settings

LOOK_S = 0.25
_ENDS: Final = {"replica": "replica {}: gone", "gateway": "gateway {}: gone", "problem": "problem with {}: over"}
"""What is said when there is none any more, by the kind of thing."""
NEXT = "next: "
"""How the last line of a start-up that went well begins."""


@click.command()
@click.option("-f", "--file", "file", type=click.Path(path_type=Path), help="The system's definition (YAML).")
@click.option("-d", "--detach", is_flag=True, help="Return when it is ready; `ctl down` ends it.")
@click.option("--registry", "registry", help="Where models are kept: a folder or s3://bucket/prefix.")
@click.option("--timeout", "timeout_s", type=float, default=120.0, show_default=True, help="Seconds to wait with -d.")
@dry_run_option
@pass_context
def up(
    context: Context, *, file: Path | None, detach: bool, registry: str | None, timeout_s: float, dry_run: bool
) -> None:
    """Start a system on this machine: registry, controller, gateway, replicas.

    Without -f: what this home had the last time, at first a directory registry and one fleet of one replica. It runs in
    the foreground until Ctrl-C; everything is kept in the home folder (./.ctl), which also tells the other commands
    where things are.
    """
    context.refuse_kubernetes("up", "`helm install` starts a release, `helm upgrade` changes it")
    home = context.home
    known = load_system(home) if file is None else None
    system = known or read_system(file, home)
    if registry is not None:
        system = replace(system, registry=registry if "://" in registry else str(Path(registry).resolve()))
    settings = gateway_settings(system, file or (home.system_file if known is not None else None))
    if LOCK_VARIABLE not in os.environ:  # else it was said by whoever started this
        if known is not None:
            _say(f"defined as the last time ({home.system_file}); -f FILE defines it anew")
        _tell_of_gpus(system)
    if dry_run:
        from controlplane.cli.would import print_start

        print_start(home, system, settings)
        return
    if detach:
        _detach(home, system, settings, file=file, registry=registry, timeout_s=timeout_s)
        return
    with owned(home):
        _place(settings, home)
        _run(home, system)


def _tell_of_gpus(system: System) -> None:
    asked = max(fleet.gpus for fleet in system.fleets)
    if asked and (present := count_gpus()) < asked:
        _say(f"{asked} GPUs are asked for by a replica, and nvidia-smi lists {present}: models for GPUs may not load")


def _place(settings: Settings, home: Home) -> None:
    """Leave the gateway's settings in its folder."""
    from gateway.settings import write_settings

    write_settings(home.gateway, settings)


def gateway_settings(system: System, file: Path | None = None) -> Settings:
    """The gateway's settings as the system has them. Raises InvalidEntry for wrong ones, with the line where `file`
    defines the system."""
    from pydantic import TypeAdapter, ValidationError

    from gateway.settings import Settings, check

    subject = str(file or "the system")
    given = {name: _in_bytes(name, value) for name, value in system.gateway.items()}
    try:
        settings = TypeAdapter(Settings).validate_python(given)
        check(settings)
    except ValidationError as error:
        lines = _lines(file)
        problems = tuple(
            problem_of({**each, "loc": ("gateway", *each["loc"])}, lines, dict[str, Settings])
            for each in error.errors(include_url=False)
        )
        raise InvalidEntry(subject, problems) from error
    except InvalidInput as error:
        raise InvalidEntry(subject, (error,)) from error
    return settings


def _in_bytes(name: str, value: object) -> object:
    """A size as people write it, in bytes; what is none is refused where it is read."""
    size = size_bytes(value) if isinstance(value, str) and name.endswith("_bytes") else None
    return value if size is None else size


def _lines(file: Path | None) -> Mapping[Place, int]:
    """Where things stand in the file, if it is still there to be read again."""
    if file is None or not file.is_file():
        return {}
    try:
        return read_document(file.read_bytes(), str(file)).lines
    except (OSError, InvalidInput):
        return {}


class _Interrupted(Exception):
    pass


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise _Interrupted


def _run(home: Home, system: System) -> None:
    supervisor = Supervisor(home)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        for number in numbers:
            signal.signal(number, _interrupt)
        left = supervisor.start(system)
        if left:
            _say(f"cleared away {left} processes that an earlier run left")
        _say(f"home {home.root}, registry {system.registry}")
        reporter = _Reporter(home)
        while True:
            for news in supervisor.look():
                _say(f"{news} (see {home.logs})")
            reporter.look()
            supervisor.was_ready = reporter.ready
            time.sleep(LOOK_S)
    except _Interrupted:
        _say("stopping …")
    finally:
        for number in numbers:  # a second Ctrl-C must not leave half of it behind
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop()
    _say("stopped")


class _Reporter:
    """Says what has changed since the last look, a line each."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._said: dict[str, str] = {}
        self.ready = False

    def look(self) -> None:
        try:
            state = _read_state(self._home)
        except (ControlPlaneError, httpx2.HTTPError):
            return
        for key, text in state.lines.items():
            if self._said.get(key) != text:
                _say(text)
        # A controller that has just started does not know yet who is there.
        gone = self._said.keys() - state.lines.keys() if state.settled else set()
        for key in sorted(gone):
            kind, _, name = key.partition("/")
            if kind in _ENDS:
                _say(_ENDS[kind].format(name))
        self._said = {key: text for key, text in (self._said | state.lines).items() if key not in gone}
        if state.ready and not self.ready:
            self.ready = True
            for line in next_steps(self._home, state.models):
                _say(line)


@dataclass(frozen=True, slots=True)
class _State:
    lines: dict[str, str]
    settled: bool
    ready: bool
    models: int


def _read_state(home: Home) -> _State:
    from controlplane.client.reader import Reader

    with Reader.of(home) as reader:
        status = reader.get("/v1/status")
        replicas, gateways = reader.get("/v1/replicas"), reader.get("/v1/gateways")
    lines = {}
    for each in replicas:
        why = f" ({each['reason']})" if each["reason"] and each["server"] != "ready" else ""
        lines[f"replica/{each['name']}"] = f"replica {each['name']}: {each['server']}{why}"
        for copy in each["copies"]:
            name = f"{copy['model']}@{copy['version']}"
            what = f": {copy['reason']}" if copy["reason"] else ""
            lines[f"copy/{each['name']}/{name}"] = f"  {name} on {each['name']}: {copy['state']}{what}"
    for each in gateways:
        ready = "ready" if each["ready"] else f"not ready ({each['reason'] or 'starting'})"
        lines[f"gateway/{each['name']}"] = f"gateway {each['name']}: {ready}"
    for key, text in status["problems"].items():
        lines[f"problem/{key}"] = f"problem with {key}: {text}"
    ready = status["replicas_ready"] >= status["replicas_wanted"] and status["gateways_ready"] > 0
    settled = status["settled"] and status["planned_s_ago"] is not None
    return _State(lines, settled, ready, status["models"])


def next_steps(home: Home, models: int) -> list[str]:
    """What to do next, with this system's own addresses and so many models in its registry."""
    from controlplane.cli.addresses import gateway_addresses

    addresses = gateway_addresses(home)
    first = "ctl register NAME MODEL.onnx && ctl promote NAME 1"
    return [
        f"ready: gRPC {addresses.grpc}, HTTP http://{addresses.http}",
        f"{NEXT}{'ctl get routes' if models else first}",
    ]


def _detach(
    home: Home, system: System, settings: Settings, *, file: Path | None, registry: str | None, timeout_s: float
) -> None:
    command = [sys.executable, "-m", "controlplane.cli.main", "--home", str(home.root), "up"]
    command += ["-f", str(file)] if file is not None else []
    command += ["--registry", system.registry] if registry is not None else []
    log_file = home.logs / "up.log"
    with owned(home) as ownership:  # refuses here, where somebody reads it, if the home is in use
        _place(settings, home)
        lock = ownership.descriptor
        try:
            with log_file.open("ab") as output:
                begin = output.tell()
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(lock,),
                    env={**os.environ, HOME_VARIABLE: str(home.root.resolve()), LOCK_VARIABLE: str(lock)},
                )
            ownership.hand_over(process.pid)
        except KeyboardInterrupt:
            sweep(home.root)  # it may run, although its start did not return
            raise
    deadline = time.monotonic() + timeout_s
    try:
        with log_file.open(errors="replace") as said:
            said.seek(begin)
            while time.monotonic() < deadline:
                ended = process.poll()
                for line in said:
                    click.echo(line.rstrip("\n"), err=True)
                    if line.startswith(NEXT):
                        return
                if ended is not None:
                    raise click.exceptions.Exit(ended)  # it has just said why
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(30.0)
        end(home, timeout_s=30.0)
        raise
    raise DeadlineExceeded(
        f"the system was not ready after {timeout_s:.0f} s; it goes on starting",
        remedy=f"look at `ctl get replicas` and {home.logs}, or end it with `ctl down`",
    )


def end(home: Home, *, timeout_s: float) -> bool:
    """End a home's system, whoever runs it. True if there was one."""
    from controlplane.local import processes

    pid = owner(home)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while owner(home) is not None:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"process {pid} has not ended after {timeout_s:.0f} s", remedy="look at it, then try again"
                )
            time.sleep(0.05)
    left = processes.sweep(home.root)
    home.controller_file.unlink(missing_ok=True)
    return pid is not None or left > 0


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the disk of the log may be full: no reason to end
        click.echo(text, err=True)
