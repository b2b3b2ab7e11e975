"""The two clients for Python as one that waits, and a peer that breaks."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from typing import Any

from datasette_pubsub.client import AsyncClient, Client, Message


class Driver:
    """Either client, as one that waits."""

    def __init__(self, kind: type[Client] | type[AsyncClient], url: str, **options: Any) -> None:
        self._client = kind(url, **options)
        self._loop = asyncio.new_event_loop() if kind is AsyncClient else None

    def _wait(self, found: Any) -> Any:
        return found if self._loop is None else self._loop.run_until_complete(found)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *values, **options: self._wait(method(*values, **options))

    def subscribe(self, *channels: str, **options: Any) -> Reading:
        return Reading(self, self._client.subscribe(*channels, **options))

    def end(self) -> None:
        self.close()
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


class Reading:
    """Either subscriber, as one that waits."""

    def __init__(self, driver: Driver, subscriber: Any) -> None:
        self._driver = driver
        self._subscriber = subscriber

    def take(self, count: int) -> list[Message]:
        step = getattr(self._subscriber, "__anext__", None) or self._subscriber.__next__
        return [self._driver._wait(step()) for _ in range(count)]

    def ack(self, message: Message | int) -> int:
        return int(self._driver._wait(self._subscriber.ack(message)))

    @property
    def place(self) -> int | None:
        position: int | None = self._subscriber._session.position
        return position

    def close(self) -> None:
        self._driver._wait(self._subscriber.close())


def whole_request(connection: socket.socket) -> bytes:
    """What the client sends, with the body."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if end and len(body) >= (int(length[1]) if length else 0):
            return data
        data += connection.recv(65536)


class Peer:
    """Answers each connection with the next of these bytes; keeps what it was sent. Then silence, or the end."""

    def __init__(self, *answers: bytes, hang: bool = False) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/data"
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._hang = hang
        self._open: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            for answer in self._answers:
                connection, _ = self._socket.accept()
                self.requests.append(whole_request(connection))
                connection.sendall(answer)
                self._open.append(connection)
                if not self._hang:
                    connection.close()
            self._socket.close()

    def close(self) -> None:
        self._socket.close()
        for connection in self._open:
            connection.close()
