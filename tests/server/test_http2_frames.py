"""Calls over HTTP/2 whose frames come at awkward moments: sent one by one, as no client library would."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator

import h2.connection
import h2.events
import pytest
from google.protobuf.message import Message
from servers import DEADLINE, Server

from datasette_pubsub.gen.db_pb2 import AckRequest, PublishBatchRequest, PublishItem, SubscribeRequest


class Link:
    """An HTTP/2 connection whose frames are sent one by one."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._sock, self._link = sock, h2.connection.H2Connection()
        sock.settimeout(DEADLINE)
        self._link.initiate_connection()
        self._base = [(":authority", f"127.0.0.1:{server.port}"), (":scheme", "http"), (":method", "POST")]

    def headers(self, stream: int, path: str, content_type: str) -> None:
        self._link.send_headers(stream, [(":path", path), *self._base, ("content-type", content_type)])
        self._sock.sendall(self._link.data_to_send())

    def data(self, stream: int, data: bytes, end: bool = False) -> None:
        self._link.send_data(stream, data, end_stream=end)
        self._sock.sendall(self._link.data_to_send())

    def until(self, kind: type[h2.events.Event], stream: int) -> bytes:
        """Read until there is such an event; the data that came for this stream."""
        found = b""
        while True:
            data = self._sock.recv(1 << 16)
            assert data, f"closed before {kind.__name__}"
            events = [event for event in self._link.receive_data(data) if getattr(event, "stream_id", None) == stream]
            self._sock.sendall(self._link.data_to_send())
            found += b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
            if any(isinstance(event, kind) for event in events):
                return found

    def until_closed(self) -> None:
        while self._sock.recv(1 << 16):
            pass


@pytest.fixture
def link(serve: Callable[..., Server]) -> Iterator[Link]:
    server = serve(http2=True)
    server.publish(channel="a", payload="makes the tables")
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        yield Link(server, sock)


def test_a_connection_that_the_server_gives_up_is_closed(link: Link) -> None:
    """hypercorn 0.18 gives up a connection on which data arrives for a stream that is closed: then all of it ends."""
    body = json.dumps({"dbName": "data", "channel": "a", "status": True}).encode()
    link.headers(1, "/db.v1.DbService/Subscribe", "application/connect+json")
    link.data(1, struct.pack(">BI", 0, len(body)) + body, end=True)
    link.until(h2.events.DataReceived, 1)
    link.headers(3, "/nowhere", "application/json")
    link.until(h2.events.StreamEnded, 3)
    link.data(3, b"more")
    link.until_closed()


CALLS: list[tuple[str, Message, int]] = [
    ("PublishBatch", PublishBatchRequest(db_name="data", items=[PublishItem(channel="a", payload="x")]), 0),
    ("PublishBatch", PublishBatchRequest(db_name="data", items=[PublishItem(channel="", payload="x")]), 3),
    ("Subscribe", SubscribeRequest(db_name="nowhere", channel="a"), 5),
    ("Ack", AckRequest(db_name="data", subscription_name="nobody", message_id=1), 5),
]


def test_a_body_whose_end_comes_late(link: Link) -> None:
    """A gRPC call is one message, and could be refused before the body's end: that came too late for hypercorn."""
    for stream, (method, message, status) in zip((1, 3, 5, 7), CALLS, strict=True):
        body = message.SerializeToString()
        link.headers(stream, f"/db.v1.DbService/{method}", "application/grpc-web+proto")
        link.data(stream, struct.pack(">BI", 0, len(body)) + body)
        time.sleep(0.3)
        link.data(stream, b"", end=True)
        assert f"grpc-status: {status}".encode() in link.until(h2.events.StreamEnded, stream)
