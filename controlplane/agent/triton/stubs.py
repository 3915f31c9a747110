"""Which processes compute the Python models. When one dies, Triton goes on calling the model ready and refuses every
request, so its death has to be noticed here. Only a process that was known before can be missed: a dead one has no
command line any more."""

from __future__ import annotations

import re
from collections.abc import Collection

import psutil

from controlplane.agent.triton.process import TritonProcess
from controlplane.core.names import Key
from controlplane.local import processes

_PYTHON = re.compile(r'^\s*backend:\s*"python"', re.MULTILINE)


class Stubs:
    """The stubs of the loaded versions. Methods look at processes and may take some milliseconds."""

    def __init__(self, process: TritonProcess) -> None:
        self._process = process
        self._of: dict[Key, tuple[psutil.Process, ...]] = {}
        self._lost: set[Key] = set()

    def clear(self) -> None:
        """The server has ended."""
        self._of.clear()
        self._lost.clear()

    def remember(self, key: Key) -> None:
        """The version has just been loaded."""
        self._lost.discard(key)
        self._of[key] = tuple(self._process.stubs(key.model, key.version))

    def adopt(self, key: Key, config_text: str) -> None:
        """The version was found in a running server. One that needs a stub and has none lost it meanwhile."""
        self.remember(key)
        if not self._of[key] and _PYTHON.search(config_text):
            self._lost.add(key)

    def forget(self, model: str, version: int | None = None) -> None:
        """The version, or the whole model, is no longer loaded."""
        for key in tuple(self._of):  # a copy: another thread may be adding to it
            if key.model == model and version in (None, key.version):
                self._of.pop(key)
                self._lost.discard(key)

    def broken(self, keys: Collection[Key]) -> frozenset[Key]:
        """Those of `keys` that have lost a stub."""
        return frozenset(
            key
            for key in keys
            if key in self._lost or any(processes.wait_ended((each,), timeout_s=0) for each in self._of.get(key, ()))
        )
