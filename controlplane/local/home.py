"""The home folder of a local system (`./.ctl`): one place that says where everything of it is."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from controlplane.core.errors import InvalidInput

_NOT_FOR_SHELLS = re.compile(r"[^\w./+@%:,=-]")
"""Triton's Python backend starts its processes through a shell, with paths below the home as plain words of a line."""


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one root. Nothing outside it is written, but for shared-memory files named after it."""

    root: Path

    @property
    def token_file(self) -> Path:
        """The token that agents, gateways and ctl show to the controller; mode 0600."""
        return self.root / "token"

    @property
    def controller_file(self) -> Path:
        """Where the controller answers (a ControllerAddress)."""
        return self.root / "controller.json"

    @property
    def system_file(self) -> Path:
        """The system's definition as `ctl up` took it: registry, gateway, fleets."""
        return self.root / "system.json"

    @property
    def lock_file(self) -> Path:
        """Held by the one `ctl up` that owns this home."""
        return self.root / "lock"

    @property
    def registry(self) -> Path:
        """The directory registry of a system that names no other."""
        return self.root / "registry"

    @property
    def gateway(self) -> Path:
        """The gateway's folder: Envoy's configuration, its state, the access log."""
        return self.root / "gateway"

    @property
    def served_file(self) -> Path:
        """What the gateway serves, since it has served anything: it goes on with that when it is started again."""
        return self.gateway / "served.json"

    @property
    def prometheus(self) -> Path:
        """The folder of the Prometheus that `ctl up` starts, if it does: its configuration, its data."""
        return self.root / "prometheus"

    @property
    def prometheus_file(self) -> Path:
        """Where that Prometheus answers: its URL, one line."""
        return self.prometheus / "url"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.root / "logs"

    def replica(self, name: str) -> Path:
        """A replica's folder: its model repository, its downloads, its state."""
        return self.root / "replicas" / name

    def prepare(self) -> None:
        """Make the folder, closed to other users, and its token. Raises InvalidInput for a path that can't be one."""
        bad = _NOT_FOR_SHELLS.search(str(self.root.resolve()))
        if bad is not None:
            raise InvalidInput(
                f"the home {self.root.resolve()} has {bad.group()!r} in its path, below which Triton can't start "
                "Python models",
                remedy="choose another folder with --home (or CTL_HOME_DIR): letters, digits and ./_-+@%:,= only",
            )
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        self.logs.mkdir(exist_ok=True)
        if not self.token_file.exists():
            write_private(self.token_file, secrets.token_urlsafe(32) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, by rename, so that nobody ever sees half of it."""
    replace_file(path, text, mode=0o600)


def replace_file(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Put `text` at `path` by rename inside its folder."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
