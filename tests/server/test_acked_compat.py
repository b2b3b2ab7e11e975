"""What the servers, asyncio and Linux let us know of a connection, each looked at where it comes from.

A test that fails here after an upgrade says that something undocumented has changed: see ``compat/``.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import zlib
from typing import Any

import pytest
import uvicorn
from one_app import LOOPS, SIZES, App, Client, chunk, is_full, served, until, whole

from datasette_pubsub import compat
from datasette_pubsub.asgi import acknowledged
from datasette_pubsub.asgi.acknowledged import OverTcp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere less is known of a connection")


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

            await until(lambda: app.scope and is_full(app.scope), "the buffers are full")
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
            await until(lambda: is_full(app.scope), "the buffers are full")
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
