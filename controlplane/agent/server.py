"""What the agent asks of a model server. Triton implements it; a server that holds one model only could as well."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from controlplane.core.errors import LoadFailed, Unavailable
from controlplane.core.messages import ServerState
from controlplane.core.models import Capabilities, Manifest
from controlplane.core.names import Key
from controlplane.core.routes import Endpoint


class ServerDied(Unavailable):
    """The server went away, or was not there, while something was asked of it."""


class ModelStuck(LoadFailed):
    """A load did not come to an end within its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """How the server is. `endpoint` and what follows are known once it is ready; `reason` says why it is not. `crashes`
    counts its unexpected ends, `failed_starts` how often in a row it did not come up."""

    state: ServerState = "starting"
    reason: str = ""
    endpoint: Endpoint | None = None
    metrics_port: int | None = None
    capabilities: Capabilities | None = None
    crashes: int = 0
    failed_starts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """An end of the server. `killed`: by a signal from outside; `unknown`: that may be; `hang`: ended because it no
    longer answered; `restart`: ended because nothing less ended a load; `stuck`: or the requests of `key`, whose
    process had died; `start`: it did not come up at all."""

    reason: str
    how: Literal["crash", "killed", "unknown", "hang", "restart", "stuck", "start"]
    key: Key | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How one version has been used since it was loaded. `last_used_at` in seconds since 1970; None: not yet."""

    requests: int = 0
    pending: int = 0
    last_used_at: float | None = None


class Listener(Protocol):
    """Who wants to know how the server fares. Called in the event loop; no call may block."""

    def server_up(self, loaded: Mapping[Key, Literal["ready", "loading"]]) -> None:
        """The server answers. `loaded` is what it holds already, which is more than nothing only when adopted."""

    def server_down(self, death: Death) -> None:
        """The server has ended and holds nothing any more; it is being started again."""


BlobPath = Callable[[str], Path]
"""Where the file with a SHA-256 lies."""


class Server(Protocol):
    """A model server, kept running for as long as `supervise` runs."""

    @property
    def status(self) -> ServerStatus:
        """How it is now."""

    async def supervise(self, listener: Listener) -> None:
        """Adopt the server that an earlier agent left, or start one; start it again whenever it ends. Until cancelled:
        that leaves the server running, for the next agent."""

    async def stop(self) -> None:
        """End the server for good. Call it when `supervise` is not running any more."""

    async def serve(self, model: str, versions: Mapping[int, Manifest], blobs: BlobPath) -> None:
        """Make the server hold exactly `versions` (at least one) of a model; returns when it does. What it holds
        already is not interrupted. Raises LoadFailed when the model is to blame (what was held stays), ModelStuck when
        it did not finish in time, ServerDied when the server went away, OSError when the disk fails."""

    async def give_up(self, model: str) -> None:
        """Make the server hold nothing of a model; returns when requests in flight have ended and its memory is free.
        Raises ServerDied (also when only a new server could end them) or DeadlineExceeded."""

    async def prove(self, model: str, version: int, manifest: Manifest) -> None:
        """Check that the version serves what its entry says. Raises LoadFailed with a sentence, or ServerDied."""

    async def use(self) -> Mapping[Key, Use]:
        """How the loaded versions have been used. Raises ServerDied."""

    def broken(self, keys: Collection[Key]) -> Collection[Key]:
        """Those of `keys`, which are loaded, that can't answer any more although the server is well: only unloading and
        loading again helps. Cheap; may be called in a thread."""

    def memory_bytes(self, of: Key | None = None) -> int | None:
        """The memory that the server and its helper processes take now, on a replica with GPUs that of these; those of
        one version only, if it is named (0 where it has none of its own). None where it can't be told. May take a
        while: for threads."""
