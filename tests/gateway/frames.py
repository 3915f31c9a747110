"""An HTTP/2 client that decides itself where each DATA frame ends, for gRPC calls in odd pieces."""

from __future__ import annotations

import socket
import struct
import time

DATA, HEADERS, RST, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def _text(text: bytes) -> bytes:
    """A string as HPACK writes it, without Huffman coding; shorter than 16 KiB."""
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    rest = length - 127
    return bytes([127, rest % 128 + 128, rest // 128]) + text


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def call(port: int, path: str, headers: dict[str, str], pieces: list[bytes], *, timeout_s: float = 20) -> list[bytes]:
    """Send a gRPC request whose body is cut into these DATA frames; the messages of the answer, until it ends."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    fields |= {"content-type": "application/grpc", **headers}
    block = b"".join(b"\x10" + _text(name.encode()) + _text(value.encode()) for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))
        link.sendall(_frame(HEADERS, END_HEADERS, 1, block))
        for piece in pieces:
            link.sendall(_frame(DATA, 0, 1, piece))
        link.sendall(_frame(DATA, END_STREAM, 1, b""))
        return _answer(link, time.monotonic() + timeout_s)


def _answer(link: socket.socket, end: float) -> list[bytes]:
    body, over = b"", False
    while not over:
        assert time.monotonic() < end, "no end of the answer"
        head = _read(link, 9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        payload = _read(link, length)
        if kind == DATA:
            body += payload
        elif kind == SETTINGS and not flags & ACK:
            link.sendall(_frame(SETTINGS, ACK, 0, b""))
        over = kind in {RST, GOAWAY} or (kind in {DATA, HEADERS} and bool(flags & END_STREAM))
    messages = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        messages.append(body[5 : 5 + size])
        body = body[5 + size :]
    return messages


def _read(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        assert part, "the connection ended"
        data += part
    return data
