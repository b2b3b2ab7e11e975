"""Cursors of automatic subscriptions, on real servers: they follow what the reader's machine has acknowledged."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import signal
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from connect_streams import connect_messages, options
from servers import DEADLINE, Server, Sse, sqlite_shell, wait_for
from uvicorn_servers import SERVERS, serve_as

__all__ = ["serve_as"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the buffers of Linux")

#: More than all the buffers between a server and a reader that takes nothing hold, in messages of a kilobyte.
MESSAGES = 12_000
PAYLOAD = "x" * 1000

_IDS = {"sse": rb"^id: (\d+)$", "connect": rb'\{"messageId":"(\d+)"'}


def connect_body(**request: Any) -> bytes:
    message = json.dumps(request).encode()
    return struct.pack(">BI", 0, len(message)) + message


#: Of the test that runs; closed with it.
_takers: list[Taker] = []


@pytest.fixture(autouse=True)
def no_taker_left() -> Iterator[None]:
    yield
    while _takers:
        _takers.pop().kill()


class Taker:
    """A reader that takes as many bytes as it is told to; what else has arrived waits in its kernel's small buffer."""

    def __init__(self, address: Any, edge: str, name: str, headers: str = "") -> None:
        self.edge = edge
        _takers.append(self)
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(address)
        # Not bytes, which are copied as a whole with each part that is added.
        self.data = bytearray()
        if edge == "sse":
            path = f"/data/-/pubsub/-/stream?channel=a&subscription={name}"
            self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
        else:
            body = connect_body(dbName="data", channel="a", subscriptionName=name)
            head = f"POST /db.v1.DbService/Subscribe HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}"
            self.sock.sendall(f"{head}Content-Type: application/connect+json\r\n\r\n".encode() + body)

    def take(self, count: int) -> None:
        """Read so many bytes more."""
        end = len(self.data) + count
        while len(self.data) < end:
            part = self.sock.recv(end - len(self.data))
            assert part, self.data[-500:]
            self.data += part

    def last(self) -> int:
        """The last message of the last chunk that has come here as a whole, read or not: a send makes a chunk."""
        waiting = struct.unpack("i", fcntl.ioctl(self.sock, termios.FIONREAD, bytes(4)))[0]
        # Not taken: that would make room for more.
        data = self.data + (self.sock.recv(waiting, socket.MSG_PEEK) if waiting else b"")
        assert len(data) == len(self.data) + waiting
        body, at = [], data.index(b"\r\n\r\n") + 4
        while found := re.match(rb"([0-9a-f]+)\r\n", data[at : at + 20]):
            begin = at + found.end()
            at = begin + int(found[1], 16) + 2
            if at > len(data):
                break
            body.append(data[begin : at - 2])
        ids = [int(number) for number in re.findall(_IDS[self.edge], b"".join(body), re.MULTILINE)]
        assert ids == list(range(ids[0], ids[0] + len(ids)))
        return ids[-1]

    def kill(self) -> None:
        """As when its process is killed: what it has not read is gone, and the other side is told with a reset."""
        self.sock.close()


def cursor(server: Server, name: str = "s") -> int:
    return int(server.rows("SELECT cursor FROM pubsub_subscriptions WHERE name = ?", name)[0][0])


def first_of_next(server: Server, edge: str, name: str = "s") -> int:
    """The first message that a new connection of the subscription gets."""
    if edge == "sse":
        with Sse(f"{server.pubsub}/-/stream", channel="a", subscription=name) as reader:
            return int(reader.messages(1)[0]["messageId"])
    return int(connect_messages(server, 1, channel="a", subscriptionName=name)[0]["messageId"])


def fill(server: Server, count: int = MESSAGES) -> None:
    """Publish one message, which makes the log; another program adds the others, in one statement."""
    server.publish(channel="a", payload=PAYLOAD)
    numbers = f"WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < {count})"
    sqlite_shell(server.path, f"INSERT INTO vpubsub (channel, payload) {numbers} SELECT 'a', '{PAYLOAD}' FROM n;")


def outstanding(server: Server) -> int:
    """The most bytes that wait in a socket of the server, acknowledged by nobody."""
    assert server.process is not None
    rows = [row.split() for row in Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]]
    return max((int(row[4].split(":")[0], 16) for row in rows if row[1].endswith(f":{server.port:04X}")), default=0)


