"""Readers of streams that are fast enough for a million messages, and check each of them."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import time
from typing import Any

from servers import DEADLINE, Server

_SSE_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)
_SSE_GAP = re.compile(rb'^event: gap\ndata: \{"missed":"(-?\d+)"', re.MULTILINE)
_SSE_TOLD = re.compile(rb'^data: \{"messageId":.*"missed":"(-?\d+)"\}$', re.MULTILINE)


class Raw:
    """One stream over HTTP/1.1. Ids must grow; what was missed is added up."""

    def __init__(self, server: Server, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        self.ids = 0
        self.last = 0
        self.missed = 0
        #: The ids after which messages are missing, by what lies between neighbours.
        self.holes: list[tuple[int, int]] = []
        #: What messages said of a gap before them.
        self.told = 0
        self.ready = False
        self.rest = b""
        self.newest = b""
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        self.connection.connect()
        # A small window, so that a reader that takes nothing is felt by the server soon.
        self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.connection.request(method, path, body, headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.read()

    def take(self) -> None:
        """Read what is there, at least a byte."""
        data = self.response.read1(1 << 20)
        assert data, f"the stream ended: {self.rest!r}"
        self.parse(self.rest + data)

    def parse(self, data: bytes) -> None:
        raise NotImplementedError

    def number(self, ids: list[int]) -> None:
        for number in ids:
            assert number > self.last, f"{number} after {self.last}"
            if number != self.last + 1:
                self.holes.append((self.last, number))
            self.last = number
        self.ids += len(ids)

    def until(self, condition: Any, what: str, deadline: float) -> None:
        """Read until a condition of this stream is true."""
        end = time.monotonic() + deadline
        while not condition():
            assert time.monotonic() < end, f"not within {deadline} s: {what}; {self.ids} messages up to {self.last}"
            self.take()

    def close(self) -> None:
        self.response.close()
        self.connection.close()


class RawSse(Raw):
    """A stream of server-sent events."""

    def __init__(self, server: Server, query: str) -> None:
        super().__init__(server, "GET", f"/{server.database}/-/pubsub/-/stream?{query}", None, {})

    def parse(self, data: bytes) -> None:
        cut = data.rfind(b"\n\n") + 2
        if cut == 1:
            self.rest = data
            return
        data, self.rest = data[:cut], data[cut:]
        self.number([int(number) for number in _SSE_ID.findall(data)])
        if b'"missed"' in data:
            self.missed += sum(int(number) for number in _SSE_GAP.findall(data))
            self.told += sum(int(number) for number in _SSE_TOLD.findall(data))
        self.ready = self.ready or b"event: ready\n" in data
        self.newest = data[-2000:]


class RawConnect(Raw):
    """A Connect stream in JSON, with status messages."""

    def __init__(self, server: Server, **request: Any) -> None:
        message = json.dumps({"dbName": server.database, "status": True, **request}).encode()
        body = struct.pack(">BI", 0, len(message)) + message
        headers = {"Content-Type": "application/connect+json"}
        super().__init__(server, "POST", "/db.v1.DbService/Subscribe", body, headers)

    def parse(self, data: bytes) -> None:
        at, ids = 0, []
        while len(data) - at >= 5:
            flags, size = struct.unpack_from(">BI", data, at)
            if len(data) - at < 5 + size:
                break
            frame = data[at + 5 : at + 5 + size]
            assert flags == 0, frame
            if frame.startswith(b'{"messageId":"'):
                ids.append(int(frame[14 : frame.index(b'"', 14)]))
                if b'"missed"' in frame:
                    self.told += int(json.loads(frame)["missed"])
                self.newest = frame
            else:
                status = json.loads(frame)
                if status["kind"] == "KIND_READY":
                    self.ready = True
                else:
                    self.missed += int(status["missed"])
            at += 5 + size
        self.rest = data[at:]
        self.number(ids)


def raw_stream(server: Server, edge: str, channels: list[str]) -> Raw:
    """All of these channels from the earliest message on, for a new subscription that acks."""
    if edge == "sse":
        query = "&".join(f"channel={channel}" for channel in channels)
        return RawSse(server, f"{query}&subscription=raw&ack=explicit")
    return RawConnect(server, channels=channels, subscriptionName="raw", ackMode="ACK_MODE_EXPLICIT")
