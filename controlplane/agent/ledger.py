"""What an agent must know again after it was killed: its last assignment, and which digest each loaded version is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from pydantic import TypeAdapter

from controlplane.core.messages import Assignment, Wanted
from controlplane.core.names import Key
from controlplane.local.home import write_private

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A version that was put before the server. `proved`: and passed its proof."""

    wanted: Wanted
    proved: bool = False


class Ledger:
    """Two files in the replica's folder, closed to other users. Sources of downloads are not kept: they may be secrets,
    and they expire. What can't be written at present is written as soon as it can be."""

    def __init__(self, folder: Path) -> None:
        self._assignment_file = folder / "assignment.json"
        self._lines_file = folder / "held.json"
        self._assignments = TypeAdapter(Assignment)
        self._lines = TypeAdapter(tuple[Line, ...])
        self._contents: dict[Path, str] = {}
        self._unwritten: set[Path] = set()

    def assignment(self) -> Assignment | None:
        """The assignment of the latest epoch and generation that was accepted here."""
        try:
            return self._assignments.validate_json(self._assignment_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def accept(self, assignment: Assignment) -> None:
        """Keep an assignment."""
        bare = replace(assignment, wanted=tuple(replace(each, sources={}) for each in assignment.wanted))
        self._keep(self._assignment_file, self._assignments.dump_json(bare).decode())

    def lines(self) -> Mapping[Key, Line]:
        """What the server was given."""
        try:
            lines = self._lines.validate_json(self._lines_file.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return {Key(line.wanted.model, line.wanted.version): line for line in lines}

    def hold(self, lines: tuple[Line, ...]) -> None:
        """Keep what the server has been given, before it is given it."""
        self._keep(self._lines_file, self._lines.dump_json(lines).decode())

    def _keep(self, file: Path, text: str) -> None:
        if self._contents.get(file) != text:
            self._contents[file] = text
            self._unwritten.add(file)
            self.write_rest()

    def write_rest(self) -> None:
        """Write what could not be written when it came."""
        for file in list(self._unwritten):
            try:
                write_private(file, self._contents[file])
            except OSError as error:
                log.error("a state file can't be written; that is tried again", path=str(file), error=str(error))
            else:
                self._unwritten.discard(file)
