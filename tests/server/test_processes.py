"""Several server processes on one file: one live subscriber per subscription across all of them.

What really happened is written down by triggers in the file: with every claim of the subscription, the log's head and
the cursor at that moment.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import DEADLINE, OPEN, Server, Sse, free_port, sqlite_shell, wait_for

WITNESS = """
INSERT INTO pubsub_subscriptions (name, reads) VALUES ('s', '{"channels": ["a"], "patterns": []}');
CREATE TABLE claimed (claim INTEGER PRIMARY KEY, head INTEGER, cursor INTEGER);
CREATE TRIGGER claimed AFTER UPDATE OF claim ON pubsub_subscriptions
BEGIN
    INSERT INTO claimed SELECT NEW.claim, seq, NEW.cursor FROM sqlite_sequence WHERE name = 'vpubsub';
END;
"""


@dataclass
class Reader:
    """One connection, read by a thread of its own until the server ends it."""

    server: Server
    params: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.stream = Sse(f"{self.server.pubsub}/-/stream", **self.params)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while True:
                event = self.stream.event()
                if event["event"] == "message":
                    self.ids.append(int(event["id"]))
                else:
                    self.events.append(event["event"])
        except EOFError:
            pass
        except (httpx.TransportError, httpx.StreamError) as error:
            self.failure = error
        finally:
            self.stream.close()

    @property
    def ended(self) -> bool:
        return not self.thread.is_alive()

    def close(self) -> None:
        """Hang up, which its thread notices."""
        if not self.ended:
            with contextlib.suppress(OSError):
                self.stream.response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self.thread.join(DEADLINE)


def several(serve: Callable[..., Server], number: int, **options: Any) -> list[Server]:
    """Server processes on one file, with a log and the subscription ``s`` in it."""
    config = {**OPEN, "plugins": {"datasette-pubsub": {"cursor_save_interval_seconds": 0.1, **options}}}
    servers = [serve(config=config) for _ in range(number)]
    servers[0].publish(channel="a", payload="installs the log")
    sqlite_shell(servers[0].path, WITNESS)
    return servers


def row(server: Server, name: str = "s") -> tuple[str | None, int, int]:
    """Holder, claim and cursor, as they stand in the file."""
    found = server.rows("SELECT holder, claim, cursor FROM pubsub_subscriptions WHERE name = ?", name)
    return tuple(found[0])


def listed(server: Server) -> dict[str, Any]:
    (found,) = httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"]
    return dict(found)


@contextlib.contextmanager
def publishing(servers: list[Server]) -> Iterator[None]:
    """Publish all the time: through each of the servers, and by another program."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def publish(server: Server) -> None:
        try:
            with httpx.Client(timeout=60) as client:
                while not stop.wait(0.003):
                    items = [{"channel": "a", "payload": server.port}] * random.randint(1, 3)
                    client.post(f"{server.pubsub}/-/publish", json={"items": items}).raise_for_status()
        except BaseException as error:
            failures.append(error)

    def insert(path: Path) -> None:
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as conn:
                while not stop.wait(0.01):
                    conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 'by another program')")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=[server]) for server in servers]
    threads.append(threading.Thread(target=insert, args=[servers[0].path]))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def take_over(serve: Callable[..., Server], number: int, takeovers: int, ack: str) -> tuple[int, int]:
    """Open a subscription again and again, at random processes; how many messages there were, and how many repeats."""
    chance = random.Random(number * takeovers)
    servers = several(serve, number)
    readers: list[Reader] = []
    with publishing(servers):
        for n in range(takeovers):
            reader = Reader(chance.choice(servers), {"channel": "a", "subscription": "s", "ack": ack})
            readers.append(reader)
            wanted = chance.choice([0, 0, 1, 3])
            wait_for(lambda reader=reader, wanted=wanted: len(reader.ids) >= wanted, f"messages of reader {n}")
            if ack == "explicit" and reader.ids:
                # To any of them, as a proxy would send it.
                answer = {"subscription": "s", "message_id": reader.ids[-1]}
                httpx.post(f"{chance.choice(servers).pubsub}/-/ack", json=answer).raise_for_status()
            if len(readers) > 1:
                wait_for(lambda: readers[-2].ended, f"the stream before reader {n} ends")
    last = readers[-1]
    head = servers[0].rows("SELECT max(id) FROM vpubsub")[0][0]
    wait_for(lambda: last.ids and last.ids[-1] == head, "the newest reader gets everything")
    assert not last.ended
    last.close()
    check(servers[0], readers, takeovers)
    got = {number for reader in readers for number in reader.ids}
    return len(got), sum(len(reader.ids) for reader in readers) - len(got)


