"""Runs a local system: the controller and the gateway as processes of their own, started again when they end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from controlplane.backoff import backoff_s
from controlplane.core.errors import STATUS, Conflict, InvalidInput, Unauthenticated
from controlplane.local import processes
from controlplane.local.home import Home
from controlplane.local.system import System, save_system

LOCK_VARIABLE = "CTL_LOCK_FD"
"""Names the open lock file that a detached `ctl up` gets from whoever started it, so that nobody comes in between."""

_HOPELESS = {each.code: each for each in (InvalidInput, Unauthenticated, Conflict)}
"""Ends of a part after which starting it again would change nothing."""

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.2, 10.0
STEADY_S = 20.0
"""After this long without an end, a part counts as steady and its back-off starts over."""
LOG_BYTES, LOGS_EVERY_S = 20 << 20, 10.0
"""A log that has grown beyond this is put aside, of which one old one is kept; they are looked at so often."""


@dataclass(slots=True)
class _Part:
    name: str
    module: str
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    again_at: float = 0.0
    ends: int = 0

    def put_off(self, now: float) -> float:
        """Have it wait before it is started again; returns for how long, in seconds."""
        self.ends = 1 if now - self.started_at > STEADY_S else self.ends + 1
        delay_s = backoff_s(self.ends, BACKOFF_MIN_S, BACKOFF_MAX_S)
        self.again_at = now + delay_s
        return delay_s


@dataclass(slots=True)
class Supervisor:
    """The owner of one home. `start`, then `look` again and again, then `stop`."""

    home: Home
    was_ready: bool = False
    """Whether the system has been ready once: from then on nothing makes the supervisor give up."""
    parts: list[_Part] = field(
        default_factory=lambda: [_Part("controller", "controlplane.server"), _Part("gateway", "gateway")]
    )
    logs_at: float = 0.0
    """When logs are looked at next, on the monotonic clock."""

    def start(self, system: System) -> int:
        """Clear away what an earlier run left, write the system down, start the parts. Returns how many were left."""
        left = processes.sweep(self.home.root)
        self.home.controller_file.unlink(missing_ok=True)
        for orders in self.home.root.glob("replicas/*/assignment.json"):
            orders.unlink()  # they may be of another registry, whose epochs are not comparable with this one's
        for state in (self.home.gateway / "epoch.json", self.home.served_file):
            state.unlink(missing_ok=True)  # and so may these; whom they lead to is gone
        save_system(system, self.home)
        if system.metrics.program is not None:
            self.parts.append(_Part("prometheus", "controlplane.metrics.program"))
        for part in self.parts:
            self._start(part)
        return left

    def look(self) -> list[str]:
        """Start again what has ended, with back-off; a sentence for each part that has ended since last time.

        Raises InvalidInput, Unauthenticated or Conflict when a part says at the first start that it can't run as it is
        set up. A system that was ready once is never given up: what has gone wrong since (a store's outage, somebody's
        bad document) must not end what still serves.
        """
        news = []
        now = time.monotonic()
        if now >= self.logs_at:
            self.logs_at = now + LOGS_EVERY_S
            self._put_logs_aside()
        for part in self.parts:
            if part.popen is not None and part.popen.poll() is not None:
                delay_s = part.put_off(now)
                status, part.popen = part.popen.returncode, None
                self._give_up_if_hopeless(part, status)
                news.append(f"the {part.name} ended ({_how(status)}); again in {delay_s:.1f} s")
            if part.popen is None and now >= part.again_at:
                try:
                    self._start(part)
                except OSError as error:  # no memory or no process to be had, which may pass
                    news.append(f"the {part.name} can't be started ({error}); again in {part.put_off(now):.1f} s")
        return news

    def _give_up_if_hopeless(self, part: _Part, status: int) -> None:
        kind = next((code for code in _HOPELESS if STATUS[code].exit == status), None)
        if kind is not None and not self.was_ready:
            raise _HOPELESS[kind](f"the {part.name} can't run: {last_words(self.log_file(part.name))}")

    def _put_logs_aside(self) -> None:
        """Those that have grown. Whoever writes one has it open, and writes at its end, wherever that is."""
        for path in self.home.logs.glob("*.log"):
            with contextlib.suppress(OSError):
                if path.stat().st_size > LOG_BYTES:
                    shutil.copyfile(path, path.with_suffix(".log.1"))
                    os.truncate(path, 0)

    def log_file(self, name: str) -> Path:
        """Where a part's output goes."""
        return self.home.logs / f"{name}.log"

    def _start(self, part: _Part) -> None:
        part.started_at = time.monotonic()
        part.popen, _ = processes.start(
            [sys.executable, "-m", part.module, "--home", str(self.home.root)],
            home=self.home.root,
            log_file=self.log_file(part.name),
            environment=dict(os.environ),
        )

    def stop(self, *, grace_s: float = 15.0) -> None:
        """End everything of this home: first who decides and who routes, then the replicas, then whatever is left."""
        for part in self.parts:
            if part.popen is not None:
                part.popen.terminate()
        deadline = time.monotonic() + grace_s
        for part in self.parts:
            if part.popen is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    part.popen.wait(max(0.1, deadline - time.monotonic()))
        agents = [each for each in processes.of_home(self.home.root) if _is_agent(each)]
        for agent in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.terminate()
        processes.wait_ended(agents, timeout_s=max(0.1, deadline - time.monotonic()))
        processes.sweep(self.home.root)
        self.home.controller_file.unlink(missing_ok=True)


def last_words(log_file: Path) -> str:
    """The last line of a part's log: why it ended, in its own words."""
    lines = log_file.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it left no word"
    try:
        return str(json.loads(last)["reason"])
    except (ValueError, KeyError, TypeError):
        return last


def _is_agent(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "controlplane.agent" in process.cmdline()
    return False


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status}"


class Ownership:
    """The lock of a home, held for as long as its file is open in some process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.handed_over = False
        self._say(os.getpid())

    def hand_over(self, pid: int) -> None:
        """Leave the home to a process that has inherited `descriptor`."""
        self._say(pid)
        self.handed_over = True

    def close(self) -> None:
        """Free the home, unless it was handed over."""
        if not self.handed_over:
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)

    def _say(self, pid: int) -> None:
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{pid}\n".encode(), 0)


@contextlib.contextmanager
def owned(home: Home) -> Iterator[Ownership]:
    """Hold a home for this process alone. Raises Conflict when another `ctl up` has it."""
    try:
        home.prepare()
        descriptor = _inherited_lock()
        if descriptor is None:
            descriptor = os.open(home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidInput(
            f"{home.root} can't be used as the home: {error.strerror}", remedy="choose another folder with --home"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Conflict(
            f"{home.root} belongs to a running `ctl up` (process {owner(home) or 'unknown'})",
            remedy="change its fleets with `ctl reload -f FILE`, end it with `ctl down`, or choose another folder with "
            "--home",
        ) from error
    ownership = Ownership(descriptor)
    try:
        yield ownership
    finally:
        ownership.close()


def _inherited_lock() -> int | None:
    """The lock file that this process was given, open and locked; not to be given on by chance."""
    given = os.environ.pop(LOCK_VARIABLE, "")
    if not given.isdecimal():
        return None
    os.set_inheritable(int(given), False)
    return int(given)


def owner(home: Home) -> int | None:
    """The process that holds a home; None when nobody does."""
    try:
        with home.lock_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except FileNotFoundError:
        return None
