"""Remembers what the server was doing, so that its end can be laid at somebody's door."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from controlplane.agent.blame import Crash, How, Verdict, judge
from controlplane.agent.server import Use
from controlplane.agent.settings import Settings
from controlplane.core.names import Key

IN_USE_S = 60.0
"""A version asked within this time before a crash may have caused it."""
CRASHES_KEPT = 20


class Witness:
    """`careful` are versions to be loaded alone, with a pause after them. Times are monotonic."""

    def __init__(self, settings: Settings) -> None:
        self.careful: set[Key] = set()
        self._settings = settings
        self._loading: set[Key] = set()
        self._loaded_at: dict[Key, float] = {}
        self._used_at: dict[Key, float] = {}
        self._requests: dict[Key, int] = {}
        self._crashes: list[Crash] = []

    def load_begins(self, key: Key) -> None:
        """From now on a crash may be this version's."""
        self._loading.add(key)

    def load_succeeds(self, key: Key) -> None:
        """It is loaded and proved. A crash soon after is still suspect."""
        self._loaded_at[key] = time.monotonic()

    def load_ends(self, key: Key) -> None:
        """The load is over, however it went."""
        self._loading.discard(key)

    def sees(self, used: Mapping[Key, Use]) -> bool:
        """Take the counts of all loaded versions; whether any was used since the last time. One that is seen for the
        first time counts as used: it may have been, between two looks."""
        now, news = time.monotonic(), False
        for key, use in used.items():
            if use.requests != self._requests.get(key, -1) or use.pending:
                self._used_at[key] = now
                self._requests[key] = use.requests
                news = True
        return news

    def died(self, how: How, loaded: Iterable[Key], culprit: Key | None = None) -> Verdict:
        """The server has ended, with `loaded` in it. Who was it, if that is not known already (`culprit`)?"""
        now = time.monotonic()
        crash = Crash(
            at=now,
            how=how,
            culprit=culprit,
            loading=frozenset(self._loading),
            settling=frozenset(key for key, at in self._loaded_at.items() if now - at < self._settings.settle_s),
            loaded=frozenset(loaded),
            in_use=frozenset(key for key, at in self._used_at.items() if now - at < IN_USE_S),
        )
        self._crashes = [*self._crashes, crash][-CRASHES_KEPT:]
        verdict = judge(self._crashes, window_s=self._settings.crash_window_s)
        self.careful |= verdict.careful
        if verdict.guilty is not None:
            self.careful.discard(verdict.guilty)
        return verdict

    def forget(self) -> None:
        """A new server: nothing has been loaded or used."""
        self._loaded_at.clear()
        self._used_at.clear()
        self._requests.clear()
