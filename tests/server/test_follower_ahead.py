"""A subscriber that has had more from another copy of the log waits until a follower has it, too, and gets it once."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from connect_streams import connect_messages, options
from followers import copy, follow, promote
from servers import DEADLINE, Server, Sse, sqlite_shell, wait_for


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A follower's file with the messages 1 to 5."""
    found = tmp_path / "data.db"
    follow(found)
    copy(found, range(1, 6))
    return found


#: No wait ends by itself.
PATIENT = options(follow_wait_seconds=86400, heartbeat_seconds=0.1, cursor_save_interval_seconds=0.05)

HELD = "SELECT 1 FROM pubsub_subscriptions WHERE holder IS NOT NULL LIMIT 1"


def reader(server: Server, **params: Any) -> Sse:
    headers = {"Last-Event-ID": str(params.pop("last"))} if "last" in params else None
    return Sse(f"{server.pubsub}/-/stream", headers, **{"channel": "a", **params})


def events(stream: Sse, last: int) -> list[Any]:
    """What a stream sends until its message of this id: ids, and names of the other events; each heartbeat once."""
    found: list[Any] = []
    end = time.monotonic() + DEADLINE
    while found[-1:] != [last] and time.monotonic() < end:
        event = stream.event()
        if event["event"] == "gap":
            found.append(("gap", event["data"]["missed"], event["data"]["resumedAt"]))
        elif event["event"] == "message":
            found.append(int(event["id"]))
        elif found[-1:] != ["heartbeat"]:
            found.append(event["event"])
    return found


def cursor(server: Server) -> int:
    return int(server.rows("SELECT cursor FROM pubsub_subscriptions")[0][0])


@pytest.mark.parametrize("how", ["last", "after", "last_event_id"])
def test_it_waits_and_gets_what_comes_after(serve: Callable[..., Server], path: Path, how: str) -> None:
    server = serve(config=PATIENT)
    with reader(server, **{how: 8}) as stream:
        # The stream lives, and it knows nothing new.
        assert stream.event()["data"]["head"] == "8"
        copy(path, [6, 7])
        assert stream.until("heartbeat")["data"]["head"] == "8"
        copy(path, [8])
        assert stream.until("ready")["data"]["head"] == "8"
        copy(path, [9, 10])
        assert [each for each in events(stream, 10) if each != "heartbeat"] == [9, 10]


def test_one_that_is_not_ahead_begins_at_once(serve: Callable[..., Server], path: Path) -> None:
    with reader(serve(config=PATIENT), last=3) as stream:
        assert events(stream, 5) == [4, 5]
        assert stream.event()["event"] == "ready"


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_after_the_time_it_is_told_a_gap(serve: Callable[..., Server], path: Path, seconds: float) -> None:
    server = serve(config=options(follow_wait_seconds=seconds, heartbeat_seconds=3600))
    began = time.monotonic()
    with reader(server, last=8) as stream:
        assert stream.until("gap")["data"] == {"missed": "-1", "resumedAt": "5", "ahead": True}
        assert time.monotonic() - began >= seconds
        stream.until("ready")
        copy(path, [6])
        assert stream.messages(1)[0]["missed"] == "-1"


def test_an_ordinary_log_waits_for_nobody(serve: Callable[..., Server]) -> None:
    server = serve(config=PATIENT)
    server.publish(channel="a", payload="x")
    with reader(server, last=8) as stream:
        assert stream.event()["event"] == "gap"


@pytest.mark.parametrize("ack", ["auto", "explicit"])
def test_a_subscription_is_neither_moved_back_nor_told_a_gap(
    serve: Callable[..., Server], path: Path, ack: str
) -> None:
    server = serve(config=PATIENT)
    named = {"subscription": "mine", "ack": ack}
    # Its cursor is 3; it has had 4 to 8 from another copy.
    with reader(server, after=3, **named) as stream:
        stream.messages(1)
        stream.event()
    if ack == "explicit":
        wait_for(lambda: _ack(server, 4).status_code == 200, "an ack")
    wait_for(lambda: not server.rows(HELD), "it has left")
    before = cursor(server)
    with reader(server, last=8, **named) as stream:
        stream.until("heartbeat")
        # Time enough for what saves cursors.
        stream.until("heartbeat")
        assert cursor(server) == before
        copy(path, [6, 7, 8, 9])
        assert [each for each in events(stream, 9) if each != "heartbeat"] == [9]
        if ack == "explicit":
            assert _ack(server, 9).json() == {"ok": True, "cursor": 9}
    wait_for(lambda: cursor(server) == 9, "the cursor")


def _ack(server: Server, number: int) -> httpx.Response:
    return httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "mine", "message_id": number})


def test_what_it_resumed_after_counts_as_acknowledged(serve: Callable[..., Server], path: Path) -> None:
    server = serve(config=PATIENT)
    with reader(server, subscription="mine", ack="explicit", start="earliest", last=8) as stream:
        stream.until("heartbeat")
        assert cursor(server) < 6
        copy(path, [6, 7, 8])
        stream.until("ready")
        wait_for(lambda: cursor(server) == 8, "the cursor")


