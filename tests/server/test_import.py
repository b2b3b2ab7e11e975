"""`datasette pubsub import`: the messages of any stream, each exactly once."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from pathlib import Path

import pytest
from commands import run
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats_servers import NatsServer, Start, head, on_stream, wait_for_head


def make(nats: NatsServer, bodies: list[bytes], subject: str = "things.x.y") -> None:
    """A stream of somebody else's."""

    async def work(stream: JetStreamContext) -> None:
        await stream.add_stream(StreamConfig(name="things", subjects=["things.>"]))
        for body in bodies:
            await stream.publish(subject, body)

    on_stream(nats.url, work)


def test_messages_get_ids_of_their_own(file: Path, nats: NatsServer) -> None:
    make(nats, [b"one", "zwölf".encode(), b"\xff\x00", b"", b'{"a": 1}'])
    run("publish", file, "mine", "first")
    words = ("import", nats.url, file, "--stream", "things", "--once")
    run(*words, "--channel", "from/{subject}")
    run(*words, "--channel", "from/{subject}")
    with contextlib.closing(sqlite3.connect(file)) as conn:
        found = conn.execute("SELECT id, channel, payload, key FROM vpubsub WHERE id > 1").fetchall()
        (count,) = conn.execute(
            "SELECT count(*) FROM vpubsub WHERE created_at BETWEEN "
            "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 minute') AND strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 second')"
        ).fetchone()
    channel = "from/things/x/y"
    assert found == [
        (2, channel, "one", "nats:things:1"),
        (3, channel, "zwölf", "nats:things:2"),
        (4, channel, b"\xff\x00", "nats:things:3"),
        (5, channel, "", "nats:things:4"),
        (6, channel, '{"a": 1}', "nats:things:5"),
    ]
    assert count == 6


def test_what_the_log_does_not_take_stops_it(file: Path, nats: NatsServer) -> None:
    """With the sequence and the limit, and without a part of what follows."""
    make(nats, [b"small", b"x" * (1024 * 1024 + 1), b"after"])
    words = ("import", nats.url, file, "--stream", "things", "--once", "--channel", "c")
    text = run(*words, code=1).stderr.splitlines()[-1]
    assert text.startswith("Error: the message 2 of the stream things cannot be taken: ")
    assert "payload is over the limit of 1048576 bytes (max_payload_bytes)" in text
    assert "there is no stream" in run("import", nats.url, file, "--stream", "x", "--channel", "c", code=1).stderr


def test_another_stream_of_that_name(file: Path, nats: NatsServer) -> None:
    make(nats, [b"1", b"2", b"3"])
    words = ("import", nats.url, file, "--stream", "things", "--once", "--channel", "c")
    run(*words)

    async def again(stream: JetStreamContext) -> None:
        await stream.delete_stream("things")

    on_stream(nats.url, again)
    make(nats, [b"other"])
    assert run(*words, code=1).stderr.splitlines()[-1] == (
        "Error: the stream things is at 1, and its messages were taken up to 3: it is another stream of this name"
    )


def test_a_stream_that_ends_with_deleted_messages(file: Path, nats: NatsServer) -> None:
    """The stream's last sequence is never reached; the import ends all the same."""
    make(nats, [b"1", b"2", b"3"])

    async def delete(stream: JetStreamContext) -> None:
        await stream.delete_msg("things", 2)
        await stream.delete_msg("things", 3)

    on_stream(nats.url, delete)
    for _ in range(2):
        run("import", nats.url, file, "--stream", "things", "--once", "--channel", "c")
    assert head(file) == 1


def test_it_goes_on_with_what_comes(file: Path, nats: NatsServer, start: Start) -> None:
    make(nats, [b"1"])
    start("import", nats.url, file, "--stream", "things", "--channel", "c")
    wait_for_head(file, 1)

    async def more(stream: JetStreamContext) -> None:
        await stream.publish("things.z", b"2")

    on_stream(nats.url, more)
    wait_for_head(file, 2)


@pytest.mark.slow
def test_a_hundred_thousand_messages_and_twenty_kills(file: Path, nats: NatsServer, start: Start) -> None:
    number = 100_000

    async def fill(stream: JetStreamContext) -> None:
        await stream.add_stream(StreamConfig(name="things", subjects=["things.>"]))
        for first in range(1, number, 1000):
            for each in range(first, first + 1000):
                await stream._nc.publish("things.x", b"%d" % each)
            await stream._nc.flush()
        end = time.monotonic() + 60
        while (await stream.stream_info("things")).state.messages < number:
            assert time.monotonic() < end

    on_stream(nats.url, fill)
    words = ("import", nats.url, file, "--stream", "things", "--channel", "c")
    for kill in range(1, 21):
        process = start(*words)
        wait_for_head(file, min(number - 1, head(file) + 1), 120)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
        assert head(file) < number or kill > 10, "the kills must come before the end"
    run(*words, "--once")
    with contextlib.closing(sqlite3.connect(file)) as conn:
        rows = conn.execute("SELECT id, CAST(payload AS INTEGER), key FROM vpubsub ORDER BY id").fetchall()
    assert rows == [(each, each, f"nats:things:{each}") for each in range(1, number + 1)]


def test_large_messages_are_all_taken(file: Path, nats: NatsServer) -> None:
    """Pages end at their size, and not where the stream does."""
    make(nats, [bytes([65 + number % 26]) * 1_000_000 for number in range(60)])
    run("import", nats.url, file, "--stream", "things", "--channel", "c", "--once")
    assert head(file) == 60


def test_the_last_message_was_deleted(file: Path, nats: NatsServer) -> None:
    make(nats, [b"1", b"2", b"3"])
    on_stream(nats.url, lambda stream: stream.delete_msg("things", 3))
    done = run("import", nats.url, file, "--stream", "things", "--channel", "c", "--once")
    assert "Up to date, at 2\n" in done.stderr
    assert head(file) == 2
