"""Shows a fleet that follows its load: from nothing to several replicas, and back to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from controlplane.client.reader import Reader
from examples.traffic import Traffic

FLEET = "elastic"
LOOK_EVERY_S = 0.2
DEADLINE_S = 60.0
BUSY_S = 5.0
"""How long the clients ask once they have got a second replica."""


def follow(traffic: Traffic, reader: Reader, ctl: Callable[..., str], say: Callable[..., None]) -> Traffic:
    """Ask a fleet that has no replica, and print a line whenever its size changes, until it has none again. What `ctl
    top` shows is read by `reader`: a program each time would take a core away from who is to be seen."""
    watch = _Watch(reader, say)
    watch.until(lambda fleet: fleet["replicas"] == 0, "nothing was asked for a while")
    ctl("get", "fleets")
    say("clients begin to ask; nobody is there to answer yet, so their requests are held")
    with traffic:
        watch.until(lambda fleet: traffic.total() > 0, "the first answer")
        watch.until(lambda fleet: fleet["ready"] > 1, "one replica more, for so many clients")
        ends = time.monotonic() + BUSY_S
        watch.until(lambda fleet: time.monotonic() > ends, "the clients have asked for a while")
        ctl("top", "--once")
    say(f"{traffic.total()} answers, {sum(traffic.failures.values())} failures; the clients have gone")
    watch.until(lambda fleet: fleet["replicas"] == 0, "nothing was asked for a while")
    ctl("explain", "fleet", FLEET)
    return traffic


class _Watch:
    def __init__(self, reader: Reader, say: Callable[..., None]) -> None:
        self._reader, self._say = reader, say
        self._seen: tuple[int, int] | None = None
        self._began = time.monotonic()

    def until(self, done: Callable[[dict[str, Any]], bool], what: str) -> None:
        """Look again and again; SystemExit when it takes too long."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            fleet = next(each for each in self._reader.get("/v1/top")["fleets"] if each["name"] == FLEET)
            seen = (fleet["ready"], fleet["desired"])
            if seen != self._seen:
                self._seen = seen
                at = time.monotonic() - self._began
                self._say(f"{at:5.1f} s  {seen[0]} ready of {seen[1]} wanted: {fleet['reason']}")
            if done(fleet):
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"fleet {FLEET}: waited {DEADLINE_S:.0f} s in vain until {what}")
            time.sleep(LOOK_EVERY_S)
