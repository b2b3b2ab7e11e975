"""A log, its stream and its follower are the same, on the newest and the oldest NATS server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
from pathlib import Path

from commands import run
from nats_servers import (
    Start,
    both_servers,
    execute,
    head,
    publish,
    relay_once,
    rows,
    running,
    same,
    trim,
    wait_for_head,
)

ODD = [
    ("eu/new", '{"a": 1}', "order 1"),
    ("a.b c/é", "ü😀\n\x00x", "schlüssel % 100"),
    ("x//y", b"\x00\xff", None),
    ("-", 42, None),
    ("100%/*/>", -(2**63), None),
    (" ", 0.1, " "),
    ("n\nl", 1e300, None),
    ("empty", "", None),
    ("empty", b"", None),
    ("inf", float("-inf"), None),
    ("c" * 255, "x" * (1024 * 1024), "k" * 255),
    ("blob", os.urandom(1024 * 1024), None),
]


@both_servers
def test_log_stream_and_follower_are_the_same(tmp_path: Path, file: Path, start: Start, binary: str) -> None:
    for row in ODD:
        execute(file, "INSERT INTO vpubsub (channel, payload, key) VALUES (?, ?, ?)", *row)
    execute(file, "INSERT INTO vpubsub (channel, payload) VALUES ('invalid', CAST(x'61ff62' AS TEXT))")
    copy = tmp_path / "copy.db"
    with running(tmp_path / "nats", binary) as nats:
        run("relay", file, "--to", nats.url, "--stream", "orders", "--create", "--once")
        follow = start("follow", nats.url, copy, "--stream", "orders")
        wait_for_head(copy, len(ODD) + 1)
        assert rows(copy) == rows(file)

        # Both go on with what is committed later, until they are told to end.
        relay = start("relay", file, "--to", nats.url, "--stream", "orders")
        publish(file, 2500)
        wait_for_head(copy, head(file))
        assert rows(copy) == rows(file)
        assert "all the same" in run("relay", file, "--to", nats.url, "--stream", "orders", "--check").stdout
        assert "all the same" in run("follow", nats.url, copy, "--stream", "orders", "--verify").stdout
        for process in (relay, follow):
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    position = "SELECT name, cursor FROM pubsub_subscriptions WHERE owner = 'datasette-pubsub relay'"
    with contextlib.closing(sqlite3.connect(file)) as conn:
        assert conn.execute(position).fetchall() == [("orders", len(ODD) + 2501)]


def test_a_file_in_utf_16(tmp_path: Path, start: Start) -> None:
    file, copy = tmp_path / "wide.db", tmp_path / "copy.db"
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute("PRAGMA encoding = 'UTF-16le'")
        conn.execute("CREATE TABLE existing (id INTEGER PRIMARY KEY)")
    run("install", file)
    execute(file, "INSERT INTO vpubsub (channel, payload, key) VALUES ('é', 'ü😀', 'k')")
    with running(tmp_path / "nats") as nats:
        relay_once(file, nats)
        follow = start("follow", nats.url, copy, "--stream", "orders")
        wait_for_head(copy, 1)
        follow.terminate()
        follow.wait(30)
    with contextlib.closing(sqlite3.connect(copy)) as conn:
        assert conn.execute("SELECT channel, payload, key FROM vpubsub").fetchall() == [("é", "ü😀", "k")]


def test_two_relays_are_a_standby(tmp_path: Path, file: Path, start: Start) -> None:
    copy = tmp_path / "copy.db"
    with running(tmp_path / "nats") as nats:
        relay_once(file, nats)
        relays = [start("relay", file, "--to", nats.url, "--stream", "orders") for _ in range(2)]
        start("follow", nats.url, copy, "--stream", "orders")
        for _ in range(20):
            publish(file, 200)
        wait_for_head(copy, 1)
        relays[0].kill()
        publish(file, 500)
        same(file, copy, nats)
        relays.append(start("relay", file, "--to", nats.url, "--stream", "orders"))
        relays[1].kill()
        publish(file, 500)
        same(file, copy, nats)


def test_killed_and_paused(tmp_path: Path, file: Path, start: Start) -> None:
    """The server, the relay and the follower, each while messages come; the long test is test_relay_killed.py."""
    copy = tmp_path / "copy.db"
    with running(tmp_path / "nats") as nats:
        relay_once(file, nats)
        relay_words = ("relay", file, "--to", nats.url, "--stream", "orders")
        follow_words = ("follow", nats.url, copy, "--stream", "orders")
        relay, follow = start(*relay_words), start(*follow_words)
        publish(file, 3000)
        wait_for_head(copy, 1000)
        nats.kill()
        publish(file, 3000)
        nats.start()
        wait_for_head(copy, 4000)
        relay.kill()
        follow.kill()
        publish(file, 3000)
        relay, follow = start(*relay_words), start(*follow_words)
        nats.pause()
        publish(file, 1000)
        nats.go_on()
        same(file, copy, nats)


def test_an_older_copy_of_the_store_heals(tmp_path: Path, file: Path, start: Start) -> None:
    """As after a power cut of the server, which syncs late: acknowledged messages are gone from it."""
    copy = tmp_path / "copy.db"
    with running(tmp_path / "nats") as nats:
        publish(file, 1000)
        relay_once(file, nats)
        nats.kill(signal.SIGTERM)
        shutil.copytree(nats.store, tmp_path / "older")
        nats.start()
        start("relay", file, "--to", nats.url, "--stream", "orders")
        start("follow", nats.url, copy, "--stream", "orders")
        publish(file, 2000)
        wait_for_head(copy, 3000)
        nats.kill(signal.SIGTERM)
        shutil.rmtree(nats.store)
        shutil.copytree(tmp_path / "older", nats.store)
        nats.start()
        # The follower is ahead of the stream now, and waits until the relay has filled it again.
        publish(file, 1000)
        same(file, copy, nats)


def test_what_retention_took_before_it_was_relayed(tmp_path: Path, file: Path, start: Start) -> None:
    """A hole becomes ids without a message; a reader at the follower is told how many of its channel it has missed."""
    copy = tmp_path / "copy.db"
    with running(tmp_path / "nats") as nats:
        publish(file, 3, "kept")
        relay_once(file, nats)
        publish(file, 2, "kept")
        publish(file, 5, "short")
        publish(file, 2, "kept")
        trim(file, "short", 10)
        relay = start("relay", file, "--to", nats.url, "--stream", "orders")
        start("follow", nats.url, copy, "--stream", "orders")
        same(file, copy, nats)
        assert [row[0] for row in rows(copy)] == [1, 2, 3, 4, 5, 11, 12]
        assert "5 messages trimmed" in run("tail", copy, "short", "--after", 3).stderr
        assert "Gap" not in run("tail", copy, "kept", "--after", 3).stderr
        # At the end of the log, there is nothing to publish after them: they come with the next message.
        relay.kill()
        relay.wait(30)
        publish(file, 4, "short")
        trim(file, "short", 16)
        relay_once(file, nats)
        assert head(copy) == 12
        publish(file, 1, "kept")
        relay_once(file, nats)
        same(file, copy, nats)
        assert "all the same" in run("follow", nats.url, copy, "--stream", "orders", "--verify").stdout


def test_a_log_that_was_trimmed_before_the_first_relay(tmp_path: Path, file: Path, start: Start) -> None:
    copy = tmp_path / "copy.db"
    publish(file, 50_000)
    trim(file, "c", 45_000)
    with running(tmp_path / "nats") as nats:
        relay_once(file, nats)
        start("follow", nats.url, copy, "--stream", "orders")
        same(file, copy, nats)
        assert rows(copy)[0][0] == 45_001