def established(server: Server, reader: Taker) -> bool:
    """Whether the server still has the connection of this reader."""
    assert server.process is not None
    port = reader.sock.getsockname()[1]
    rows = [row.split() for row in Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]]
    ends = (f":{server.port:04X}", f":{port:04X}", "01")
    return any((row[1][-5:], row[2][-5:], row[3]) == ends for row in rows)


def listed(server: Server, name: str = "s") -> dict[str, Any]:
    found = httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"]
    return next(row for row in found if row["subscription"] == name)


def stuck(server: Server, edge: str, name: str = "s") -> Taker:
    """A reader that has taken some of very much, whose buffers are full, and what it has is saved."""
    fill(server)
    reader = Taker(("127.0.0.1", server.port), edge, name)
    reader.take(500_000)
    wait_for(lambda: outstanding(server) > 1 << 19, "more is on the way than the reader's machine takes")
    wait_for(lambda: cursor(server, name) == reader.last(), "what its machine has is saved")
    assert listed(server, name)["delivery"] == "tcp-acknowledged"
    return reader


#: Messages that a full machine takes when it tidies up its buffer: the peer asks now and then whether there is room.
A_LITTLE = 20

#: Sends of a few messages; its machine holds the beginning of one more. The reader is not cut off.
STUCK = {"cursor_save_interval_seconds": 0.1, "max_send_bytes": 4096, "send_timeout_seconds": 60}


@pytest.mark.parametrize("edge", ["sse", "connect"])
@pytest.mark.parametrize("kind", SERVERS)
def test_a_reader_that_is_killed_has_what_its_machine_acknowledged(
    serve_as: Callable[..., Server], kind: str, edge: str
) -> None:
    server = serve_as(kind, options(**STUCK))
    reader = stuck(server, edge)
    has = reader.last()
    assert 400 < has < 1000, "what was handed over is much more"
    reader.kill()
    wait_for(lambda: not listed(server)["connected"], "the server has noticed")
    assert listed(server)["delivery"] is None
    # While it was full, its machine may still have taken a little: what is exact stands in test_acked_compat.py.
    assert has < first_of_next(server, edge) <= has + A_LITTLE
    server.stop()
    assert "Traceback" not in server.log


@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_a_takeover_goes_on_after_what_was_acknowledged(serve: Callable[..., Server], edge: str) -> None:
    server = serve(config=options(**STUCK))
    reader = stuck(server, edge)
    before = reader.last()
    assert before < first_of_next(server, edge) <= reader.last() + 1


def test_a_takeover_counts_what_no_save_has_seen(serve: Callable[..., Server]) -> None:
    server = serve(config=options(**{**STUCK, "cursor_save_interval_seconds": 60}))
    fill(server)
    reader = Taker(("127.0.0.1", server.port), "sse", "s")
    reader.take(500_000)
    wait_for(lambda: outstanding(server) > 1 << 19, "more is on the way than the reader's machine takes")
    assert cursor(server) == 0
    before = reader.last()
    first = first_of_next(server, "sse")
    assert before < first <= reader.last() + 1
    reader.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_shutdown_counts_what_was_acknowledged(serve: Callable[..., Server], number: signal.Signals) -> None:
    server = serve(config=options(**{**STUCK, "cursor_save_interval_seconds": 60}))
    fill(server)
    reader = Taker(("127.0.0.1", server.port), "sse", "s")
    reader.take(500_000)
    wait_for(lambda: outstanding(server) > 1 << 19, "more is on the way than the reader's machine takes")
    before = reader.last()
    assert server.stop(number) < 5
    assert 0 < before <= cursor(server) <= reader.last() < 1000


@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_a_stuck_reader_that_is_cut_off_has_what_was_acknowledged(serve: Callable[..., Server], edge: str) -> None:
    server = serve(config=options(**{**STUCK, "send_timeout_seconds": 1, "cursor_save_interval_seconds": 60}))
    fill(server)
    reader = Taker(("127.0.0.1", server.port), edge, "s")
    reader.take(500_000)
    before = reader.last()
    wait_for(lambda: not listed(server)["connected"], "cut off")
    wait_for(lambda: 0 < before <= listed(server)["cursor"] <= reader.last() < 1000, "saved")


