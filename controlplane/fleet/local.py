"""Replicas as processes of this machine: an agent each, which has its server beside it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from pydantic import TypeAdapter, ValidationError

from controlplane.backoff import backoff_s
from controlplane.core.models import FleetShape
from controlplane.fleet.protocol import FleetReplica, News
from controlplane.local import processes
from controlplane.local.gpus import count_gpus
from controlplane.local.home import Home, replace_file

log = structlog.get_logger(__name__)

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.5, 30.0
STEADY_S = 30.0
"""After this long an agent counts as steady, and its back-off starts over."""
AGENT_GRACE_S = 30.0
DOWNLOAD_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """What is kept of a replica in its folder: whoever comes next can start its agent again."""

    shape: FleetShape
    gpus: tuple[int, ...] = ()


@dataclass(slots=True)
class _Ends:
    count: int = 0
    started_at: float = 0.0
    again_at: float = 0.0


class LocalFleet:
    """All local replicas of a home. Agents run in sessions of their own and are found again by their records, so they
    outlive the controller, and the next one takes them over."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._ends: dict[str, _Ends] = {}
        self._unread: set[str] = set()

    async def list(self) -> tuple[FleetReplica, ...]:
        """Every replica with a folder; agents that have died are started again, each time later. One that has ended
        because it was told to is removed, whoever told it."""
        found = []
        for name, started in self._replicas():
            if self._agent(name) is None:
                if stopped_file(self._home, name).exists():
                    await self.remove(name)
                    continue
                self._revive(name, started)
            found.append(FleetReplica(name=name, fleet=started.shape.name))
        return tuple(found)

    async def start(self, shape: FleetShape, replica: str) -> None:
        """Start its agent, unless it runs. It gets GPUs that as few others use as possible."""
        present = await asyncio.to_thread(count_gpus) if shape.gpus else 0
        folder = self._home.replica(replica)
        folder.mkdir(parents=True, exist_ok=True)
        uses = {name: each.gpus or tuple(range(each.shape.gpus)) for name, each in self._replicas()}
        own = uses.pop(replica, ())  # its server may run there
        gpus = own if len(own) == shape.gpus else deal(shape.gpus, present, uses.values())
        started = _Started(shape=shape, gpus=gpus)
        replace_file(folder / "replica.json", TypeAdapter(_Started).dump_json(started).decode())
        if self._agent(replica) is None:
            stopped_file(self._home, replica).unlink(missing_ok=True)
            self._start(replica, started)

    def notes(self) -> Mapping[str, str]:
        """Nobody else changes anything here."""
        return {}

    def past(self) -> Mapping[str, str]:
        """Nobody else has."""
        return {}

    def problems(self) -> Mapping[str, str]:
        """What can't be seen here is told by `list`."""
        return {}

    def tell(self, news: News) -> None:
        """There is nobody but who reads the logs."""

    def gateways(self) -> None:
        """Whoever runs a gateway here starts it again when it ends."""
        return

    async def remove(self, replica: str) -> None:
        """End what still runs of it and delete its folder."""
        folder = self._home.replica(replica)
        if not folder.exists():
            return
        (folder / "replica.json").unlink(missing_ok=True)  # from here on nobody starts it again
        await asyncio.to_thread(self._end, replica)
        self._ends.pop(replica, None)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _replicas(self) -> tuple[tuple[str, _Started], ...]:
        found = []
        for record in sorted((self._home.root / "replicas").glob("*/replica.json")):
            name = record.parent.name
            try:
                found.append((name, TypeAdapter(_Started).validate_json(record.read_bytes())))
            except (OSError, ValidationError) as error:
                if name not in self._unread:
                    log.warning("a replica's record can't be read; it is left alone", replica=name, reason=str(error))
                self._unread.add(name)
        return tuple(found)

    def _record_file(self, replica: str) -> Path:
        return self._home.replica(replica) / "agent.json"

    def _agent(self, replica: str) -> psutil.Process | None:
        record = processes.read_record(self._record_file(replica))
        process = record.process() if record else None
        if process is None and record is not None:
            _reap(record.pid)
        return process

    def _revive(self, replica: str, started: _Started) -> None:
        now = time.monotonic()
        ends = self._ends.setdefault(replica, _Ends())
        if ends.started_at and not ends.again_at:
            ends.count = 1 if now - ends.started_at > STEADY_S else ends.count + 1
            ends.again_at = now + backoff_s(ends.count, BACKOFF_MIN_S, BACKOFF_MAX_S)
            log.warning("an agent ended", replica=replica, fleet=started.shape.name, again_in_s=ends.again_at - now)
        if now >= ends.again_at:
            self._start(replica, started)

    def _start(self, replica: str, started: _Started) -> None:
        shape, ends = started.shape, self._ends.setdefault(replica, _Ends())
        ends.started_at, ends.again_at = time.monotonic(), 0.0
        processes.start(
            [
                *(sys.executable, "-m", "controlplane.agent"),
                f"--home={self._home.root.resolve()}",
                f"--replica={replica}",
                f"--fleet={shape.name}",
                f"--disk-bytes={shape.disk_bytes}",
                f"--gpus={shape.gpus}",
                f"--gpu-indices={','.join(map(str, started.gpus))}",
                f"--load-timeout-s={shape.load_timeout_s}",
            ],
            home=self._home.root,
            log_file=self._home.logs / f"{replica}-agent.log",
            environment=processes.scrubbed_environment(self._home.root, _of_downloads()),
            record_file=self._record_file(replica),
        )

    def _end(self, replica: str) -> None:
        agent = self._agent(replica)
        if agent is not None:
            processes.stop(agent, grace_s=AGENT_GRACE_S)
            _reap(agent.pid)
        # An agent that was killed leaves its server to the next one; here there is none.
        server = processes.read_record(self._home.replica(replica) / "server.json")
        process = server.process() if server else None
        if process is not None:
            processes.stop(process, grace_s=0)
        processes.remove_shared_memory(processes.shared_memory_prefix(self._home.root, replica))


def deal(wanted: int, present: int, taken: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The indices of `wanted` of the machine's `present` GPUs: those that the fewest of `taken` use, the first of them.
    As many as there are, if there are fewer."""
    uses = Counter(index for each in taken for index in each)
    return tuple(sorted(sorted(range(present), key=lambda index: (uses[index], index))[:wanted]))


def stopped_file(home: Home, replica: str) -> Path:
    """Left by an agent that ended because the controller said so: it is not to be started again."""
    return home.replica(replica) / "stopped"


def _of_downloads() -> dict[str, str]:
    """What the way to an object store may take. Nothing else is passed on: an agent holds no credentials."""
    return {name: value for name, value in os.environ.items() if name.upper() in DOWNLOAD_VARIABLES}


def _reap(pid: int) -> None:
    """Take note of the end of a child, so that it does not stay a zombie; others' children are none of ours."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
