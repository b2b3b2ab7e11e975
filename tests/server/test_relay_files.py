"""The file of a relay or a follower while others lock it, replace it, restore it or promote it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

from commands import call, run
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats_servers import (
    NatsServer,
    Start,
    head,
    on_stream,
    publish,
    query,
    read_line,
    relay_once,
    rows,
    same,
    trim,
    wait_for_head,
)
from servers import wait_for

GONE = "Error: the file was replaced or deleted meanwhile; try again"


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another program writes for as long as the block lasts."""
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        yield
        conn.execute("ROLLBACK")


def relay_of(file: Path, nats: NatsServer, start: Start) -> subprocess.Popen[str]:
    found = start("relay", file, "--to", nats.url, "--stream", "orders", "--create")
    read_line(found, "All relayed")
    return found


def follow_to(copy: Path, nats: NatsServer, start: Start) -> subprocess.Popen[str]:
    found = start("follow", nats.url, copy, "--stream", "orders")
    read_line(found, "Up to date")
    return found


def replace(file: Path) -> None:
    """Put another log in the place of this one, as a deployment does."""
    other = file.with_name("another.db")
    call("install", other, "--create")
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)
    os.replace(other, file)


# -- another file at the path ---------------------------------------------------


def test_a_log_that_is_replaced_is_not_relayed_on(file: Path, nats: NatsServer, start: Start) -> None:
    publish(file, 10)
    relay = relay_of(file, nats, start)
    replace(file)
    assert read_line(relay, "Error").rstrip() == GONE
    assert relay.wait(30) == 75


