"""Whether the names of our own Services mean something where the controller runs: whoever calls them uses these."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

import structlog

log = structlog.get_logger(__name__)

AGAIN_S = 30.0


class Names:
    """Looks names up, now and then, each in a thread of its own: where nobody answers it takes half a minute and more,
    and nobody is to wait for its end. `problems`: of each that was looked up why it is not known, or None."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.problems: dict[str, str | None] = {}

    def start(self) -> None:
        """Begin to look them up."""
        for name in self._names:
            threading.Thread(target=self._run, args=(name,), name=f"name-{name}", daemon=True).start()

    def stop(self) -> None:
        """Look up no more."""
        self._stopped.set()

    def _run(self, name: str) -> None:
        while not self._stopped.is_set():
            problem = _problem(name)
            if problem is not None and self.problems.get(name) is None:
                log.warning("a Service's name is not known", name=name, reason=problem)
            with self._lock:
                self.problems = {**self.problems, name: problem}
            self._stopped.wait(AGAIN_S)


def _problem(name: str) -> str | None:
    try:
        socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError as error:
        return str(error)
    return None
