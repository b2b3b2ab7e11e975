"""An application that sends what it is told to, a server for it in this process, and a client that reads little."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

import uvicorn
import uvloop
from servers import DEADLINE

from datasette_pubsub import compat
from datasette_pubsub.asgi import acknowledged
from datasette_pubsub.asgi.acknowledged import Acknowledged

LOOPS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}

#: Bodies around the sizes at which the framing of a chunk gets longer.
SIZES = [1, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 65535, 65536]


class App:
    """An application that sends what it is told to, with marks: a mark's position is the number of bodies."""

    def __init__(self) -> None:
        self.bodies: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.arrival: asyncio.Future[Acknowledged | None] = asyncio.get_running_loop().create_future()
        self.scope: dict[str, Any] = {}
        self.sent = 0
        self.ended = asyncio.Event()
        #: The server's own functions, where something stands between.
        self.server: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        if scope["path"] == "/before":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": b"hello"})
            return
        self.scope = compat.with_server(scope, *(self.server or (receive, send)))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        arrival = acknowledged.of(self.scope)
        self.arrival.set_result(arrival)
        try:
            while (body := await self.bodies.get()) is not None:
                if not body:
                    return
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self.sent += 1
                if arrival is not None:
                    arrival.sent(len(body))
                    arrival.mark(self.sent)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.ended.set()

    async def until_sent(self, count: int) -> None:
        await until(lambda: self.sent == count, f"{count} sends")


async def until(condition: Callable[[], Any], what: str) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + DEADLINE
    while not condition():
        assert loop.time() < end, f"not within {DEADLINE} s: {what}"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def served(app: Any, http: str = "httptools", **options: Any) -> Any:
    """A uvicorn in this event loop; where it listens."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=http, lifespan="off", log_level="error", **options))
    # The signals are the tests'.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done(), "the server listens")
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        if isinstance(app, App):
            app.bodies.put_nowait(None)
        server.should_exit = server.force_exit = True
        await task


class Client:
    """A client whose kernel takes little, and which reads when it is told to."""

    def __init__(self, address: Any, receive_buffer: int = 4096) -> None:
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.data = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def get(self, path: str, version: str = "1.1") -> None:
        await self.send(f"GET {path} HTTP/{version}\r\nHost: x\r\n\r\n".encode())

    async def read(self, wanted: Callable[[bytes], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not wanted(self.data):
                part = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
                assert part, self.data[-200:]
                self.data += part

    def waiting(self) -> int:
        """How many bytes this client's kernel has that were not read."""
        return int(struct.unpack("i", fcntl.ioctl(self.sock, termios.FIONREAD, bytes(4)))[0])

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def whole(size: int, bodies: list[bytes]) -> int:
    """How many of these, in chunks, so many bytes hold as a whole."""
    count = 0
    for body in bodies:
        size -= len(chunk(body))
        if size < 0:
            break
        count += 1
    return count


def is_full(scope: dict[str, Any]) -> bool:
    transport = compat.transport_of(scope)
    assert transport is not None
    return transport.get_write_buffer_size() > 64 * 1024
