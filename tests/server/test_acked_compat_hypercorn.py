"""What hypercorn lets us know of a connection, looked at where it comes from, as in test_acked_compat.py."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
from one_app import LOOPS, SIZES, App, Client, until
from servers import DEADLINE

from datasette_pubsub.asgi.acknowledged import OverTcp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere less is known of a connection")


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
