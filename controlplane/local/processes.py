"""Processes that outlive whoever started them: start them, recognise them later, end them and all their children.

A process is recognised by its id *and* its start time, since ids are reused. Each one carries its home folder in the
environment variable CTL_HOME, which its children inherit; so whatever a crash left behind can be found and ended,
without a list that might be incomplete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from controlplane.local.home import replace_file

OPEN_FILES = 65536
HOME_VARIABLE = "CTL_HOME"
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES")
"""What a server that runs model code inherits of its starter's environment: no credentials, no tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """A started process, as written beside it. `started_at` is the kernel's start time (seconds since 1970)."""

    pid: int
    started_at: float

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def scrubbed_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment for a server that runs other people's code."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**kept, **(extra or {}), HOME_VARIABLE: str(home.resolve())}


def start(
    command: Sequence[str],
    *,
    home: Path,
    log_file: Path,
    environment: Mapping[str, str],
    record_file: Path | None = None,
    folder: Path | None = None,
) -> tuple[subprocess.Popen[bytes], ProcessRecord]:
    """Start `command` in a session of its own, its output appended to `log_file`.

    `environment` is the whole environment, but for CTL_HOME, which is added. `folder` is where it runs; absent: where
    the caller does. Raises OSError when it can't be started.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, HOME_VARIABLE: str(home.resolve())},
            start_new_session=True,
            cwd=folder,
        )
    record = ProcessRecord(pid=popen.pid, started_at=psutil.Process(popen.pid).create_time())
    if record_file is not None:
        write_record(record_file, record)
    return popen, record


def write_record(path: Path, record: ProcessRecord) -> None:
    """Keep a record for whoever comes next."""
    replace_file(path, TypeAdapter(ProcessRecord).dump_json(record).decode())


def read_record(path: Path) -> ProcessRecord | None:
    """The record at `path`; None where there is none or it can't be read."""
    try:
        return TypeAdapter(ProcessRecord).validate_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def stop(process: psutil.Process, *, grace_s: float) -> None:
    """End a process and its children: ask, wait up to `grace_s`, then kill. Returns when they are gone."""
    family = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)
    wait_ended([process], timeout_s=grace_s)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    wait_ended(family, timeout_s=10)


def wait_ended(ones: Sequence[psutil.Process], *, timeout_s: float) -> bool:
    """Wait until none of them runs; whether that came true in time. One that has ended but whose parent has not taken
    note of it, which in a container may be never, does not run any more."""
    deadline = time.monotonic() + timeout_s
    while any(_runs(each) for each in ones):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def of_home(home: Path) -> Iterator[psutil.Process]:
    """Every running process of this user that was started for this home, but for the caller."""
    wanted = str(home.resolve())
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(HOME_VARIABLE) == wanted and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def sweep(home: Path) -> int:
    """Kill whatever runs for this home and remove its shared-memory files; returns how many processes there were."""
    found, empty_looks = 0, 0
    while empty_looks < 2:  # one may have been starting another, which is not to be seen before it runs
        processes = list(of_home(home))
        empty_looks = 0 if processes else empty_looks + 1
        if not processes:
            time.sleep(0.02)
        found += len(processes)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_ended(processes, timeout_s=10)
    remove_shared_memory(shared_memory_prefix(home))
    return found


def shared_memory_prefix(home: Path, replica: str = "") -> str:
    """The start of the names of all shared-memory files of a home, or of one replica of it."""
    prefix = "ctl_" + hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]
    return f"{prefix}_{hashlib.sha256(replica.encode()).hexdigest()[:8]}" if replica else prefix


def remove_shared_memory(prefix: str) -> None:
    """Remove the files of /dev/shm whose names start with `prefix`."""
    for path in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108 - it is where the kernel keeps them
        path.unlink(missing_ok=True)


def allow_open_files() -> None:
    """Let this process, and those that it starts, have OPEN_FILES files and connections open, or as many as it may:
    who serves thousands needs more than the usual 1,024."""
    present, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
    if present != resource.RLIM_INFINITY and present < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def free_ports(count: int, host: str = "127.0.0.1") -> tuple[int, ...]:
    """Ports that were free a moment ago. Another process may take one first: be ready to try again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return tuple(each.getsockname()[1] for each in sockets)