def test_a_reader_that_takes_all_is_saved_to_the_end(serve: Callable[..., Server]) -> None:
    """It lags while cursors are saved, and nothing is sent after it has caught up."""
    server = serve(config=options(**STUCK))
    reader = stuck(server, "sse")
    # All of it, and what says that it is live.
    while b"event: ready" not in reader.data[-1000:]:
        reader.take(1)
        reader.take(int(struct.unpack("i", fcntl.ioctl(reader.sock, termios.FIONREAD, bytes(4)))[0]))
    wait_for(lambda: cursor(server) == MESSAGES, "saved without another send")
    reader.kill()


def test_the_list_says_what_moves_a_cursor(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="a", payload="x")
    url = f"{server.pubsub}/-/stream"
    with (
        Sse(url, channel="a", subscription="auto") as auto,
        Sse(url, channel="a", subscription="explicit", ack="explicit") as explicit,
    ):
        auto.messages(1)
        explicit.messages(1)
        found = {name: listed(server, name)["delivery"] for name in ("auto", "explicit")}
        assert found == {"auto": "tcp-acknowledged", "explicit": "explicit"}
    for name in found:
        wait_for(lambda name=name: not listed(server, name)["connected"], "gone")
        assert listed(server, name)["delivery"] is None


def test_hypercorn(serve: Callable[..., Server]) -> None:
    server = serve(config=options(**STUCK), http2=True)
    for edge in ("sse", "connect"):
        reader = stuck(server, edge, edge)
        has = reader.last()
        reader.kill()
        wait_for(lambda edge=edge: not listed(server, edge)["connected"], "the server has noticed")
        assert has < first_of_next(server, edge, edge) <= has + A_LITTLE


# -- what is cut off --------------------------------------------------------------


@pytest.mark.parametrize("edge", ["sse", "connect"])
@pytest.mark.parametrize("kind", ["direct", "behind a proxy", "hypercorn", "behind a proxy, hypercorn"])
def test_a_stuck_reader_is_cut_off(serve: Callable[..., Server], kind: str, edge: str) -> None:
    """Uvicorn believes a proxy on the same machine, and puts its word for the client's address."""
    config = options(send_timeout_seconds=1, cursor_save_interval_seconds=0.1)
    server = serve(config=config, http2="hypercorn" in kind)
    fill(server)
    headers = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n" if "proxy" in kind else ""
    reader = Taker(("127.0.0.1", server.port), edge, "s", headers)
    reader.take(100_000)
    assert established(server, reader)
    wait_for(lambda: not established(server, reader), "it is cut off")
    wait_for(lambda: not listed(server)["connected"], "and its stream has ended")
    assert listed(server)["cursor"] < 1000
    server.stop()
    assert "Traceback" not in server.log


@pytest.mark.parametrize("edge", ["sse", "connect"])
def test_a_stuck_reader_on_a_unix_socket_is_cut_off(serve: Callable[..., Server], tmp_path: Path, edge: str) -> None:
    plain = serve()
    fill(plain)
    plain.stop()
    path = tmp_path / "server.sock"
    config = options(send_timeout_seconds=1, cursor_save_interval_seconds=0.1, max_send_bytes=4096)
    server = Server([plain.path], config, tmp_path, options=["--uds", str(path)])
    server.run(server.command())
    try:

        def listens() -> bool:
            with socket.socket(socket.AF_UNIX) as sock:
                return sock.connect_ex(str(path)) == 0

        wait_for(listens, "it listens")
        client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x")

        def row() -> dict[str, Any]:
            return dict(client.get("/data/-/pubsub/-/subscriptions.json").json()["subscriptions"][0])

        reader = Taker(str(path), edge, "s")
        reader.take(500_000)
        found = row()
        assert (found["connected"], found["delivery"]) == (True, "tcp-acknowledged")
        taken = reader.last()
        wait_for(lambda: not row()["connected"], "it is cut off")
        assert 0 < row()["cursor"] <= taken
        with contextlib.suppress(ConnectionError):
            while reader.sock.recv(1 << 16):
                pass
        reader.kill()
        client.close()
    finally:
        server.stop()
    assert "Traceback" not in server.log