def test_a_deleted_copy_is_not_written_on(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    copy = tmp_path / "copy.db"
    publish(file, 10)
    relay_once(file, nats)
    follow = follow_to(copy, nats, start)
    for each in tmp_path.glob("copy.db*"):
        each.unlink()
    publish(file, 1)
    relay_once(file, nats)
    assert read_line(follow, "Error").rstrip() == GONE
    assert follow.wait(30) == 75
    # The supervisor begins again, with a new file.
    follow_to(copy, nats, start)
    same(file, copy, nats)


def test_a_backup_is_restored_in_place(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    """The running relay notices, or it would leave out what the log gives out anew."""
    backup = tmp_path / "backup.db"
    publish(file, 5)
    with contextlib.closing(sqlite3.connect(file)) as conn, contextlib.closing(sqlite3.connect(backup)) as other:
        conn.backup(other)
    publish(file, 5)
    relay = relay_of(file, nats, start)
    with contextlib.closing(sqlite3.connect(file)) as conn, contextlib.closing(sqlite3.connect(backup)) as other:
        other.backup(conn)
    assert "ahead of the log, which is at 5" in read_line(relay, "Error")
    assert relay.wait(30) == 1


def test_a_copy_is_restored_in_place(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    """It gets again what the backup does not have."""
    copy, backup = tmp_path / "copy.db", tmp_path / "backup.db"
    publish(file, 10)
    relay_once(file, nats)
    follow_to(copy, nats, start).terminate()
    with contextlib.closing(sqlite3.connect(copy)) as conn, contextlib.closing(sqlite3.connect(backup)) as other:
        conn.backup(other)
    publish(file, 10)
    relay_once(file, nats)
    follow = follow_to(copy, nats, start)
    with contextlib.closing(sqlite3.connect(copy)) as conn, contextlib.closing(sqlite3.connect(backup)) as other:
        other.backup(conn)
    publish(file, 1)
    relay_once(file, nats)
    assert "the log has gone back to 10" in read_line(follow, "Waiting")
    same(file, copy, nats)


def test_a_promoted_copy_is_not_written_on(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    """Somebody has not ended its follow first."""
    copy = tmp_path / "copy.db"
    publish(file, 10)
    relay_once(file, nats)
    follow = follow_to(copy, nats, start)
    call("promote", copy)
    publish(file, 1)
    relay_once(file, nats)
    assert read_line(follow, "Error").rstrip() == "Error: this log follows no stream any more"
    assert follow.wait(30) == 1
    assert head(copy) == 10


def test_a_stream_of_another_log_takes_its_place(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    """A running follower must not go on with it, even if it has no message yet that could differ."""
    copy, other = tmp_path / "copy.db", tmp_path / "other.db"
    publish(file, 10)
    relay_once(file, nats)
    follow = follow_to(copy, nats, start)
    call("install", other, "--create")
    publish(other, 3)
    second = NatsServer(tmp_path / "second").start()
    try:
        relay_once(other, second)
        second.kill()
        nats.kill()
        second.port = nats.port
        second.configure()
        second.start()
        line = read_line(follow, "Error")
    finally:
        second.kill()
    assert line.rstrip() == ("Error: the stream orders was made from another log than the one that this file copies")
    assert follow.wait(30) == 1
    assert rows(copy) == rows(file)


# -- another program writes for long --------------------------------------------


def test_a_relay_does_not_wait_for_a_writer(file: Path, nats: NatsServer, start: Start) -> None:
    publish(file, 5000)
    with locked(file):
        relay = start("relay", file, "--to", nats.url, "--stream", "orders", "--create")
        assert relay.stderr is not None
        said: list[str] = []
        while not said or (said[-1] and not said[-1].startswith(("All relayed", "Waiting"))):
            said.append(relay.stderr.readline())
    assert said[-1].rstrip() == "All relayed, up to 5000"
    wait_for(lambda: query(file, "SELECT cursor FROM pubsub_subscriptions") == [(5000,)], "the position is shown")


def test_a_follower_that_waits_for_a_writer_can_be_ended(
    tmp_path: Path, file: Path, nats: NatsServer, start: Start
) -> None:
    copy = tmp_path / "copy.db"
    publish(file, 1)
    relay_once(file, nats)
    follow = follow_to(copy, nats, start)

    async def delivered(stream: JetStreamContext) -> int:
        return max(each.delivered.stream_seq for each in await stream.consumers_info("orders") if each.delivered)

    with locked(copy):
        publish(file, 1)
        relay_once(file, nats)
        wait_for(lambda: on_stream(nats.url, delivered) == 2, "the message is there")
        follow.terminate()
        # It would wait for the writer for 30 seconds.
        assert follow.wait(15) == 0
        # So does one that has not opened the file yet; it tries again, and can be ended, too.
        follow = start("follow", nats.url, copy, "--stream", "orders")
        assert "is locked by another program" in read_line(follow, "Waiting")
        follow.terminate()
        assert follow.wait(15) == 0
    follow_to(copy, nats, start)
    same(file, copy, nats)


# -- comparing --------------------------------------------------------------------


def test_check_after_retention(file: Path, nats: NatsServer) -> None:
    """The log has less than the stream, which is as it should be."""
    publish(file, 1, "d")
    publish(file, 10_500)
    publish(file, 1, "d")
    relay_once(file, nats)
    trim(file, "c", 10_501)
    done = run("relay", file, "--to", nats.url, "--stream", "orders", "--check")
    assert done.stdout == "Compared 10502 messages: all the same\n"


def test_check_finds_what_the_stream_has_lost(file: Path, nats: NatsServer) -> None:
    publish(file, 10)
    on_stream(nats.url, lambda stream: stream.add_stream(StreamConfig(name="orders", subjects=["orders.>"])))
    relay_once(file, nats)

    async def delete(stream: JetStreamContext) -> None:
        for sequence in (4, 5, 10):
            await stream.delete_msg("orders", sequence)

    on_stream(nats.url, delete)
    done = run("relay", file, "--to", nats.url, "--stream", "orders", "--check", code=1)
    assert "The messages 4 to 5 are not in the stream\nThe message 10 is not in the stream\n" in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: compared 7 messages: 3 differ"


# -- UTF-16 -----------------------------------------------------------------------


def test_fillers_of_a_file_in_utf_16(tmp_path: Path, nats: NatsServer) -> None:
    file, copy = tmp_path / "wide.db", tmp_path / "copy.db"
    for each in (file, copy):
        with contextlib.closing(sqlite3.connect(each)) as conn:
            conn.execute("PRAGMA encoding = 'UTF-16le'")
            conn.execute("CREATE TABLE t (x)")
        call("install", each)
    publish(file, 1)
    relay_once(file, nats)
    publish(file, 3, "zwölf")
    trim(file, "zwölf", 4)
    publish(file, 1)
    relay_once(file, nats)

    async def channel(stream: JetStreamContext) -> str:
        found = await stream.get_msg("orders", 3)
        assert found.headers is not None
        return found.headers["Pubsub-Channel"]

    assert on_stream(nats.url, channel) == "zw%C3%B6lf"
    assert run("follow", nats.url, copy, "--stream", "orders", code=1).stderr.splitlines()[-1] == (
        "Error: this file is in UTF-16, which cannot hold every message: begin with a new file"
    )


def test_a_writer_that_holds_a_new_copy(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    """``follow`` waits when it makes the file a copy, too."""
    copy = tmp_path / "copy.db"
    call("install", copy, "--create")
    publish(file, 2)
    relay_once(file, nats)
    with locked(copy):
        follow = start("follow", nats.url, copy, "--stream", "orders")
        read_line(follow, "Waiting")
    wait_for_head(copy, 2)
