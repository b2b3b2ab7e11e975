"""A follower's file: what it takes, what it refuses, and how it takes the place of its origin."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from commands import call, run
from nats.js import JetStreamContext
from nats_servers import (
    NatsServer,
    Start,
    execute,
    head,
    on_stream,
    publish,
    read_line,
    relay_once,
    rows,
    same,
    wait_for_head,
)

ADDRESS = "https://origin.example/data/-/pubsub"


@pytest.fixture
def copy(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> Path:
    """A copy of ten messages, whose follow has ended."""
    publish(file, 10)
    relay_once(file, nats, "--publish-at", ADDRESS, "--max-age", "7d")
    found = tmp_path / "copy.db"
    follow_to(found, nats, start, 10)
    return found


def follow_to(copy: Path, nats: NatsServer, start: Start, number: int) -> None:
    """Follow until the copy has this head."""
    follow = start("follow", nats.url, copy, "--stream", "orders")
    # Python is still loading modules before, and a signal would end it there.
    read_line(follow, "Following the stream orders")
    wait_for_head(copy, number)
    follow.terminate()
    assert follow.wait(30) == 0


def refusal(copy: Path, nats: NatsServer, stream: str = "orders") -> str:
    """Why following does not begin; it ends with exit code 1."""
    done = run("follow", nats.url, copy, "--stream", stream, code=1)
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].removeprefix("Error: ")


def test_a_copy_takes_the_next_id_alone(copy: Path) -> None:
    refused = f"this log follows the stream orders: publish at {ADDRESS}"
    with contextlib.closing(sqlite3.connect(copy)) as conn:
        for ids in ("NULL", "10", "12", "-1", "0"):
            with pytest.raises(sqlite3.IntegrityError, match=refused):
                conn.execute(f"INSERT INTO vpubsub (id, channel, payload) VALUES ({ids}, 'c', 'p')")
        with pytest.raises(sqlite3.IntegrityError, match=refused):
            conn.execute("INSERT OR REPLACE INTO vpubsub (id, channel, payload) VALUES (10, 'c', 'p')")
    assert head(copy) == 10
    assert call("publish", copy, "c", "p", code=1).stderr.count(refused) == 1


def test_where_to_publish_stays_until_it_is_changed(
    tmp_path: Path, file: Path, copy: Path, nats: NatsServer, start: Start
) -> None:
    """Also when a relay runs with --create that was not told the address; and its other settings stay, too."""

    async def settings(stream: JetStreamContext) -> tuple[object, ...]:
        config = (await stream.stream_info("orders")).config
        return config.subjects, config.max_age, config.deny_delete, config.num_replicas

    before = on_stream(nats.url, settings)
    for more, address in (((), ADDRESS), (("--publish-at", "https://other.example"), "https://other.example")):
        relay_once(file, nats, *more)
        assert on_stream(nats.url, settings) == before
        follow_to(copy, nats, start, 10)
        assert f"publish at {address}" in call("publish", copy, "c", "p", code=1).stderr


def test_install_keeps_a_copy(copy: Path) -> None:
    call("install", copy)
    execute(copy, "DROP TRIGGER vpubsub_guard")
    call("install", copy)
    with pytest.raises(sqlite3.IntegrityError, match="this log follows"):
        execute(copy, "INSERT INTO vpubsub (channel, payload) VALUES ('c', 'p')")
    execute(copy, "INSERT INTO vpubsub (id, channel, payload) VALUES (11, 'c', 'p')")


def test_a_copy_is_promoted_and_its_relay_goes_on(
    tmp_path: Path, file: Path, copy: Path, nats: NatsServer, start: Start
) -> None:
    """The origin is lost; the copy takes its place, and other copies follow it without noticing."""
    other = tmp_path / "other.db"
    follow_to(other, nats, start, 10)
    assert call("promote", copy).stdout == f"{copy} is an ordinary log now; the next message gets the id 11\n"
    publish(copy, 5)
    relay_once(copy, nats)
    follow_to(other, nats, start, 15)
    same(copy, other, nats)
    assert call("promote", copy, code=1).stderr == "Error: this log follows no stream\n"
    # The lost origin comes back: it has not what was published since, so it is refused.
    assert "ahead of the log" in run("relay", file, "--to", nats.url, "--stream", "orders", code=1).stderr


def test_what_cannot_be_followed(tmp_path: Path, file: Path, copy: Path, nats: NatsServer) -> None:
    assert refusal(copy, nats, "nothing") == "there is no stream nothing"
    assert refusal(file, nats) == (
        "this log has messages of its own, up to id 10: only an empty log can begin to follow a stream"
    )
    text = tmp_path / "notes.txt"
    text.write_text("no database, but notes " * 100)
    assert refusal(text, nats) == f"{text} is not an SQLite database"
    other = tmp_path / "another.db"
    call("install", other, "--create")
    publish(other, 3)
    run("relay", other, "--to", nats.url, "--stream", "others", "--create", "--once")
    assert refusal(copy, nats, "others") == "this log follows the stream orders, not others"

    async def made_anew(stream: JetStreamContext) -> None:
        await stream.delete_stream("orders")

    on_stream(nats.url, made_anew)
    publish(other, 20)
    run("relay", other, "--to", nats.url, "--stream", "orders", "--create", "--once")
    assert refusal(copy, nats) == "this log follows a stream orders that was made from another log"
    assert head(copy) == 10


def test_somebody_else_published(tmp_path: Path, copy: Path, nats: NatsServer) -> None:
    async def other(stream: JetStreamContext) -> None:
        await stream.publish("orders.c", b"hello")

    on_stream(nats.url, other)
    assert refusal(copy, nats) == "somebody else has published the message 11 of the stream orders"
    verified = run("follow", nats.url, copy, "--stream", "orders", "--verify")
    assert verified.stdout == "Compared 10 messages: all the same\n"
    assert head(copy) == 10


def test_the_stream_has_lost_messages(tmp_path: Path, file: Path, copy: Path, nats: NatsServer, start: Start) -> None:
    """Its limits were reached before the copy came back: it must not go on with a hole."""
    publish(file, 20)
    relay_once(file, nats)

    async def purge(stream: JetStreamContext) -> None:
        await stream.purge_stream("orders", seq=21)

    on_stream(nats.url, purge)
    assert refusal(copy, nats) == (
        "the stream has lost the messages 11 to 20, which this file does not have: begin a new file, and let the "
        "stream keep messages for longer (max_age)"
    )
    # A new copy begins where the stream does.
    fresh = tmp_path / "fresh.db"
    follow_to(fresh, nats, start, 30)
    assert rows(fresh) == rows(file, after=20)


def test_verify_finds_what_differs(file: Path, copy: Path, nats: NatsServer) -> None:
    words = ("follow", nats.url, copy, "--stream", "orders", "--verify")
    execute(copy, "DROP TRIGGER vpubsub_update")
    execute(copy, "UPDATE vpubsub SET payload = 'other' WHERE id = 4")
    execute(copy, "UPDATE vpubsub SET payload = CAST(payload AS BLOB) WHERE id = 7")
    call("install", copy)
    done = run(*words, code=1)
    assert "The message 4 differs\nThe message 7 differs\n" in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: compared 10 messages: 2 differ"
    assert run(*words, "--from", "5", "--to", "6").stdout == "Compared 2 messages: all the same\n"
    execute(file, "DROP TRIGGER vpubsub_update")
    execute(file, "UPDATE vpubsub SET key = 'other' WHERE id = 2")
    call("install", file)
    checked = run("relay", file, "--to", nats.url, "--stream", "orders", "--check", code=1)
    assert "The message 2 differs" in checked.stderr


def test_a_copy_that_was_changed_is_not_gone_on_with(file: Path, copy: Path, nats: NatsServer) -> None:
    execute(copy, "DROP TRIGGER vpubsub_update")
    execute(copy, "UPDATE vpubsub SET payload = 'other' WHERE id = 10")
    assert refusal(copy, nats) == "this file is no copy of the stream orders: the message 10 differs"


def test_retention_of_its_own(file: Path, copy: Path, nats: NatsServer, start: Start) -> None:
    call("trim", copy, "--messages", "3")
    publish(file, 10)
    relay_once(file, nats)
    follow_to(copy, nats, start, 20)
    assert rows(copy) == rows(file, after=7)
    assert "5 messages trimmed" in call("tail", copy, "--after", "2").stderr
    assert run("follow", nats.url, copy, "--stream", "orders", "--verify").stdout.startswith("Compared 13 messages")


def test_two_follow_one_file(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    """It does no harm: the file takes each id once."""
    copy = tmp_path / "copy.db"
    publish(file, 10)
    relay_once(file, nats)
    both = [start("follow", nats.url, copy, "--stream", "orders") for _ in range(2)]
    wait_for_head(copy, 10)
    publish(file, 5000)
    relay_once(file, nats)
    same(file, copy, nats)
    for each in both:
        each.terminate()
        assert each.wait(30) == 0


def test_a_copy_of_a_copy_is_one(tmp_path: Path, file: Path, copy: Path) -> None:
    """The file is all there is: a copy of it goes on where it is."""
    second = tmp_path / "second.db"
    shutil.copy(copy, second)
    assert rows(second) == rows(file)
    assert head(second) == 10
