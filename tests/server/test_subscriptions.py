"""Subscriptions whose row, file or reader changes under them: nothing is skipped, and what cannot be known is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from connect_streams import connect_messages, options
from servers import Server, Sse, sqlite_shell, wait_for
from trims import trim_elsewhere, trimmed


def stream(server: Server, **params: Any) -> Sse:
    return Sse(f"{server.pubsub}/-/stream", **params)


def payloads(reader: Sse, count: int) -> list[str]:
    return [message["payload"] for message in reader.messages(count)]


def ack(server: Server, name: str, message_id: int) -> int:
    answer = httpx.post(f"{server.pubsub}/-/ack", json={"subscription": name, "message_id": message_id}, timeout=30)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["cursor"])


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_a_row_deleted_by_sql_ends_its_stream_and_leaves_nothing_behind(
    serve: Callable[..., Server], mode: str
) -> None:
    """SQLite may give the number of a deleted row again, and a new subscription must not inherit a cursor."""
    server = serve(config=options(cursor_save_interval_seconds=0.05))
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(5)])
    with stream(server, channel="a", subscription="old") as old:
        assert len(payloads(old, 5)) == 5
        sqlite_shell(server.path, "DELETE FROM pubsub_subscriptions")
        with stream(server, channel="a", subscription="new", ack=mode) as new:
            assert payloads(new, 5) == ["0", "1", "2", "3", "4"]
        assert old.until("superseded")
    if mode == "explicit":
        assert server.rows("SELECT cursor FROM pubsub_subscriptions") == [(0,)]


def test_what_a_subscription_reads_is_changed_by_sql(serve: Callable[..., Server]) -> None:
    server = serve(config=options(cursor_save_interval_seconds=0.05))
    server.publish({"channel": "a", "payload": "a1"}, {"channel": "b", "payload": "b1"})
    with stream(server, channel="a", subscription="s", ack="explicit") as reader:
        assert payloads(reader, 1) == ["a1"]
        sqlite_shell(server.path, """UPDATE pubsub_subscriptions SET reads = '{"patterns": ["[ab]"]}'""")
        assert reader.until("bye")["data"] == {
            "code": "changed",
            "reason": "what the subscription reads was changed; connect again",
            "reconnect": True,
        }
    with stream(server, subscription="s", ack="explicit") as reader:
        assert payloads(reader, 2) == ["a1", "b1"]
        server.publish(channel="b", payload="b2")
        assert payloads(reader, 1) == ["b2"]
        # One that names its channels says itself what it reads, and takes over.
        with stream(server, channel="b", subscription="s", ack="explicit") as other:
            assert reader.event()["event"] == "superseded"
            assert payloads(other, 2) == ["b1", "b2"]
            other.until("ready")
            server.publish(channel="b", payload="b3")
            assert payloads(other, 1) == ["b3"]


def test_a_backup_restored_under_a_server_is_noticed(serve: Callable[..., Server]) -> None:
    server = serve(config=options(cursor_save_interval_seconds=0.05))
    ids = server.publish(*[{"channel": "a", "payload": str(n)} for n in range(4)])
    with stream(server, channel="a", subscription="named", ack="explicit") as named:
        named.messages(4)
        ack(server, "named", ids[1])
    backup = server.path.with_suffix(".backup")
    sqlite_shell(server.path, f".backup {backup}")
    with (
        stream(server, channel="a") as live,
        stream(server, channel="a", subscription="named", ack="explicit") as named,
    ):
        live.until("ready")
        assert payloads(named, 2) == ["2", "3"]
        server.publish(*[{"channel": "a", "payload": f"lost {n}"} for n in range(50)])
        live.messages(50)
        assert ack(server, "named", int(named.messages(50)[-1]["messageId"])) == 54
        sqlite_shell(server.path, f".restore {backup}")
        for reader in (live, named):
            assert reader.until("gap")["data"] == {"missed": "-1", "resumedAt": "4", "ahead": True}
        assert server.publish(channel="a", payload="after") == [5]
        sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'by another program')")
        for reader in (live, named):
            first, second = reader.messages(2)
            assert (first["payload"], first["missed"]) == ("after", "-1")
            assert second["payload"] == "by another program"
        assert ack(server, "named", 5) == 5
    with stream(server, channel="a", subscription="named", ack="explicit") as named:
        assert payloads(named, 1) == ["by another program"]
    assert "Traceback" not in server.log


def test_after_a_restored_backup_the_old_newest_id_is_nothing_known(serve: Callable[..., Server]) -> None:
    """Another program may write up to the very id that the server had written last in the log before."""
    server = serve()
    server.publish(channel="a", payload="kept")
    backup = server.path.with_suffix(".backup")
    sqlite_shell(server.path, f".backup {backup}")
    with stream(server, channel="a") as live:
        live.until("ready")
        server.publish(*[{"channel": "a", "payload": f"lost {n}"} for n in range(50)])
        live.messages(50)
        sqlite_shell(server.path, f".restore {backup}")
        assert live.until("gap")["data"]["ahead"]
        numbers = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 50) SELECT 'a', n FROM t"
        sqlite_shell(server.path, f"INSERT INTO vpubsub (channel, payload) {numbers}")
        assert payloads(live, 50) == [str(n) for n in range(1, 51)]
    assert server.rows("SELECT max(id) FROM vpubsub") == [(51,)], "the same id as before"


def test_a_cursor_that_is_ahead_of_the_log_begins_anew(serve: Callable[..., Server]) -> None:
    """The log was made anew and the subscriptions were kept, or a row was made with such a cursor."""
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(3)])
    reads = """'{"channels": ["a"]}'"""
    sqlite_shell(
        server.path,
        f"INSERT INTO pubsub_subscriptions (name, reads, cursor) VALUES ('e', {reads}, 500), ('s', {reads}, 500)",
    )
    for _ in range(2):
        with stream(server, subscription="e", ack="explicit") as reader:
            assert payloads(reader, 3) == ["0", "1", "2"]
    assert ack(server, "e", 2) == 2
    with stream(server, subscription="e", ack="explicit") as reader:
        assert payloads(reader, 1) == ["2"]
    with stream(server, subscription="s") as reader:
        gap = reader.event()
        assert (gap["event"], gap["data"]["missed"], gap["data"]["ahead"]) == ("gap", "-1", True)
        assert reader.messages(1)[0]["missed"] == "-1"
        assert payloads(reader, 2) == ["1", "2"]
    wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions WHERE name = 's'") == [(3,)], "it is saved")


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_who_was_connected_is_not_expired_when_the_server_comes_back(serve: Callable[..., Server], mode: str) -> None:
    server = serve(
        config=options(subscription_expiry_days=1, trim_interval_seconds=0.05, cursor_save_interval_seconds=0.05)
    )
    server.publish(channel="a", payload="x")
    with stream(server, channel="a", subscription="s", ack=mode) as reader:
        reader.messages(1)
        reader.until("ready")
        sqlite_shell(server.path, "UPDATE pubsub_subscriptions SET last_seen_at = '2020-01-01T00:00:00.000Z'")
        seen = "SELECT 1 FROM pubsub_subscriptions WHERE last_seen_at > '2021'"
        wait_for(lambda: server.rows(seen), "it is in use, though nothing comes")
        server.kill()
    server.start()
    sqlite_shell(server.path, "INSERT INTO pubsub_subscriptions (name, last_seen_at) VALUES ('unused', '2020')")
    server.publish(channel="a", payload="starts the broker")
    names = "SELECT name FROM pubsub_subscriptions"
    wait_for(lambda: ("unused",) not in server.rows(names), "what is unused expires")
    assert server.rows(names) == [("s",)]


def test_a_reader_of_a_quiet_channel_is_not_written_beside_a_busy_one(serve: Callable[..., Server]) -> None:
    server = serve(config=options(cursor_save_interval_seconds=0.05))

    def cursor(name: str) -> int:
        return int(server.rows(f"SELECT cursor FROM pubsub_subscriptions WHERE name = '{name}'")[0][0])

    server.publish(channel="quiet", payload="x")
    with stream(server, channel="busy", subscription="busy") as busy:
        with stream(server, channel="quiet", subscription="quiet") as quiet:
            assert payloads(quiet, 1) == ["x"]
            quiet.until("ready")
            wait_for(lambda: cursor("quiet") == 1, "what was handed over is written")
            for number in range(2, 6):
                server.publish(channel="busy", payload=str(number))
                busy.messages(1)
                wait_for(lambda number=number: cursor("busy") == number, "each is saved")
            assert cursor("quiet") == 1, "it was not, in all these rounds"
            sqlite_shell(server.path, "UPDATE pubsub_subscriptions SET last_seen_at = '2020-01-01T00:00:00.000Z'")
            wait_for(lambda: cursor("quiet") == 5, "but when it is written that it is in use")
            server.publish(channel="busy", payload="6")
        wait_for(lambda: cursor("quiet") == 6, "and at its end")


def test_rows_that_read_nothing(serve: Callable[..., Server]) -> None:
    config = options(retention_messages=2, retention_unread_bytes=1000, trim_interval_seconds=0.05)
    server = serve(config=config)
    server.publish(channel="a", payload="installs the log")
    for n, reads in enumerate(("{}", "[]", "5", '{"channels": "abc"}', '{"channels": [1], "patterns": {}}')):
        sqlite_shell(server.path, f"INSERT INTO pubsub_subscriptions (name, reads) VALUES ('s{n}', '{reads}')")
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(5)])
    wait_for(trimmed(server, 2), "such rows do not stop retention, and hold nothing")
    for n in range(5):
        answer = httpx.get(f"{server.pubsub}/-/stream", params={"subscription": f"s{n}"})
        assert (answer.status_code, "channel is required" in answer.text) == (400, True)
    listed = httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"]
    assert [row["channels"] for row in listed] == [[]] * 5
    with stream(server, subscription="s3", channel="a", ack="explicit") as reader:
        assert reader.event()["event"] == "gap"
        assert payloads(reader, 2) == ["3", "4"]


def test_a_gap_that_could_not_be_told_is_told_later(serve: Callable[..., Server]) -> None:
    """A plain Connect stream carries messages only: a gap waits for the next message, which may be another stream's."""
    server = serve(config=options(cursor_save_interval_seconds=0.05))
    request = {"channel": "a", "subscriptionName": "s"}
    server.publish(channel="a", payload="first")
    connect_messages(server, 1, **request)
    wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions") == [(1,)], "the cursor is saved")
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(10)])
    trim_elsewhere(server, 11, "a")
    (beat,) = connect_messages(server, 1, **request, heartbeatSeconds=1)
    assert beat == {"kind": "KIND_HEARTBEAT", "head": "11"}, "it has passed the gap"
    server.publish(channel="a", payload="next")
    (message,) = connect_messages(server, 1, **request)
    assert (message["payload"], message["missed"]) == ("next", "10")
    wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions") == [(12,)], "the cursor is saved")
