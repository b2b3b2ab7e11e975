"""Ctrl+C and SIGTERM with many open streams: each is closed properly, soon, and its cursor kept."""

from __future__ import annotations

import json
import signal
import socket
import struct
from collections.abc import Callable

import pytest
from servers import ENDS_SECONDS, Server

EACH = 100


def open_stream(server: Server, request: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.sendall(request)
    return sock


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    return data


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def sse(n: int) -> bytes:
    return f"GET /data/-/pubsub/-/stream?channel=a&subscription=s{n} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def connect() -> bytes:
    message = json.dumps({"dbName": "data", "channel": "a", "start": "START_EARLIEST"}).encode()
    body = struct.pack(">BI", 0, len(message)) + message
    head = "POST /db.v1.DbService/Subscribe HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("http2", "number"),
    [(False, signal.SIGINT), (False, signal.SIGTERM), (True, signal.SIGTERM), (True, signal.SIGINT)],
)
def test_the_server_ends_soon_and_closes_every_stream(
    serve: Callable[..., Server], http2: bool, number: signal.Signals
) -> None:
    server = serve(http2=http2)
    last = server.publish(channel="a", payload="the last message")[0]
    event_streams = [open_stream(server, sse(n)) for n in range(EACH)]
    rpc_streams = [open_stream(server, connect()) for _ in range(EACH)]
    for sock in event_streams:
        read_until(sock, b"event: ready")
    for sock in rpc_streams:
        assert b"the last message" in read_until(sock, b"the last message")
    took = server.stop(number)
    assert took < ENDS_SECONDS, f"took {took} s"
    for sock in event_streams:
        end = read_to_end(sock)
        assert b"event: bye" in end
        assert b'"code":"shutdown"' in end
        assert end.endswith(b"0\r\n\r\n"), end
        sock.close()
    for sock in rpc_streams:
        end = read_to_end(sock)
        assert b'"code": "unavailable"' in end
        assert end.endswith(b"0\r\n\r\n"), end
        sock.close()
    assert server.rows("SELECT count(*), min(cursor) FROM pubsub_subscriptions") == [(EACH, last)]
    assert "Traceback" not in server.log
