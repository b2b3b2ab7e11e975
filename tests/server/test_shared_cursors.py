"""The cursors of durable subscriptions, at the origin and at its followers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from nats.js import JetStreamContext
from nats_servers import (
    NatsServer,
    Start,
    execute,
    head,
    on_stream,
    publish,
    query,
    read_line,
    relay_once,
    wait_for_head,
)
from servers import Server, Sse, wait_for

READS = json.dumps({"channels": ["c"], "patterns": []})


def cursor(file: Path, name: str, owner: str = "") -> object:
    found = query(file, "SELECT cursor FROM pubsub_subscriptions WHERE owner = ? AND name = ?", owner, name)
    return found[0][0] if found else None


def subscribe(file: Path, name: str, place: int, reads: str = READS) -> None:
    execute(file, "INSERT INTO pubsub_subscriptions (name, reads, cursor) VALUES (?, ?, ?)", name, reads, place)


def move(file: Path, name: str, place: int) -> None:
    execute(file, "UPDATE pubsub_subscriptions SET cursor = ? WHERE name = ?", place, name)


def test_a_cursor_goes_everywhere_and_never_back(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    publish(file, 100)
    subscribe(file, "worker", 10)
    relay_once(file, nats)
    relay = start("relay", file, "--to", nats.url, "--stream", "orders")
    follows = [start("follow", nats.url, copy, "--stream", "orders") for copy in (one, two)]
    for copy in (one, two):
        wait_for(lambda copy=copy: head(copy) == 100 and cursor(copy, "worker") == 10, "the cursor has come")
    # From a follower to the others.
    move(one, "worker", 60)
    for other in (file, two):
        wait_for(lambda other=other: cursor(other, "worker") == 60, "the cursor has moved")
    # A subscription that was made at a follower.
    subscribe(two, "made here", 70, json.dumps({"channels": [], "patterns": ["c*"]}))
    wait_for(lambda: cursor(file, "made here") == 70, "the subscription has come")
    assert query(file, "SELECT reads FROM pubsub_subscriptions WHERE name = 'made here'") == [
        ('{"channels": [], "patterns": ["c*"]}',)
    ]
    # What moves at two places at once ends at the newer place, everywhere.
    move(one, "worker", 90)
    move(two, "worker", 80)
    for each in (file, one, two):
        wait_for(lambda each=each: cursor(each, "worker") == 90, "the newest is everywhere")
    # One that was away comes back with an old position, and learns the new one.
    follows[1].kill()
    follows[1].wait()
    move(one, "worker", 95)
    wait_for(lambda: cursor(file, "worker") == 95, "the cursor has moved")
    start("follow", nats.url, two, "--stream", "orders")
    wait_for(lambda: cursor(two, "worker") == 95, "the cursor has come")
    assert (cursor(file, "worker"), cursor(one, "worker")) == (95, 95)
    # The relay's own position stays at home.
    assert query(two, "SELECT count(*) FROM pubsub_subscriptions WHERE owner <> ''") == [(0,)]
    for process in (relay, follows[0]):
        process.terminate()
        assert process.wait(30) == 0


def test_a_cursor_that_is_ahead_of_a_copy_waits(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    """The cursors may come before the messages: a copy moves its own when its log has them."""
    copy = tmp_path / "copy.db"
    publish(file, 10)
    relay_once(file, nats)
    follow = start("follow", nats.url, copy, "--stream", "orders")
    wait_for_head(copy, 10)
    follow.kill()
    follow.wait()
    # A cursor is published for messages that the stream does not have yet: the relay of the log is down.
    body = json.dumps({"owner": "", "name": "worker", "reads": READS, "cursor": 15})

    async def share(stream: JetStreamContext) -> None:
        await stream.publish("orders-cursors.x", body.encode())

    on_stream(nats.url, share)
    start("follow", nats.url, copy, "--stream", "orders")
    wait_for(lambda: cursor(copy, "worker") == 10, "the cursor is where the log ends")
    publish(file, 10)
    relay_once(file, nats)
    wait_for(lambda: cursor(copy, "worker") == 15, "the cursor is where it was shared")


def test_what_is_no_cursor_is_passed_over(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    publish(file, 10)
    relay_once(file, nats)

    async def other(stream: JetStreamContext) -> None:
        for body in (b"hello", b"[]", b'{"owner": "", "name": "x", "reads": "{", "cursor": 1}', b'{"cursor": "9"}'):
            await stream.publish("orders-cursors.x", body)
            await stream.publish(f"orders-cursors.{len(body)}", body)

    on_stream(nats.url, other)
    relay = start("relay", file, "--to", nats.url, "--stream", "orders")
    read_line(relay, "Somebody else publishes into the stream orders-cursors: passed over")
    publish(file, 10)
    copy = tmp_path / "copy.db"
    start("follow", nats.url, copy, "--stream", "orders")
    wait_for_head(copy, 20)
    assert query(file, "SELECT name FROM pubsub_subscriptions WHERE owner = ''") == []


def test_without_their_stream_cursors_stay_at_home(tmp_path: Path, file: Path, nats: NatsServer, start: Start) -> None:
    copy = tmp_path / "copy.db"
    publish(file, 10)
    subscribe(file, "worker", 5)
    relay_once(file, nats)
    on_stream(nats.url, lambda stream: stream.delete_stream("orders-cursors"))
    follow = start("follow", nats.url, copy, "--stream", "orders")
    read_line(follow, "Cursors are not shared: there is no stream orders-cursors")
    wait_for_head(copy, 10)
    assert cursor(copy, "worker") is None


def test_a_durable_reader_moves(
    tmp_path: Path, file: Path, nats: NatsServer, start: Start, serve: Callable[..., Server]
) -> None:
    """A worker acknowledges at the origin, then goes on at a follower: what it has processed does not come again."""
    copy = tmp_path / "copy.db"
    publish(file, 20)
    relay_once(file, nats)
    start("relay", file, "--to", nats.url, "--stream", "orders")
    start("follow", nats.url, copy, "--stream", "orders")
    wait_for_head(copy, 20)
    origin, follower = serve(databases=["data"]), serve(databases=["copy"])
    words: dict[str, Any] = {"channel": "c", "subscription": "worker", "ack": "explicit", "start": "earliest"}
    with Sse(f"{origin.pubsub}/-/stream", **words) as stream:
        assert [each["messageId"] for each in stream.messages(20)] == [str(each) for each in range(1, 21)]
        done = httpx.post(f"{origin.pubsub}/-/ack", json={"subscription": "worker", "message_id": 12})
        assert done.status_code == 200, done.text
    wait_for(lambda: cursor(copy, "worker") == 12, "the cursor has come")
    with Sse(f"{follower.pubsub}/-/stream", **words) as stream:
        assert [each["messageId"] for each in stream.messages(8)] == [str(each) for each in range(13, 21)]


def test_what_is_no_cursor_does_no_harm(file: Path, nats: NatsServer, start: Start) -> None:
    """Followers may publish cursors, and one of them must not end the relay of all."""
    publish(file, 10)
    relay_once(file, nats)
    relay = start("relay", file, "--to", nats.url, "--stream", "orders")
    read_line(relay, "All relayed, up to 10")
    good = '{"owner": "", "name": "good", "reads": "{}", "cursor": 99999999999999999999}'

    async def others(stream: JetStreamContext) -> None:
        for number, body in enumerate(
            (
                '{"owner": "", "name": "infinite", "reads": "{}", "cursor": 1e999}',
                '{"owner": "", "name": "negative", "reads": "{}", "cursor": -5}',
                '{"owner": "", "name": "half \\ud800", "reads": "{}", "cursor": 5}',
                '{"owner": "", "name": "no object", "reads": "NaN", "cursor": 5}',
                '{"owner": "", "name": "constant", "reads": "{\\"a\\": NaN}", "cursor": 5}',
                '{"owner": "", "name": "", "reads": "{}", "cursor": 5}',
                '{"owner": null, "name": "null", "reads": "{}", "cursor": 5}',
                "[" * 100_000,
                "[]",
                good,
            )
        ):
            await stream.publish(f"orders-cursors.{number}", body.encode())

    on_stream(nats.url, others)
    assert "somebody else publishes into the stream orders-cursors" in read_line(relay, "passed over").lower()
    wait_for(lambda: cursor(file, "good") == 10, "the good one has come, up to the head")
    assert query(file, "SELECT name FROM pubsub_subscriptions WHERE owner = ''") == [("good",)]
    relay.terminate()
    assert relay.wait(30) == 0
