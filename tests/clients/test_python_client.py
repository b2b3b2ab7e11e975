"""The client for Python against real servers, and against peers that break."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from auth import cookie
from docstrings import blocks
from nats_servers import trim
from servers import OPEN, Server, sqlite_shell, wait_for

from datasette_pubsub import client as package
from datasette_pubsub.client import (
    AsyncClient,
    Client,
    ClientError,
    Forbidden,
    Gap,
    Item,
    Message,
    NotPublished,
    Refused,
    Superseded,
    Unreachable,
)

#: A client that gives up soon.
SOON = 0.3


@pytest.fixture(autouse=True)
def in_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """An iterator that waits for a message that never comes fails its test."""

    def late(*_: object) -> None:
        raise TimeoutError("the test waits for something that does not come")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(900 if request.node.get_closest_marker("slow") else 60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_it_loads_no_part_of_datasette() -> None:
    code = "import datasette_pubsub.client, sys; print(sorted(name for name in sys.modules if 'datasette' in name))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    rooms = {name.split(".")[1] for name in json.loads(done.stdout.replace("'", '"')) if "." in name}
    assert rooms == {"client", "hooks", "lazy"}


def both() -> list[Any]:
    return [pytest.param(each, id=each.__name__) for each in (Client, AsyncClient)]


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


@pytest.fixture(params=both())
def client_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Driver]]:
    made: list[Driver] = []

    def make(server: Server | str, **options: Any) -> Driver:
        url = server if isinstance(server, str) else f"{server.url}/data"
        made.append(Driver(request.param, url, **options))
        return made[-1]

    yield make
    for driver in made:
        driver.end()


def test_what_is_published_arrives(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    server = serve(config=OPEN)
    client = client_of(server)
    assert client.publish("a", "text") == 1
    payloads: list[Any] = [{"n": 1}, [1, "zwei"], 7, 1.5, b"\0\xff", "\u2028 line", True]
    items = [Item(channel="a", payload=payload, key=str(n)) for n, payload in enumerate(payloads)]
    assert client.publish_many(items) == list(range(2, 9))
    assert client.publish_many(items) == list(range(2, 9)), "each key once"
    assert client.publish_many([]) == []
    reading = client.subscribe("a", start="earliest")
    found = reading.take(8)
    assert [message.id for message in found] == list(range(1, 9))
    assert [message.payload for message in found] == [
        "text", '{"n":1}', '[1,"zwei"]', "7", "1.5", b"\0\xff", "\u2028 line", "true",
    ]  # fmt: skip
    assert found[1].json() == {"n": 1}
    assert {message.channel for message in found} == {"a"}
    assert found[0].created_at.endswith("Z")
    assert client.publish("a", "live", expected_last_id=8) == 9
    assert reading.take(1)[0].payload == "live"
    reading.close()
    filtered = client.subscribe(patterns=["a*"], filter="payload = 7", after=0)
    assert [message.id for message in filtered.take(1)] == [4]
    filtered.close()


def test_acks_decide_what_comes_again(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    client = client_of(serve(config=OPEN))
    client.publish_many([Item(channel="a", payload=str(n)) for n in range(5)])
    first = client.subscribe("a", subscription="s", ack="explicit", start="earliest")
    found = first.take(3)
    assert first.ack(found[1]) == 2
    assert first.ack(1) == 2
    first.close()
    again = client.subscribe(subscription="s", ack="explicit")
    assert [message.id for message in again.take(3)] == [3, 4, 5]
    assert client.ack("s", 5) == 5
    # A newer subscriber takes over, and the older one must not come back.
    newer = client.subscribe(subscription="s", ack="explicit")
    client.publish("a", "next")
    assert [message.id for message in newer.take(1)] == [6]
    with pytest.raises(Superseded):
        again.take(2)
    with pytest.raises(TypeError, match="only a subscription has acks"):
        client.subscribe("a").ack(1)
    with pytest.raises(TypeError, match="takes channels, patterns or the name"):
        client.subscribe()


def test_what_is_refused_is_told_and_not_repeated(
    serve: Callable[..., Server], client_of: Callable[..., Driver]
) -> None:
    server = serve(config={"permissions": {"publish-message": {"id": "ann"}}})
    nobody = client_of(server, retry_seconds=1000)
    with pytest.raises(Forbidden, match="publish-message") as forbidden:
        nobody.publish("a", "x", key="1")
    assert forbidden.value.status == 403
    ann = client_of(server, headers=cookie("ann"))
    assert ann.publish("a", "x") == 1
    with pytest.raises(Refused) as refused:
        ann.publish("x" * 300, "x")
    assert (refused.value.status, refused.value.field) == (400, "channel")
    with pytest.raises(Refused, match="expected_last_id is 7") as conflict:
        ann.publish("a", "x", expected_last_id=7)
    assert conflict.value.status == 409
    with pytest.raises(Refused, match="filter"):
        nobody.subscribe("a", filter="SELECT 1").take(1)
    with pytest.raises(Refused, match="nothing") as missing:
        client_of(f"{server.url}/nothing").subscribe("a").take(1)
    assert missing.value.status == 404
    for address in ("data.db", "http://127.0.0.1:8001", "ftp://x/data"):
        with pytest.raises(ValueError, match="is not the address of a database"):
            client_of(address)


def test_gaps_are_told(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    server = serve(config=OPEN)
    client = client_of(server)
    client.publish_many([Item(channel="a", payload=str(n)) for n in range(10)])
    reading = client.subscribe("a", subscription="s", ack="explicit", start="earliest")
    reading.ack(reading.take(1)[0])
    reading.close()
    trim(server.path, "a", 4)
    gaps: list[Gap] = []
    reading = client.subscribe(subscription="s", ack="explicit", on_gap=gaps.append)
    assert [(each.id, each.missed) for each in reading.take(2)] == [(5, 3), (6, 0)]
    assert gaps == [Gap(3, 4)]


def test_a_restart_is_not_noticed(serve: Callable[..., Server], client_of: Callable[..., Driver]) -> None:
    """Before the first message, the place is the head of the first connection."""
    server = serve(config=OPEN)
    client = client_of(server)
    client.publish("a", "old")
    found: list[list[Message]] = []
    reading = client.subscribe("a", start="latest")
    thread = threading.Thread(target=lambda: found.append(reading.take(2)))
    thread.start()
    wait_for(lambda: reading.place is not None, "it knows where it is")
    server.kill()
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'while it was down')")
    server.start()
    server.publish(channel="a", payload="afterwards")
    thread.join(30)
    assert [message.payload for message in found[0]] == ["while it was down", "afterwards"]


def kill_now_and_then(server: Server, times: int, seconds: float) -> None:
    for _ in range(times):
        time.sleep(seconds)
        server.kill()
        server.start()


@pytest.mark.parametrize(
    ("times", "seconds"), [(3, 1.0), pytest.param(100, 3.0, marks=pytest.mark.slow)], ids=["short", "five minutes"]
)
def test_nothing_is_lost_while_the_server_is_killed(
    serve: Callable[..., Server], client_of: Callable[..., Driver], times: int, seconds: float
) -> None:
    """With keys and explicit acks: each message once and in order, and the ids that the publisher was told."""
    server = serve(config=OPEN)
    publisher, subscriber = client_of(server, retry_seconds=120), client_of(server, retry_seconds=120)
    told: list[int] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def publish() -> None:
        try:
            while not ended.is_set():
                number = len(told)
                told.append(publisher.publish("a", {"number": number}, key=f"key-{number}"))
                time.sleep(0.005)
        except BaseException as error:
            failed.append(error)

    found: list[Message] = []
    reading = subscriber.subscribe("a", subscription="s", ack="explicit", start="earliest")

    def read() -> None:
        try:
            while not (ended.is_set() and len(found) >= len(told)):
                (message,) = reading.take(1)
                found.append(message)
                if len(found) % 10 == 0:
                    reading.ack(message)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=publish, daemon=True), threading.Thread(target=read, daemon=True)]
    for thread in threads:
        thread.start()
    kill_now_and_then(server, times, seconds)
    ended.set()
    threads[0].join(60)
    # One more, so that the reader sees that it is the end.
    wait_for(lambda: failed or len(found) >= len(told), "everything has arrived", 60)
    server.publish(channel="a", payload={"number": len(told)})
    threads[1].join(60)
    assert not failed
    count = len(told)
    assert [message.json()["number"] for message in found][:count] == list(range(count))
    assert [message.id for message in found][:count] == told
    assert count > 20 * times


# -- peers that break --------------------------------------------------------------


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


def stream(*events: tuple[str, dict[str, Any]], retry: int | None = 1) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    text = "" if retry is None else f"retry: {retry}\n\n"
    for name, data in events:
        text += f"event: {name}\n" if name else f"id: {data['messageId']}\n"
        text += f"data: {json.dumps(data)}\n\n"
    return head + text.encode()


def message(number: int) -> tuple[str, dict[str, Any]]:
    return "", {"messageId": str(number), "channel": "a", "payload": str(number), "createdAt": "2026"}


def last_event_ids(peer: Peer) -> list[str | None]:
    found = []
    for request in peer.requests:
        lines = [line for line in request.decode().split("\r\n") if line.lower().startswith("last-event-id:")]
        found.append(lines[0].split(": ")[1] if lines else None)
    return found


def test_silence_is_the_end_of_a_connection(client_of: Callable[..., Driver]) -> None:
    peer = Peer(stream(message(1)), stream(("heartbeat", {"head": "5"})), stream(message(9)), hang=True)
    reading = client_of(peer.url).subscribe("a", silence_seconds=SOON)
    assert [each.id for each in reading.take(2)] == [1, 9]
    assert last_event_ids(peer) == [None, "1", "5"]
    peer.close()


def test_with_explicit_acks_the_server_keeps_the_place(client_of: Callable[..., Driver]) -> None:
    peer = Peer(stream(message(1), message(2)), stream(message(2), message(3)))
    reading = client_of(peer.url).subscribe("a", subscription="s", ack="explicit")
    assert [each.id for each in reading.take(3)] == [1, 2, 3], "what the program has is left out"
    assert last_event_ids(peer) == [None, None]


def test_another_log_begins_anew(client_of: Callable[..., Driver]) -> None:
    gap = ("gap", {"missed": "-1", "resumedAt": "0", "ahead": True})
    peer = Peer(stream(message(7)), stream(gap, message(1)))
    gaps: list[Gap] = []
    reading = client_of(peer.url).subscribe("a", on_gap=gaps.append)
    assert [(each.id, each.missed) for each in reading.take(2)] == [(7, 0), (1, -1)]
    assert gaps == [Gap(-1, 0)]


def test_a_half_of_an_event_is_not_one(client_of: Callable[..., Driver]) -> None:
    half = stream(message(1), message(2))[:-20]
    peer = Peer(half, stream(message(2)))
    assert [each.id for each in client_of(peer.url).subscribe("a").take(2)] == [1, 2]
    assert last_event_ids(peer) == [None, "1"]


def test_it_gives_up_when_it_is_told_to(client_of: Callable[..., Driver]) -> None:
    busy = b'HTTP/1.1 503 X\r\nConnection: close\r\nContent-Type: application/json\r\n\r\n{"error": "not yet"}'
    peer = Peer(busy, busy, stream(message(1)))
    reading = client_of(peer.url).subscribe("a", reconnect_seconds=0.6)
    assert reading.take(1)[0].id == 1
    with pytest.raises(Unreachable):
        reading.take(1)
    with pytest.raises(Unreachable):
        client_of(peer.url, retry_seconds=SOON).publish("a", "x", key="k")
    with pytest.raises(Unreachable):
        client_of(peer.url, retry_seconds=SOON).publish("a", "x")


def test_without_a_key_nothing_is_published_twice(client_of: Callable[..., Driver]) -> None:
    stored = b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 23\r\n\r\n{"message_ids": [1234]}'
    busy = b"HTTP/1.1 429 X\r\nRetry-After: 0\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    unknown = b"HTTP/1.1 503 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    for answer in (b"", unknown):
        peer = Peer(answer, stored)
        with pytest.raises(NotPublished, match="it is not known whether this was stored"):
            client_of(peer.url).publish("a", "x")
        assert len(peer.requests) == 1
        peer.close()
    peer = Peer(busy, stored)
    assert client_of(peer.url).publish("a", "x") == 1234
    peer = Peer(b"", unknown, busy, stored)
    assert client_of(peer.url).publish("a", "x", key="k") == 1234
    assert len(peer.requests) == 4
    assert len({request.partition(b"\r\n\r\n")[2] for request in peer.requests}) == 1


# -- without a server ---------------------------------------------------------------


async def taken(messages: AsyncIterator[Message], count: int) -> list[Message]:
    found = [await anext(messages) for _ in range(count)]
    await messages.aclose()  # type: ignore[attr-defined]
    return found


def followed(kind: str, count: int, *values: Any, **options: Any) -> list[Message]:
    """The first messages that either function yields."""
    if kind == "async":
        return asyncio.run(taken(package.follow_async(*values, **options), count))
    messages = package.follow(*values, **options)
    found = [next(messages) for _ in range(count)]
    messages.close()  # type: ignore[attr-defined]
    return found


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
def test_a_file_is_followed(file: Path, kind: str) -> None:
    later = "import sqlite3, sys, time; time.sleep(0.5); c = sqlite3.connect(sys.argv[1]); "
    later += "c.execute(\"INSERT INTO vpubsub (channel, payload) VALUES ('b/2', x'00'), ('a', 1.5)\"); c.commit()"
    sqlite_shell(file, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'one'), ('b/1', 2)")
    with subprocess.Popen([sys.executable, "-c", later, file]):
        found = followed(kind, 4, file, after="earliest")
    assert [(each.id, each.channel, each.payload) for each in found] == [
        (1, "a", "one"), (2, "b/1", 2), (3, "b/2", b"\0"), (4, "a", 1.5),
    ]  # fmt: skip
    assert [each.id for each in followed(kind, 2, file, "a", after="earliest")] == [1, 4]
    assert [each.id for each in followed(kind, 1, file, "x", patterns=["b/*"], after=2)] == [3]
    sqlite_shell(file, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) "
                 "INSERT INTO vpubsub (channel, payload) SELECT 'many', i FROM n")  # fmt: skip
    assert [each.payload for each in followed(kind, 2500, file, "many", after=4)] == list(range(1, 2501))


@KINDS
def test_what_retention_has_taken_is_told(file: Path, kind: str) -> None:
    sqlite_shell(file, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 1), ('b', 2), ('a', 3), ('a', 4)")
    sqlite_shell(
        file, "INSERT INTO _pubsub_released VALUES ('a', 3); DELETE FROM vpubsub WHERE channel = 'a' AND id < 4"
    )
    assert [(each.id, each.missed) for each in followed(kind, 1, file, "a", after=1)] == [(4, -1)]
    assert [(each.id, each.missed) for each in followed(kind, 1, file, "b", after=1)] == [(2, 0)]
    assert [(each.id, each.missed) for each in followed(kind, 2, file, after="earliest")] == [(2, 0), (4, 0)]
    assert [(each.id, each.missed) for each in followed(kind, 1, file, "a", after=3)] == [(4, 0)]


@KINDS
def test_what_cannot_be_followed(tmp_path: Path, file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClientError, match="there is no file"):
        followed(kind, 1, tmp_path / "none.db")
    sqlite_shell(tmp_path / "plain.db", "CREATE TABLE t (a)")
    with pytest.raises(ClientError, match="this file has no log"):
        followed(kind, 1, tmp_path / "plain.db")
    # Another file takes the place of this one.
    monkeypatch.setattr("datasette_pubsub.client.file.FILE_SECONDS", 0.05)
    threading.Timer(0.3, lambda: (tmp_path / "plain.db").replace(file)).start()
    with pytest.raises(ClientError, match="another file has taken the place"):
        followed(kind, 1, file)


# -- the examples of the docstrings -----------------------------------------------------


def examples() -> list[Any]:
    rooms = [package.sync, package.aio, package.file, package]
    return [pytest.param(code, id=f"{room.__name__}.{owner}") for room in rooms for owner, code in blocks(room)]


@pytest.mark.parametrize("code", examples())
def test_an_example_runs(serve: Callable[..., Server], code: str) -> None:
    server = serve(config=OPEN)
    server.publish(channel="orders", payload={"order": 1})
    code = code.replace("127.0.0.1:8001", f"127.0.0.1:{server.port}")
    if "async with client.subscribe" in code:
        lines = "\n".join(f"        {line}" for line in code.splitlines())
        code = (
            "import asyncio\nfrom datasette_pubsub.client import AsyncClient\nasync def main():\n"
            f"    async with AsyncClient('{server.url}/data') as client:\n{lines}\nasyncio.run(main())"
        )
    elif "client.subscribe" in code and "Client(" not in code:
        code = (
            f"from datasette_pubsub.client import Client\nclient = Client('{server.url}/data')\n{code}\nclient.close()"
        )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=server.path.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ('1 {"order":1}', '{"order":1}', "2", "1 {'order': 1}"), done.stdout