def check(server: Server, readers: list[Reader], takeovers: int) -> None:
    witnessed = server.rows("SELECT head, cursor FROM claimed ORDER BY claim")
    assert len(witnessed) == takeovers
    received: set[int] = set()
    for n, (reader, (_, cursor)) in enumerate(zip(readers, witnessed, strict=True)):
        told = f"reader {n}: "
        assert reader.ids == sorted(set(reader.ids)), told + "in order, and once in a connection"
        assert set(range(1, cursor + 1)) <= received, told + "the cursor counts nothing that nobody has got"
        assert not reader.ids or reader.ids[0] > cursor, told + "begins after the cursor"
        if n + 1 < len(readers):
            assert reader.failure is None
            assert reader.events[-1] == "superseded", told + f"is told: {reader.events}"
            later = [number for number in reader.ids if number > witnessed[n + 1][0]]
            assert later == [], told + "got what was committed after the next one had begun"
        received |= set(reader.ids)
    assert received == {number for (number,) in server.rows("SELECT id FROM vpubsub")}, "union complete"


@pytest.mark.parametrize(("number", "ack"), [(2, "auto"), (4, "auto"), (2, "explicit")])
def test_takeovers_among_processes(serve: Callable[..., Server], number: int, ack: str) -> None:
    messages, _ = take_over(serve, number, 60, ack)
    assert messages > 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_a_thousand_takeovers_among_processes(serve: Callable[..., Server], number: int) -> None:
    messages, repeats = take_over(serve, number, 1000, "auto")
    print(f"{number} processes, 1,000 takeovers: {messages} messages, {repeats} came again")


