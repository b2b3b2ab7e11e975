"""What has arrived over a Unix socket, and over TLS: each looked at where it comes from, as in test_acked_compat.py."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from one_app import LOOPS, App, Client, is_full, served, until, whole

from datasette_pubsub import compat
from datasette_pubsub.asgi.acknowledged import Outstanding, OverTcp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere less is known of a connection")


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
            await until(lambda: is_full(app.scope), "the buffers are full")
            await client.read(lambda data: len(data) >= head + 300_000)
            await until(lambda: is_full(app.scope), "the buffers are full again")
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
            await until(lambda: is_full(app.scope), "the buffers are full")
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
            await until(lambda: is_full(app.scope), "the buffers are full")
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
