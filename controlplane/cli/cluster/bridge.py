"""A listener on the loopback whose connections are led through tunnels, each through one of its own."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from controlplane.core.errors import ControlPlaneError

CHUNK_BYTES = 64 << 10
MOST_CONNECTIONS = 64
STALLED_S = 30.0
"""So long may one piece take to be taken by the client."""
LINGER_S = 5.0
"""Nothing tells a client that has closed its connection from one that only says no more, and a tunnel can't pass on
either: an answer on its way still gets through, as long as it comes without a longer pause."""
LOOK_S = 0.5
END_S = 2.0


class Tunnel(Protocol):
    """The way to where a connection leads. Its calls raise OSError when it breaks."""

    def fileno(self) -> int:
        """What can be polled for something to receive."""
        ...

    def pending(self) -> bool:
        """Whether there is something to receive that polling does not show."""
        ...

    def receive(self) -> bytes | None:
        """What has come, perhaps nothing; None at the end. Raises ControlPlaneError where the other side says why."""
        ...

    def send(self, data: bytes) -> None:
        """Send all of it."""
        ...

    def close(self) -> None:
        """Give it up, at once."""
        ...


class Bridge:
    """Listens at `address` from when it is made until it is closed. Use it as a context manager.

    `failure` is why the latest connection could not be led on, or broke; None after one that could.
    """

    def __init__(self, open_tunnel: Callable[[], Tunnel]) -> None:
        self._open = open_tunnel
        self.failure: ControlPlaneError | None = None
        self._ending = threading.Event()
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=MOST_CONNECTIONS)
        self._listener.settimeout(LOOK_S)
        self._accepting = threading.Thread(target=self._accept, name="bridge", daemon=True)
        self._accepting.start()

    @property
    def address(self) -> str:
        """Host and port."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def close(self) -> None:
        """End the listener and every connection."""
        self._ending.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        with self._lock:
            open_now = dict(self._connections)
        for connection in open_now.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + END_S
        for thread in (self._accepting, *open_now):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._ending.is_set():
            if not self._places.acquire(timeout=LOOK_S):
                continue
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody came in time, or the listener is being closed
                self._places.release()
                continue
            thread = threading.Thread(target=self._lead, args=(connection,), name="bridged", daemon=True)
            with self._lock:
                self._connections[thread] = connection
            thread.start()

    def _lead(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._lead_on(connection)
        finally:
            with self._lock:
                self._connections.pop(threading.current_thread(), None)
            self._places.release()

    def _lead_on(self, connection: socket.socket) -> None:
        """Returns when it is over; whoever sees its connection end finds `failure` set."""
        try:
            tunnel = self._open()
            try:
                self.failure = None
                self._relay(connection, tunnel)
            finally:
                tunnel.close()
        except ControlPlaneError as error:
            self.failure = error
        except OSError:
            pass  # what the client learns by the end of its connection

    def _relay(self, connection: socket.socket, tunnel: Tunnel) -> None:
        """One thread for both directions: a TLS connection may not be used by two at once."""
        connection.settimeout(STALLED_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll = select.poll()  # not select(): it knows no descriptor above 1023
        poll.register(connection, select.POLLIN)
        poll.register(tunnel.fileno(), select.POLLIN)
        moved_at, silent = time.monotonic(), False
        while not self._ending.is_set():
            ready = {descriptor for descriptor, _ in poll.poll(0 if tunnel.pending() else LOOK_S * 1000)}
            if tunnel.fileno() in ready or tunnel.pending():
                data = tunnel.receive()
                if data is None:
                    return
                connection.sendall(data)
                moved_at = time.monotonic()
            if connection.fileno() in ready:
                data = connection.recv(CHUNK_BYTES)
                if data:
                    tunnel.send(data)
                else:
                    poll.unregister(connection)
                    moved_at, silent = time.monotonic(), True
            if silent and time.monotonic() - moved_at > LINGER_S:
                return