def test_many_at_the_same_time(serve: Callable[..., Server]) -> None:
    """Whoever claims last has it, and all others are told."""
    servers = several(serve, 2)
    readers: list[Reader] = []
    lock = threading.Lock()

    def begin(server: Server) -> None:
        reader = Reader(server, {"channel": "a", "subscription": "s"})
        with lock:
            readers.append(reader)

    with publishing(servers):
        for _ in range(5):
            threads = [threading.Thread(target=begin, args=[servers[n % 2]]) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(readers) == 40
    wait_for(lambda: sum(not reader.ended for reader in readers) == 1, "all but one have ended")
    (last,) = [reader for reader in readers if not reader.ended]
    assert all(reader.events[-1] == "superseded" for reader in readers if reader is not last)
    (holder, _, _) = row(servers[0])
    assert last.server.process is not None
    assert holder is not None
    assert holder.startswith(f"{last.server.process.pid}-")
    head = servers[0].rows("SELECT max(id) FROM vpubsub")[0][0]
    wait_for(lambda: last.ids and last.ids[-1] == head, "it gets everything")
    wait_for(lambda: row(servers[0])[2] == head, "and its cursor is saved")
    assert {number for reader in readers for number in reader.ids} == set(range(1, head + 1))
    last.close()


def test_connected_is_what_all_processes_say(serve: Callable[..., Server]) -> None:
    one, two = several(serve, 2)
    for server in (one, two):
        assert listed(server)["connected"] is False
    with Sse(f"{one.pubsub}/-/stream", channel="a", subscription="s") as reader:
        reader.messages(1)
        wait_for(lambda: listed(two)["cursor"] == 1, "its cursor is saved")
        assert [listed(server)["connected"] for server in (one, two)] == [True, True]
        assert listed(two)["lag"] == 0
    wait_for(lambda: not listed(two)["connected"], "it has left")
    assert row(one)[0] is None


def test_a_killed_process_does_not_stay_connected(serve: Callable[..., Server]) -> None:
    one, two = several(serve, 2)
    reader = Reader(one, {"channel": "a", "subscription": "s"})
    wait_for(lambda: reader.ids == [1], "the first message")
    one.kill()
    wait_for(lambda: reader.ended, "its connection is gone")
    assert listed(two)["connected"] is True, "nobody can know yet"
    assert row(two)[0] is not None
    sqlite_shell(
        two.path,
        "UPDATE pubsub_subscriptions SET last_seen_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-151 seconds');",
    )
    assert listed(two)["connected"] is False
    two.publish(channel="a", payload="after the crash")
    # The killed process may have saved it, or not; the next subscriber moves it on at once.
    cursor = row(two)[2]
    with Sse(f"{two.pubsub}/-/stream", channel="a", subscription="s") as again:
        assert [int(message["messageId"]) for message in again.messages(2 - cursor)] == [1, 2][cursor:]
        assert listed(two)["connected"] is True


def test_a_subscription_is_read_while_the_file_is_locked_and_claimed_after_that(serve: Callable[..., Server]) -> None:
    one, two = several(serve, 2)
    one.publish(*[{"channel": "a", "payload": n} for n in range(20)])
    first = Reader(one, {"channel": "a", "subscription": "s"})
    wait_for(lambda: len(first.ids) == 21, "the first reader has everything")
    wait_for(lambda: row(one)[2] == 21, "and its cursor is saved")
    before = row(one)
    with contextlib.closing(sqlite3.connect(one.path, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 'while it is locked')")
        second = Reader(two, {"channel": "a", "subscription": "s"})
        wait_for(lambda: "ready" in second.events, "it begins nevertheless")
        assert row(two) == before
        conn.execute("COMMIT")
    wait_for(lambda: first.ended, "the first is told")
    assert first.events[-1] == "superseded"
    two.publish(channel="a", payload="afterwards")
    wait_for(lambda: second.ids[-1:] == [23], "the second has it")
    assert second.ids in ([23], [22, 23])
    assert set(first.ids) | set(second.ids) == set(range(1, 24))
    wait_for(lambda: row(two)[2] == 23, "and its cursor is saved")
    assert row(two)[1] > before[1]
    second.close()


def test_a_holder_that_somebody_has_overwritten_is_written_again(serve: Callable[..., Server]) -> None:
    """Also what a backup that was restored says: its claims are of another time."""
    (one,) = several(serve, 1)
    reader = Reader(one, {"channel": "a", "subscription": "s"})
    wait_for(lambda: row(one)[0] is not None and row(one)[2] == 1, "connected, and saved")
    for change in ("holder = NULL", "holder = 'nobody', claim = 0", "claim = 0"):
        before = row(one)
        sqlite_shell(one.path, f"DROP TRIGGER IF EXISTS claimed; UPDATE pubsub_subscriptions SET {change};")
        (number,) = one.publish(channel="a", payload=change)
        wait_for(lambda number=number: row(one)[2] == number, f"the cursor is saved again after {change}")
        assert row(one)[0] == before[0]
        assert row(one)[1] > before[1]
    sqlite_shell(
        one.path, "UPDATE _pubsub_file SET claims = 0; UPDATE pubsub_subscriptions SET holder = 'x', claim = 1;"
    )
    (number,) = one.publish(channel="a", payload="the file's count went back")
    wait_for(lambda: row(one)[2] == number, "the cursor is saved again")
    assert not reader.ended
    again = Reader(one, {"channel": "a", "subscription": "s"})
    wait_for(lambda: reader.ended, "and it can be taken over")
    assert reader.events[-1] == "superseded"
    again.close()


def test_acks_reach_the_stream_of_another_process(serve: Callable[..., Server]) -> None:
    one, two = several(serve, 2, max_unacked_messages=5)
    one.publish(*[{"channel": "a", "payload": n} for n in range(19)])
    reader = Reader(one, {"channel": "a", "subscription": "s", "ack": "explicit"})
    for last in (5, 10, 15, 20):
        wait_for(lambda last=last: reader.ids[-1:] == [last], f"messages up to {last}")
        httpx.post(f"{two.pubsub}/-/ack", json={"subscription": "s", "message_id": last}).raise_for_status()
    assert reader.ids == list(range(1, 21))
    reader.close()


def test_a_subscription_that_another_process_deletes(serve: Callable[..., Server]) -> None:
    one, two = several(serve, 2)
    reader = Reader(one, {"channel": "a", "subscription": "s"})
    wait_for(lambda: reader.ids == [1], "connected")
    httpx.post(f"{two.pubsub}/-/subscriptions/delete", json={"subscription": "s"}).raise_for_status()
    wait_for(lambda: reader.ended, "it is told")
    assert reader.events[-1] == "superseded"


def test_gunicorn_with_two_workers(tmp_path: Path) -> None:
    """One port, two processes: which of them answers is left to the system."""
    path = tmp_path / "data.db"
    sqlite_shell(path, "CREATE TABLE existing (id INTEGER PRIMARY KEY);")
    (tmp_path / "served.py").write_text(
        f"from datasette.app import Datasette\napp = Datasette([{str(path)!r}], config={OPEN!r}).app()\n"
    )
    server = Server([path], OPEN, tmp_path, port=free_port())
    command = [sys.executable, "-m", "gunicorn", "served:app", "--workers", "2"]
    command += ["--worker-class", "uvicorn_worker.UvicornWorker", "--bind", f"127.0.0.1:{server.port}"]
    environment = {**os.environ, "DATASETTE_SECRET": "tests", "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "server.log").open("ab") as log:
        server.process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_for(server._answers, "gunicorn answers")
        server.publish(channel="a", payload="first")
        sqlite_shell(path, WITNESS)
        readers: list[Reader] = []
        holders: set[str | None] = set()
        with publishing([server]):
            while len(readers) < 10 or (len(holders) < 2 and len(readers) < 200):
                readers.append(Reader(server, {"channel": "a", "subscription": "s"}))
                holders.add(row(server)[0])
                if len(readers) > 1:
                    wait_for(lambda: readers[-2].ended, "the one before ends")
        assert len(holders) == 2, f"both workers have had it: {holders}"
        head = server.rows("SELECT max(id) FROM vpubsub")[0][0]
        wait_for(lambda: readers[-1].ids[-1:] == [head], "the newest reader gets everything")
        assert not readers[-1].ended
        readers[-1].close()
        check(server, readers, len(readers))
        server.stop(signal.SIGTERM)
        assert "Traceback" not in server.log
    finally:
        server.kill()
