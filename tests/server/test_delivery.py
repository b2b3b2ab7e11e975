"""Acks, replay, dedupe, conditional publish, retention and gaps, over the wire of a real server."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from connect_streams import connect_messages, options
from servers import Server, Sse, sqlite_shell, wait_for
from trims import trimmed


def test_explicit_acks_are_cumulative_and_at_least_once(serve: Callable[..., Server]) -> None:
    server = serve()
    ids = server.publish(*[{"channel": "a", "payload": str(n)} for n in range(10)])
    url = f"{server.pubsub}/-/stream"
    subscription: dict[str, Any] = {"channel": "a", "subscription": "s", "ack": "explicit"}
    for _ in range(2):
        with Sse(url, **subscription) as reader:
            assert [m["payload"] for m in reader.messages(10)] == [str(n) for n in range(10)]
    ack = f"{server.pubsub}/-/ack"
    assert httpx.post(ack, json={"subscription": "s", "message_id": ids[5]}).json()["cursor"] == ids[5]
    assert httpx.post(ack, json={"subscription": "s", "message_id": ids[2]}).json()["cursor"] == ids[5]
    with Sse(url, **subscription) as reader:
        assert [m["payload"] for m in reader.messages(4)] == ["6", "7", "8", "9"]
    # Last-Event-ID on reconnect is an ack, too.
    with Sse(url, headers={"Last-Event-ID": str(ids[7])}, **subscription) as reader:
        assert [m["payload"] for m in reader.messages(2)] == ["8", "9"]
    wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions") == [(ids[7],)], "the cursor is saved")


def test_the_messages_in_flight_are_bounded(serve: Callable[..., Server]) -> None:
    server = serve(config=options(max_unacked_messages=3, heartbeat_seconds=0.3, cursor_save_interval_seconds=0.1))
    ids = server.publish(*[{"channel": "a", "payload": str(n)} for n in range(10)])
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="a", subscription="s", ack="explicit") as reader:
        assert [m["payload"] for m in reader.messages(3)] == ["0", "1", "2"]
        assert reader.event()["event"] == "heartbeat", "no more before an ack"
        ids += server.publish(channel="a", payload="10")
        httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": ids[2]})
        assert [m["payload"] for m in reader.messages(3)] == ["3", "4", "5"]
        assert reader.event()["event"] == "heartbeat"
        sqlite_shell(server.path, f"UPDATE pubsub_subscriptions SET cursor = {ids[5]} WHERE name = 's'")
        assert [m["payload"] for m in reader.messages(3)] == ["6", "7", "8"]
        server.publish(channel="b", payload="for others")
        httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": ids[8]})
        assert [m["payload"] for m in reader.messages(2)] == ["9", "10"]


def test_start_positions(serve: Callable[..., Server]) -> None:
    server = serve()
    ids = server.publish(*[{"channel": "a", "payload": str(n)} for n in range(5)])
    moment = server.rows("SELECT created_at FROM vpubsub ORDER BY id DESC LIMIT 1")[0][0]
    wait_for(lambda: sqlite_shell(server.path, "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')").strip() > moment, "time")
    later = server.publish(channel="a", payload="later")[0]
    since = server.rows("SELECT created_at FROM vpubsub WHERE id = ?", later)[0][0]
    url = f"{server.pubsub}/-/stream"

    def first(**params: Any) -> str:
        with Sse(url, channel="a", **params) as reader:
            return str(reader.messages(1)[0]["payload"])

    assert first(start="earliest") == "0"
    assert first(after=ids[2]) == "3"
    assert first(since=since) == "later"
    assert first(after=0, last_event_id=ids[3]) == "4"
    assert first(subscription="new") == "0"
    assert first(subscription="new after", after=ids[1], ack="explicit") == "2"
    assert first(subscription="new after", after=ids[3], ack="explicit") == "2", "it is not new any more"
    with Sse(url, channel="a", subscription="new latest", start="latest") as reader:
        reader.until("ready")
        server.publish(channel="a", payload="newest")
        assert reader.messages(1)[0]["payload"] == "newest"
    assert connect_messages(server, 1, channel="a", after=str(ids[2]))[0]["payload"] == "3"
    assert connect_messages(server, 1, channel="a", since=since)[0]["payload"] == "later"
    assert connect_messages(server, 1, channel="a", start="START_EARLIEST")[0]["payload"] == "0"


def test_many_channels_and_patterns_on_one_stream(serve: Callable[..., Server]) -> None:
    server = serve()
    names = ["user/1", "user/2", "order", "log", "User/3"]
    server.publish(*[{"channel": name, "payload": "old"} for name in names])
    with Sse(f"{server.pubsub}/-/stream", channel=["order", "x"], pattern="user/*", start="earliest") as reader:
        assert [m["channel"] for m in reader.messages(3)] == ["user/1", "user/2", "order"]
        reader.until("ready")
        server.publish(*[{"channel": name, "payload": "new"} for name in [*names, "user/new", "x"]])
        assert [m["channel"] for m in reader.messages(5)] == ["user/1", "user/2", "order", "user/new", "x"]


def test_one_message_per_key_under_sixteen_publishers(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="a", payload="installs the log")
    keys = [f"key {n}" for n in range(40)]
    answers: list[dict[str, int]] = []

    def publisher(name: int) -> None:
        found: dict[str, int] = {}
        if name % 2:
            for n in range(0, 40, 5):
                items = [{"channel": "k", "payload": f"{name}", "key": key} for key in keys[n : n + 5]]
                found.update(zip(keys[n : n + 5], server.publish(*items), strict=True))
        else:
            conn = sqlite3.connect(server.path, timeout=60, isolation_level=None)
            for key in keys:
                conn.execute("INSERT INTO vpubsub (channel, payload, key) VALUES ('k', ?, ?)", (str(name), key))
            conn.close()
        answers.append(found)

    with Sse(f"{server.pubsub}/-/stream", channel="k") as reader:
        reader.until("ready")
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(publisher, range(16)))
        received = reader.messages(40)
        server.publish(channel="k", payload="end")
        assert reader.messages(1)[0]["payload"] == "end", "nothing else was delivered"
    stored = dict(server.rows("SELECT key, id FROM vpubsub WHERE key IS NOT NULL"))
    assert sorted(stored) == sorted(keys)
    assert sorted(int(m["messageId"]) for m in received) == sorted(stored.values())
    for found in answers:
        assert all(stored[key] == number for key, number in found.items()), "each is answered with the first id"


def test_conditional_publish(serve: Callable[..., Server]) -> None:
    server = serve()
    url = f"{server.pubsub}/-/publish"

    def publish(expected: int) -> httpx.Response:
        return httpx.post(url, json={"channel": "a", "payload": "x", "expected_last_id": expected})

    assert publish(0).json()["message_ids"] == [1]
    refused = publish(0)
    assert refused.status_code == 409
    assert "expected_last_id is 0, but the newest message of channel 'a' is 1" in refused.json()["error"]
    server.publish(channel="b", payload="another channel does not count")
    assert publish(1).json()["message_ids"] == [3]
    rpc = httpx.post(
        f"{server.url}/db.v1.DbService/PublishBatch",
        json={"dbName": "data", "items": [{"channel": "a", "payload": "x", "expectedLastId": "1"}]},
    )
    assert (rpc.status_code, rpc.json()["code"]) == (409, "aborted")
    # With a key, who got no answer tries again and is answered as the first time.
    keyed = {"channel": "k", "payload": "x", "key": "k1", "expected_last_id": 0}
    first = server.publish(keyed)
    assert server.publish(keyed) == first
    assert httpx.post(url, json={**keyed, "key": "k2"}).status_code == 409
    # Many at once: one of each round wins, and the losers do not take others down with them.
    with ThreadPoolExecutor(16) as pool:
        last, wins = 3, 0
        for _ in range(5):
            answers = list(pool.map(lambda _, last=last: publish(last), range(8)))
            others = list(pool.map(lambda _: server.publish(channel="c", payload="y"), range(8)))
            assert len(others) == 8
            won = [answer for answer in answers if answer.status_code == 200]
            assert len(won) == 1
            assert {answer.status_code for answer in answers} == {200, 409}
            last = won[0].json()["message_ids"][0]
            wins += 1
    assert server.rows("SELECT count(*) FROM vpubsub WHERE channel = 'a'") == [(2 + wins,)]


def test_retention_by_count_and_pattern(serve: Callable[..., Server]) -> None:
    config = options(retention_messages=50, channel_retention={"keep/*": {"messages": 5}}, trim_interval_seconds=0.1)
    server = serve(config=config)
    server.publish(*[{"channel": "keep/1", "payload": "x"} for _ in range(20)])
    server.publish(*[{"channel": "a", "payload": "x"} for _ in range(40)])
    wait_for(
        lambda: dict(server.rows("SELECT channel, count(*) FROM vpubsub GROUP BY channel")) == {"keep/1": 5, "a": 40},
        "the channel's own limit",
    )
    server.publish(*[{"channel": "a", "payload": "x"} for _ in range(60)])
    wait_for(trimmed(server, 50), "the log's limit")
    assert server.rows("SELECT min(id), max(id) FROM vpubsub") == [(71, 120)]


def test_retention_by_age_and_bytes(serve: Callable[..., Server]) -> None:
    server = serve(config=options(retention_bytes=1000, trim_interval_seconds=0.1))
    server.publish(*[{"channel": "a", "payload": "x" * 100} for _ in range(25)])
    wait_for(trimmed(server, 10), "the bytes")
    sqlite_shell(
        server.path,
        """INSERT INTO vpubsub (channel, payload, created_at) VALUES ('b', '1', '2020-01-01T00:00:00.000Z');
           INSERT INTO vpubsub (channel, payload) VALUES ('b', '2');""",
    )
    old = serve(databases=["other"], config=options(trim_interval_seconds=0.1))
    old.publish(channel="c", payload="installs the log")
    sqlite_shell(
        old.path,
        """DROP TRIGGER vpubsub_update;
           UPDATE vpubsub SET created_at = '2020-01-01T00:00:00.000Z';
           INSERT INTO vpubsub (channel, payload) VALUES ('b', '2');""",
    )
    wait_for(lambda: old.rows("SELECT payload FROM vpubsub") == [("2",)], "30 days is the default")


def test_a_subscription_holds_what_it_needs_up_to_the_cap(serve: Callable[..., Server]) -> None:
    config = options(retention_messages=1, retention_unread_bytes=550, trim_interval_seconds=0.1)
    server = serve(config=config)
    server.publish(channel="a", payload="first")
    with Sse(f"{server.pubsub}/-/stream", channel="a", subscription="s") as reader:
        reader.messages(1)
        reader.until("ready")
    wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions") == [(1,)], "the cursor is saved")
    server.publish(*[{"channel": "a", "payload": "x" * 100} for _ in range(4)])
    server.publish(*[{"channel": "b", "payload": "x" * 100} for _ in range(4)])
    wait_for(
        lambda: server.rows("SELECT id FROM vpubsub ORDER BY id") == [(2,), (3,), (4,), (5,), (9,)],
        "what the subscription needs is held, what nobody needs is not",
    )
    server.publish(*[{"channel": "a", "payload": "x" * 100} for _ in range(8)])
    wait_for(
        lambda: server.rows("SELECT count(*), max(id) FROM vpubsub WHERE channel = 'a'") == [(6, 17)],
        "no more than the cap",
    )
    with Sse(f"{server.pubsub}/-/stream", channel="a", subscription="s") as reader:
        gap = reader.event()
        assert (gap["event"], gap["data"]["missed"]) == ("gap", "6")


@pytest.mark.parametrize("named", [True, False])
def test_a_gap_is_told_with_the_right_number(serve: Callable[..., Server], named: bool) -> None:
    server = serve(config=options(channel_retention={"[ab]": {"messages": 10}}, trim_interval_seconds=0.1))
    items = [{"channel": "abc"[n % 3], "payload": str(n)} for n in range(90)]
    server.publish(items[0])
    where: dict[str, Any] = {"subscription": "s", "ack": "explicit"} if named else {}
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="a", **where, start="earliest") as reader:
        last = int(reader.messages(1)[0]["messageId"])
    server.publish(*items[1:])
    wait_for(trimmed(server, 50), "10 of a, 10 of b, 30 of c")
    if named:
        assert httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": last}).status_code == 200
    resume: dict[str, Any] = {} if named else {"last_event_id": last}
    for channels, missed in ((["a"], 19), (["a", "b"], 39), (["b", "c"], 20)):
        first = items.index({"channel": channels[0], "payload": "1"}) if channels[0] == "b" and not named else None
        with Sse(url, channel=channels, **where, **resume) as reader:
            gap = reader.event()
            assert gap["event"] == "gap"
            assert gap["id"] is None
            assert gap["data"]["missed"] == str(missed), (channels, first)
            message = reader.event()
            assert message["data"]["missed"] == str(missed)
            assert "missed" not in reader.event()["data"], "it is told once"
        request = {"subscriptionName": "s", "ackMode": "ACK_MODE_EXPLICIT"} if named else {"lastMessageId": str(last)}
        first_message, second = connect_messages(server, 2, channels=channels, **request)
        assert first_message["missed"] == str(missed)
        assert "missed" not in second
    with Sse(url, channel="c", last_event_id=last) as reader:
        assert reader.event()["event"] == "message", "nothing of c is gone"


def test_a_new_subscription_is_not_told_of_what_was_before_it(serve: Callable[..., Server]) -> None:
    server = serve(config=options(retention_messages=5, trim_interval_seconds=0.1))
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(20)])
    wait_for(trimmed(server, 5), "the trim")
    begins: list[dict[str, Any]] = [{"subscription": "s"}, {"start": "earliest"}, {"since": "2020-01-01T00:00:00Z"}]
    for params in begins:
        with Sse(f"{server.pubsub}/-/stream", channel="a", **params) as reader:
            assert reader.event()["data"]["payload"] == "15"


def test_a_position_ahead_of_the_head_is_told_apart(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(3)])
    with Sse(f"{server.pubsub}/-/stream", channel="a", last_event_id=500) as reader:
        assert reader.event() == {
            "event": "gap", "id": None, "data": {"missed": "-1", "resumedAt": "3", "ahead": True},
        }  # fmt: skip
        reader.until("ready")
        server.publish(channel="a", payload="new")
        assert reader.messages(1)[0]["missed"] == "-1"

    def later() -> None:
        wait_for(lambda: "Subscribe" in server.log, "the stream is open")
        server.publish(channel="a", payload="newer")

    thread = threading.Thread(target=later)
    thread.start()
    (message,) = connect_messages(server, 1, channel="a", lastMessageId="500")
    thread.join()
    assert (message["payload"], message["missed"]) == ("newer", "-1")


def test_subscriptions_are_listed_and_deleted(serve: Callable[..., Server]) -> None:
    server = serve(config=options(cursor_save_interval_seconds=0.1))
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(5)])
    listing = f"{server.pubsub}/-/subscriptions.json"
    with Sse(f"{server.pubsub}/-/stream", channel="a", subscription="s", ack="explicit") as reader:
        reader.messages(5)
        (row,) = httpx.get(listing).json()["subscriptions"]
        assert (row["subscription"], row["channels"], row["cursor"], row["lag"], row["connected"]) == (
            "s", ["a"], 0, 5, True,
        )  # fmt: skip
        httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 3})
        (row,) = httpx.get(listing).json()["subscriptions"]
        assert (row["cursor"], row["lag"]) == (3, 2)
        gone = httpx.post(f"{server.pubsub}/-/subscriptions/delete", json={"subscription": "s"})
        assert gone.json() == {"ok": True}
        assert reader.until("superseded")
    assert httpx.get(listing).json()["subscriptions"] == []
    again = httpx.post(f"{server.pubsub}/-/subscriptions/delete", json={"subscription": "s"})
    assert (again.status_code, again.json()["error"]) == (404, "subscription not found: s")


def test_unused_subscriptions_expire(serve: Callable[..., Server]) -> None:
    server = serve(config=options(subscription_expiry_days=1, trim_interval_seconds=0.1))
    server.publish(channel="a", payload="x")
    with Sse(f"{server.pubsub}/-/stream", channel="a", subscription="live", ack="explicit") as reader:
        reader.messages(1)
        for name in ("old", "young"):
            with Sse(f"{server.pubsub}/-/stream", channel="a", subscription=name, ack="explicit") as other:
                other.messages(1)
        sqlite_shell(
            server.path,
            "UPDATE pubsub_subscriptions SET last_seen_at = '2020-01-01T00:00:00.000Z' WHERE name <> 'young'",
        )
        wait_for(
            lambda: server.rows("SELECT name FROM pubsub_subscriptions ORDER BY name") == [("live",), ("young",)],
            "the old one is gone, the connected one stays",
        )


def test_a_new_subscription_knows_nothing_of_a_deleted_one(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(5)])
    for name in ("old", "new"):
        with Sse(f"{server.pubsub}/-/stream", channel="a", subscription=name) as reader:
            assert [m["payload"] for m in reader.messages(5)] == ["0", "1", "2", "3", "4"]
            reader.until("ready")
        wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions") == [(5,)], "the cursor is saved")
        sqlite_shell(server.path, "DELETE FROM pubsub_subscriptions")


def test_takeover(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(*[{"channel": "a", "payload": str(n)} for n in range(3)])
    url = f"{server.pubsub}/-/stream"
    with Sse(url, channel="a", subscription="s") as old:
        old.messages(3)
        old.until("ready")
        with Sse(url, channel="a", subscription="s") as new:
            assert old.event()["event"] == "superseded"
            with pytest.raises(EOFError):
                old.event()
            assert new.event()["event"] == "ready", "it goes on where the old one was"
            server.publish(channel="a", payload="3")
            assert new.messages(1)[0]["payload"] == "3"


def test_a_snapshot_and_what_follows_it(serve: Callable[..., Server]) -> None:
    server = serve(config=options(max_snapshot_rows=100))
    url = f"{server.pubsub}/-/snapshot.json"
    server.publish(channel="a", payload="x")
    sqlite_shell(server.path, "INSERT INTO existing VALUES (1), (2)")
    assert httpx.get(url, params={"table": "existing"}).json() == {
        "ok": True, "head": "1", "rows": [{"id": 1}, {"id": 2}],
    }  # fmt: skip
    found = httpx.get(url, params={"sql": "SELECT id * :k AS n FROM existing", "k": "10"}).json()
    assert found["rows"] == [{"n": 10}, {"n": 20}]
    for params, status, reason in (
        ({}, 400, "either table or sql"),
        ({"table": "nowhere"}, 404, "table not found: nowhere"),
        ({"sql": "DELETE FROM existing"}, 400, "must be a SELECT"),
        ({"sql": "SELECT absent"}, 400, "no such column: absent"),
        ({"sql": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n"}, 413, "100 rows"),
    ):
        answer = httpx.get(url, params=params)
        assert answer.status_code == status, answer.text
        assert reason in answer.json()["error"]
