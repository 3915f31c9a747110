"""Where the API is listened for."""

from __future__ import annotations

import socket

from controlplane.core.errors import InvalidInput


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; an empty host is every address. Raises InvalidInput when the port can't be had."""
    # asyncio sends small answers at once (TCP_NODELAY) only on sockets that say that they are TCP.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidInput(
            f"port {port} of {host or 'this pod'} can't be had: {error.strerror}",
            field="controller.port",
            remedy="end what uses it, or set another port (0: any free one)",
        ) from error
    listener.listen(1024)
    return listener
