"""A pod's port through the API server: one WebSocket for each connection.

`kubernetes.stream.portforward` is not used: it has no deadline for connecting, changes a client that others use at the
same time, loses what came just before an end, and copies all that waits with each piece that it sends.
"""

from __future__ import annotations

import contextlib
import queue
import ssl
import threading
from typing import Any, cast

from kubernetes.client import ApiException
from kubernetes.stream import ws_client
from websocket import (
    ABNF,
    WebSocket,
    WebSocketBadStatusException,
    WebSocketConnectionClosedException,
    WebSocketException,
)

from controlplane.cli.cluster.api import Api, NobodyThere
from controlplane.core.errors import ControlPlaneError, NotFound, Unavailable

OPEN_S, SEND_S = 15.0, 30.0
PROTOCOL = "v4.channel.k8s.io"
DATA, ERROR = 0, 1
"""The channels of the only port that is asked for."""
AGAIN = "ask again in some seconds; `ctl doctor` says how the pods are"


class PodTunnel:
    """An open connection to a pod's port, as the bridge's Tunnel."""

    def __init__(self, socket: WebSocket, where: str) -> None:
        self._socket = socket
        self._where = where
        self._begun: set[int] = set()

    def fileno(self) -> int:
        """See Tunnel."""
        return int(self._socket.fileno())  # type: ignore[no-untyped-call]

    def pending(self) -> bool:
        """See Tunnel: a TLS record may hold more than one message."""
        inner = self._socket.sock
        return isinstance(inner, ssl.SSLSocket) and inner.pending() > 0

    def receive(self) -> bytes | None:
        """See Tunnel."""
        try:
            kind, frame = self._socket.recv_data_frame(True)
        except WebSocketConnectionClosedException:
            return None
        except WebSocketException as error:
            raise ConnectionError(f"{self._where}: {error}") from error
        if kind == ABNF.OPCODE_CLOSE:
            return None
        if kind not in (ABNF.OPCODE_BINARY, ABNF.OPCODE_TEXT) or not frame.data:
            return b""
        data = bytes(frame.data)
        channel, content = data[0], data[1:]
        if channel not in self._begun:  # the first of a channel repeats the port's number
            self._begun.add(channel)
            return b""
        if channel == ERROR:
            said = content.decode(errors="replace").strip()  # long, and of the node's inner matters
            raise NobodyThere(
                f"{self._where}: {'nobody listens there' if 'connection refused' in said else said}", remedy=AGAIN
            )
        return content if channel == DATA else b""

    def send(self, data: bytes) -> None:
        """See Tunnel."""
        try:
            self._socket.send_binary(bytes((DATA,)) + data)
        except WebSocketException as error:
            raise ConnectionError(f"{self._where}: {error}") from error

    def close(self) -> None:
        """See Tunnel. Says that it ends, and does not wait for an answer."""
        with contextlib.suppress(WebSocketException, OSError, AttributeError):
            self._socket.send_close()
        self._socket.shutdown()  # type: ignore[no-untyped-call]


def open_tunnel(api: Api, pod: str, port: int) -> PodTunnel:
    """Connect to a pod's port. Raises Unavailable when the pod is gone, and what the API server says."""
    where = f"port {port} of pod {pod}"
    answers: queue.Queue[WebSocket | Exception] = queue.Queue()
    given_up = threading.Event()

    def connect() -> None:
        try:
            made = ws_client.create_websocket(  # type: ignore[no-untyped-call]
                api.configuration, _url(api, pod, port), _headers(api)
            )
        except (WebSocketException, OSError, ValueError) as error:
            answers.put(error)
            return
        answers.put(made)
        if given_up.is_set():
            made.shutdown()

    threading.Thread(target=connect, name="tunnel", daemon=True).start()
    try:
        answer = answers.get(timeout=OPEN_S)
    except queue.Empty:
        given_up.set()
        raise Unavailable(f"{where}: the API server did not connect in {OPEN_S:.0f} s", remedy=AGAIN) from None
    if isinstance(answer, Exception):
        raise _told(api, answer, pod, where) from answer
    answer.settimeout(SEND_S)
    return PodTunnel(answer, where)


def _url(api: Api, pod: str, port: int) -> str:
    base = f"{api.configuration.host}/api/v1/namespaces/{api.namespace}/pods/{pod}/portforward?ports={port}"
    return base.replace("http", "ws", 1)


def _headers(api: Api) -> dict[str, Any]:
    settings = list(api.configuration.auth_settings().values())
    shown: dict[str, Any] = {str(each["key"]).lower(): each["value"] for each in cast("list[dict[str, Any]]", settings)}
    return {"sec-websocket-protocol": PROTOCOL, **shown}


def _told(api: Api, error: Exception, pod: str, where: str) -> ControlPlaneError:
    if not isinstance(error, WebSocketBadStatusException):
        return Unavailable(f"{where}: the API server can't be reached: {error}")
    refusal = ApiException(status=error.status_code, reason=error.status_message or "")
    body = error.resp_body
    refusal.body = body.decode(errors="replace") if isinstance(body, bytes) else body
    found = api.told(refusal, f"get and create pods/portforward of pod {pod}")
    if isinstance(found, NotFound):
        return NobodyThere(f"pod {pod} is gone", remedy=AGAIN)
    return found