def test_a_subscription_that_waits_in_vain_goes_on_after_its_cursor(serve: Callable[..., Server], path: Path) -> None:
    server = serve(config=options(follow_wait_seconds=0.3))
    with reader(server, subscription="mine", ack="explicit", after=3) as stream:
        stream.messages(2)
    wait_for(lambda: not server.rows(HELD), "it has left")
    with reader(server, subscription="mine", ack="explicit", last=8) as stream:
        assert stream.event()["data"] == {"missed": "-1", "resumedAt": "3", "ahead": True}
        assert events(stream, 5) == [4, 5]


def test_a_new_subscription_that_begins_ahead(serve: Callable[..., Server], path: Path) -> None:
    server = serve(config=PATIENT)
    with reader(server, subscription="mine", after=7) as stream:
        stream.until("heartbeat")
        copy(path, [6, 7, 8])
        assert [each for each in events(stream, 8) if each != "heartbeat"] == [8]


def test_the_client_of_the_description_goes_on(serve: Callable[..., Server], path: Path) -> None:
    """A stream over Connect, without events."""
    server = serve(config=PATIENT)
    found: list[dict[str, Any]] = []

    def read() -> None:
        found.extend(connect_messages(server, 2, channel="a", subscriptionName="mine", lastMessageId="6"))

    thread = threading.Thread(target=read)
    thread.start()
    wait_for(lambda: server.rows(HELD), "it is connected")
    copy(path, [6, 7, 8])
    thread.join(DEADLINE)
    assert [(each["messageId"], "missed" in each) for each in found] == [("7", False), ("8", False)]


def test_a_file_that_is_promoted_meanwhile(serve: Callable[..., Server], path: Path) -> None:
    """Its next messages have ids that the subscriber knows, and are others."""
    server = serve(config=PATIENT)
    with reader(server, last=7) as stream:
        stream.until("heartbeat")
        promote(path)
        assert server.publish({"channel": "a", "payload": "new"}, {"channel": "a", "payload": "new"}) == [6, 7]
        assert [each for each in events(stream, 7) if each != "heartbeat"] == [("gap", "-1", "5"), 6, 7]


def test_a_file_that_is_promoted_and_written_by_another_program(serve: Callable[..., Server], path: Path) -> None:
    server = serve(config=PATIENT)
    with reader(server, last=7) as stream:
        stream.until("heartbeat")
        promote(path)
        with closing(sqlite3.connect(path)) as conn:
            conn.executemany("INSERT INTO vpubsub (channel, payload) VALUES ('a', ?)", [("new",)] * 3)
            conn.commit()
        assert [each for each in events(stream, 8) if each != "heartbeat"] == [("gap", "-1", "5"), 6, 7, 8]


def test_a_failover_and_back_with_messages_on_the_way(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Two copies, of which now one and now the other is behind: 1 to N, each once and in order."""
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    for path in paths:
        follow(path)
    server = serve(databases=["one", "two"], config=PATIENT)
    heads = [0, 0]

    def advance(which: int, to: int) -> None:
        copy(paths[which], range(heads[which] + 1, to + 1))
        heads[which] = to

    advance(0, 10)
    advance(1, 4)
    got: list[int] = []
    for turn in range(6):
        which = turn % 2
        parameters = {"channel": "a", "last_event_id": got[-1]} if got else {"channel": "a", "start": "earliest"}
        with Sse(f"{server.url}/{paths[which].stem}/-/pubsub/-/stream", **parameters) as stream:
            if got and heads[which] < got[-1]:
                stream.until("heartbeat")
                advance(which, got[-1] + 7)
            got += [each for each in events(stream, heads[which]) if each != "heartbeat" and each != "ready"]
    assert got == list(range(1, len(got) + 1))
    assert len(got) > 30


@pytest.mark.parametrize("same", [True, False])
def test_a_file_that_is_restored_under_the_server(
    serve: Callable[..., Server], path: Path, tmp_path: Path, same: bool
) -> None:
    """The same messages come again under the same ids if it still follows the same stream of the same log."""
    backup = tmp_path / "backup.db"
    if same:
        sqlite_shell(path, f".backup {backup}")
    else:
        follow(backup, instance="another")
        copy(backup, range(1, 6))
    server = serve(config=PATIENT)
    copy(path, range(6, 10))
    with reader(server, start="earliest") as stream:
        assert events(stream, 9) == list(range(1, 10))
        stream.until("ready")
        sqlite_shell(path, f".restore {backup}")
        if same:
            assert stream.until("heartbeat")["data"]["head"] == "9"
        else:
            assert stream.until("gap")["data"] == {"missed": "-1", "resumedAt": "5", "ahead": True}
        copy(path, range(6, 12))
        assert [each for each in events(stream, 11) if each != "heartbeat"] == list(range(10 if same else 6, 12))
