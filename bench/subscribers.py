"""Subscribers on plain sockets. They are so fast that the server limits a measurement, not the subscriber."""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from targets import PAYLOAD, http_request

FORMATS = ("sse", "connect-json", "connect-proto")
#: Every message with :data:`targets.PAYLOAD` contains these bytes once, in every format.
MARKER = b"~"


def varint(number: int) -> bytes:
    """A number in Protobuf's encoding."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def subscribe_request(
    database: str, channel: str, form: str, after: int | None = None, name: str | None = None
) -> bytes:
    """A subscriber's request: ``GET …/stream`` for SSE, or the Connect call ``Subscribe`` in JSON or Protobuf."""
    if form == "sse":
        path = f"/{database}/-/pubsub/-/stream?channel={channel}"
        path += f"&after={after}" if after is not None else ""
        path += f"&subscription={name}" if name else ""
        return http_request("GET", path, {"Accept": "text/event-stream"})
    if form == "connect-json":
        fields = {"dbName": database, "channel": channel, **({"after": str(after)} if after is not None else {})}
        message = json.dumps(fields).encode()
    else:
        texts = ((1, database), (3, channel))
        message = b"".join(bytes([number << 3 | 2, len(text)]) + text.encode() for number, text in texts)
        if after is not None:
            message += varint(AFTER_FIELD << 3) + varint(after)
    headers = {"Content-Type": f"application/connect+{form.removeprefix('connect-')}", "Connect-Protocol-Version": "1"}
    body = struct.pack(">BI", 0, len(message)) + message
    return http_request("POST", "/db.v1.DbService/Subscribe", headers, body)


#: The number of ``after`` in ``SubscribeRequest`` (proto/db/v1/db.proto).
AFTER_FIELD = 7


def connect(port: int, request: bytes, source: str = "127.0.0.1") -> socket.socket:
    """Open a connection and send the request."""
    sock = socket.create_connection(("127.0.0.1", port), 30, (source, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(request)
    return sock


def seconds_until(port: int, request: bytes, messages: int, timeout: float = 120) -> float:
    """Seconds from the request until the subscriber has received that many messages."""
    start = time.perf_counter()
    with connect(port, request) as sock:
        sock.settimeout(timeout)
        buffer = bytearray(1 << 20)
        seen, head = 0, b""
        while seen < messages:
            size = sock.recv_into(buffer)
            if not size:
                raise RuntimeError(f"the stream ended after {seen} of {messages} messages: {head!r}")
            head = head or bytes(buffer[:300])
            seen += buffer.count(MARKER, 0, size)
    return time.perf_counter() - start


def wait_ready(socks: list[socket.socket], timeout: float = 120) -> None:
    """Wait until the server has answered every subscriber; discard the answers."""
    poll = select.epoll()
    waiting = {sock.fileno(): sock for sock in socks}
    for number in waiting:
        poll.register(number, select.EPOLLIN)
    end = time.monotonic() + timeout
    while waiting:
        if time.monotonic() > end:
            raise RuntimeError(f"the server did not answer {len(waiting)} subscribers")
        for number, _ in poll.poll(1):
            if number in waiting:
                data = waiting[number].recv(1 << 16)
                if not data.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"the server refused a subscriber: {data[:300]!r}")
                poll.unregister(number)
                del waiting[number]
    poll.close()


def drain(sock: socket.socket) -> None:
    """Discard everything that the subscriber has received so far."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while poll.poll(0):
        if not sock.recv(1 << 16):
            raise RuntimeError("the stream ended")


__all__ = ["FORMATS", "PAYLOAD", "connect", "drain", "seconds_until", "subscribe_request", "wait_ready"]
