"""What the servers, asyncio and Linux let us know of a connection, each looked at where it comes from.

A test that fails here after an upgrade says that something undocumented has changed: see ``compat/``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
import uvloop
from servers import DEADLINE

from datasette_pubsub import compat
from datasette_pubsub.asgi import acknowledged
from datasette_pubsub.asgi.acknowledged import Acknowledged, Outstanding, OverTcp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere less is known of a connection")

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


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_has_arrived_over_uvicorn_is_known_to_the_byte(loop: str, http: str) -> None:
    async def run() -> None:
        app = App()
        async with served(app, http) as address:
            client = Client(address)
            # An answer before it on the same connection: where the stream begins is not the connection's beginning.
            await client.get("/before")
            await client.read(lambda data: data.endswith(b"hello"))
            client.data = b""
            await client.get("/")
            arrival = await app.arrival
            assert isinstance(arrival, OverTcp)
            await client.read(lambda data: b"\r\n\r\n" in data)
            head = len(client.data)
            bodies = [bytes([65 + n]) * size for n, size in enumerate(SIZES)]
            for number, body in enumerate(bodies, 1):
                app.bodies.put_nowait(body)
                await app.until_sent(number)
                await client.read(lambda data: len(data) == head + sum(map(len, map(chunk, bodies[: app.sent]))))
                await until(arrival.look, "all of it has arrived")
                assert arrival.position == number
            assert arrival._places is None, "what is counted is what the connection holds"

            # A reader that reads no more: as many as its kernel holds as a whole have arrived, and not one more.
            more = [f"{n:04}".encode() * 500 for n in range(10_000)]
            for body in more:
                app.bodies.put_nowait(body)
            before = len(client.data)

            def arrived() -> bool:
                arrival.look()
                there = len(bodies) + whole(len(client.data) - before + client.waiting(), more)
                assert arrival.position <= there
                return arrival.position == there > len(bodies)

            await until(lambda: app.scope and _is_full(app.scope), "the buffers are full")
            await until(arrived, "what its kernel holds has arrived")
            await client.read(lambda data: len(data) > before + 100_000)
            await until(arrived, "and after it has read some")
            assert arrival._places is None
            position, hold = arrival.position, client.waiting()
            assert hold
            client.reset()
            await until(lambda: arrival.lost, "the connection is lost")
            assert arrival.position == position, "what had arrived is known after a reset"

    LOOPS[loop](run())


def _is_full(scope: dict[str, Any]) -> bool:
    transport = compat.transport_of(scope)
    assert transport is not None
    return transport.get_write_buffer_size() > 64 * 1024


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_look_is_made_when_the_connection_ends(loop: str, http: str) -> None:
    """Nobody has looked before, and the socket is closed before the application hears of the end."""

    async def run() -> None:
        app = App()
        async with served(app, http) as address:
            client = Client(address)
            await client.get("/")
            arrival = await app.arrival
            transport = compat.transport_of(app.scope)
            assert arrival is not None
            assert transport is not None
            protocol = transport.get_protocol()
            app.bodies.put_nowait(b"first")
            app.bodies.put_nowait(b"second")
            await client.read(lambda data: b"second\r\n" in data)
            client.sock.close()
            await until(lambda: arrival.lost, "lost")
            assert arrival.position == 2
            arrival.close()
            assert "connection_lost" not in vars(protocol)

    LOOPS[loop](run())


@pytest.mark.parametrize("loop", LOOPS)
def test_watching_leaves_nothing_behind_and_is_shared(loop: str) -> None:
    async def run() -> None:
        app = App()
        async with served(app) as address:
            client = Client(address)
            await client.get("/")
            arrival = await app.arrival
            assert arrival is not None
            transport = compat.transport_of(app.scope)
            assert transport is not None
            protocol = transport.get_protocol()
            told: list[Exception | None] = []
            undo = compat.when_lost(transport, told.append)
            arrival.close()
            assert "connection_lost" in vars(protocol)
            undo()
            assert "connection_lost" not in vars(protocol)
            compat.when_lost(transport, told.append)
            compat.abort(transport)
            assert [type(error) for error in told] == [ConnectionAbortedError]
            await until(lambda: "connection_lost" not in vars(protocol), "lost")
            assert len(told) == 1
            client.sock.close()

    LOOPS[loop](run())


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_a_body_that_is_not_framed_as_expected_is_noticed(http: str) -> None:
    """h11 answers HTTP/1.0 without chunks; httptools does not."""

    async def run() -> None:
        app = App()
        async with served(app, http) as address:
            client = Client(address)
            await client.get("/", version="1.0")
            arrival = await app.arrival
            assert isinstance(arrival, OverTcp)
            await client.read(lambda data: b"\r\n\r\n" in data)
            head = len(client.data)
            for number in range(1, 50):
                app.bodies.put_nowait(b"x" * number)
                await app.until_sent(number)
                await client.read(lambda data: len(data) >= head + sum(range(app.sent + 1)))
                await until(arrival.look, "arrived")
                assert arrival.position == number
            assert (arrival._places is None) == (http == "httptools")

            for _ in range(10_000):
                app.bodies.put_nowait(b"y" * 2000)
            head, before = len(client.data), arrival.position
            await until(lambda: _is_full(app.scope), "the buffers are full")
            framing = len(chunk(b"y" * 2000)) - 2000 if http == "httptools" else 0

            def arrived() -> bool:
                arrival.look()
                there = before + (len(client.data) - head + client.waiting()) // (2000 + framing)
                assert arrival.position <= there
                return arrival.position == there > before

            await until(arrived, "what its kernel holds has arrived")
            client.reset()
            await until(lambda: arrival.lost, "lost")

    asyncio.run(run())


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_the_other_process_has_read_from_a_unix_socket(tmp_path: Path, loop: str, http: str) -> None:
    async def run() -> None:
        app = App()
        async with served(app, http, uds=str(tmp_path / "s")):
            client = Client(str(tmp_path / "s"))
            await client.get("/")
            arrival = await app.arrival
            assert isinstance(arrival, Outstanding)
            for number in range(1, 20):
                app.bodies.put_nowait(f"body {number}".encode())
                await app.until_sent(number)
                assert not arrival.look()
                await client.read(lambda data: f"body {app.sent}\r\n".encode() in data)
                await until(arrival.look, "arrived")
                assert arrival.position == number
            head = len(client.data)
            more = [b"x" * 1000] * 5000
            for body in more:
                app.bodies.put_nowait(body)
            await until(lambda: _is_full(app.scope), "the buffers are full")
            await client.read(lambda data: len(data) >= head + 300_000)
            await until(lambda: _is_full(app.scope), "the buffers are full again")
            arrival.look()
            read = 19 + whole(len(client.data) - head, more)
            assert arrival.position <= read
            position = arrival.position
            client.sock.close()
            await until(lambda: arrival.lost, "lost")
            assert arrival.position == position, "what the kernel threw away has not arrived"

    LOOPS[loop](run())


def test_a_unix_socket_whose_other_end_has_read_all(tmp_path: Path) -> None:
    async def run() -> None:
        app = App()
        async with served(app, uds=str(tmp_path / "s")):
            client = Client(str(tmp_path / "s"))
            await client.get("/")
            arrival = await app.arrival
            assert arrival is not None
            app.bodies.put_nowait(b"all")
            await client.read(lambda data: b"all\r\n" in data)
            client.sock.close()
            await until(lambda: arrival.lost, "lost")
            assert arrival.position == 1

    asyncio.run(run())


def test_an_aborted_unix_socket_has_not_taken_what_was_in_the_buffers(tmp_path: Path) -> None:
    async def run() -> None:
        app = App()
        async with served(app, uds=str(tmp_path / "s")):
            client = Client(str(tmp_path / "s"))
            await client.get("/")
            arrival = await app.arrival
            assert arrival is not None
            for _ in range(5000):
                app.bodies.put_nowait(b"x" * 1000)
            await until(lambda: _is_full(app.scope), "the buffers are full")
            transport = compat.transport_of(app.scope)
            assert transport is not None
            compat.abort(transport)
            assert arrival.lost
            await until(transport.is_closing, "closed")
            assert arrival.position == 0
            client.sock.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*made, "-keyout", str(path), "-out", str(path.with_suffix(".crt"))], check=True, stderr=-3)
    except FileNotFoundError:
        pytest.skip("makes its certificate with openssl")
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_of_the_server_itself(certificate: Path, loop: str) -> None:
    """asyncio lets us see below it, uvloop does not: there it is what was handed over, as before."""

    async def run() -> None:
        app = App()
        async with served(app, ssl_certfile=str(certificate)) as address:
            context = ssl.create_default_context(cafile=str(certificate.with_suffix(".crt")))
            context.check_hostname = False
            reader, writer = await asyncio.open_connection(*address[:2], ssl=context)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            arrival = await app.arrival
            if loop == "uvloop":
                assert arrival is None
                writer.close()
                return
            assert isinstance(arrival, OverTcp)
            for number in range(1, 20):
                app.bodies.put_nowait(b"%d." % number * 100)
                await app.until_sent(number)
                await reader.readuntil(b"%d.\r\n" % number)
                await until(arrival.look, "arrived")
                assert arrival.position == number
            # One that takes nothing: never more than it could hold.
            for _ in range(20_000):
                app.bodies.put_nowait(b"x" * 1000)
            await until(lambda: _is_full(app.scope), "the buffers are full")
            position = -1
            while position != arrival.position:
                position = arrival.position
                arrival.look()
                await asyncio.sleep(0.05)
            transport = compat.transport_of(app.scope)
            assert transport is not None
            compat.abort(transport)
            assert arrival.lost
            received = b""
            with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
                while part := await reader.read(1 << 16):
                    received += part
            assert 0 < arrival.position <= 19 + received.count(b"x" * 1000)
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    LOOPS[loop](run())


@contextlib.asynccontextmanager
async def hypercorned(app: App) -> Any:
    config = hypercorn.config.Config()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
    config.bind = [f"127.0.0.1:{address[1]}"]
    config.graceful_timeout = 0.1
    config.errorlog = None
    end = asyncio.Event()
    task = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=end.wait))  # type: ignore[arg-type]

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(address):
            return True
        return False

    await until(listens, "the server listens")
    try:
        yield address
    finally:
        app.bodies.put_nowait(None)
        end.set()
        await task


@pytest.mark.parametrize("loop", LOOPS)
def test_hypercorn_over_http_1(loop: str) -> None:
    async def run() -> None:
        app = App()
        async with hypercorned(app) as address:
            client = Client(address)
            await client.get("/")
            arrival = await app.arrival
            assert isinstance(arrival, OverTcp)
            for number, size in enumerate(SIZES, 1):
                app.bodies.put_nowait(bytes([64 + number]) * size)
                await app.until_sent(number)
                await client.read(lambda data, n=number, size=size: bytes([64 + n]) * size in data)
                await until(arrival.look, "arrived")
                assert arrival.position == number
            assert arrival._places is None
            client.sock.close()
            # Hypercorn closes the socket when the application has ended.
            app.bodies.put_nowait(b"")
            await until(lambda: arrival.lost, "lost")

    LOOPS[loop](run())


@pytest.mark.parametrize("loop", LOOPS)
def test_hypercorn_over_http_2(loop: str) -> None:
    import h2.connection
    import h2.events

    async def run() -> None:
        app = App()
        async with hypercorned(app) as address:
            client, link = Client(address), h2.connection.H2Connection()
            link.initiate_connection()
            link.send_headers(1, [(":path", "/"), (":authority", "x"), (":scheme", "http"), (":method", "GET")], True)
            await client.send(link.data_to_send())
            received = b""

            async def read(count: int, window: bool) -> None:
                nonlocal received
                async with asyncio.timeout(DEADLINE):
                    while len(received) < count:
                        data = await asyncio.get_running_loop().sock_recv(client.sock, 1 << 16)
                        assert data
                        for event in link.receive_data(data):
                            if isinstance(event, h2.events.DataReceived):
                                received += event.data
                                if window:
                                    link.acknowledge_received_data(event.flow_controlled_length, 1)
                        await client.send(link.data_to_send())

            read_headers = asyncio.create_task(read(1, True))
            arrival = await app.arrival
            assert isinstance(arrival, OverTcp)
            total = 0
            for number in range(1, 20):
                total += number
                app.bodies.put_nowait(b"x" * number)
                await app.until_sent(number)
                await read_headers
                await read(total, True)
                await until(arrival.look, "arrived")
                assert arrival.position == number
            # The flow control of HTTP/2 stops it: 65,535 bytes come, the rest waits in the server.
            sizes = [1000] * 70
            for size in sizes:
                app.bodies.put_nowait(b"y" * size)
            await app.until_sent(19 + len(sizes))
            await read(total + 65_000, False)
            await until(lambda: arrival.look() or arrival.position > 80, "arrived")
            assert arrival.position <= 19 + (len(received) - total) // 1000
            assert not arrival.look()
            client.sock.close()
            # Hypercorn closes the socket when the application has ended.
            app.bodies.put_nowait(b"")
            await until(lambda: arrival.lost, "lost")

    LOOPS[loop](run())


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_a_server_is_known_by_its_signal_handler(http: str) -> None:
    async def run() -> None:
        app = App()
        server = uvicorn.Server(uvicorn.Config(app, port=0, http=http, lifespan="off", log_level="error"))
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started or task.done(), "the server listens")
        assert compat.server_of(signal.getsignal(signal.SIGTERM)) is server
        client = Client(server.servers[0].sockets[0].getsockname())
        await client.get("/")
        await app.arrival
        assert compat.transports_of(server) == [compat.transport_of(app.scope)]
        client.sock.close()
        app.bodies.put_nowait(None)
        server.should_exit = server.force_exit = True
        await task
        assert compat.transports_of(None) == []

    asyncio.run(run())


def test_a_wrapper_that_compresses_is_noticed() -> None:
    """It may hold back what it was given, and nobody knows how much."""

    async def run() -> None:
        app = App()

        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            packer = zlib.compressobj()

            async def packed(message: Any) -> None:
                if body := message.get("body"):
                    message = {**message, "body": packer.compress(body) + packer.flush(zlib.Z_SYNC_FLUSH)}
                await send(message)

            # As a plugin's wrapper does it, inside of ours: the server's own functions are known.
            app.server = (receive, send)
            await app(scope, receive, packed)

        async with served(wrapped) as address:
            client = Client(address)
            await client.get("/")
            arrival = await app.arrival
            assert arrival is not None
            app.bodies.put_nowait(b"x" * 1000)
            await app.until_sent(1)
            assert not arrival.known
            client.sock.close()
            app.bodies.put_nowait(None)
            await app.ended.wait()

    asyncio.run(run())


def test_where_nothing_can_be_known() -> None:
    async def run() -> None:
        async def receive() -> None: ...

        async def send(message: Any) -> None: ...

        assert acknowledged.of({}) is None
        assert acknowledged.of(compat.with_server({"http_version": "1.1"}, receive, send)) is None
        assert compat.transport_of(compat.with_server({}, asyncio.Queue().get, send)) is None

    asyncio.run(run())
