"""What visitors can cause is bounded; and what exists can be read while nothing can be written."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import DEADLINE, Server, Sse, sqlite_shell, wait_for

from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import log
from datasette_pubsub.storage.schema import install


def with_options(**options: Any) -> dict[str, Any]:
    return {"permissions": {"publish-message": True}, "plugins": {"datasette-pubsub": options}}


def subscribe(server: Server, **params: Any) -> httpx.Response:
    """Open a stream, and leave."""
    with httpx.stream("GET", f"{server.pubsub}/-/stream", params=params, timeout=DEADLINE) as answer:
        if answer.status_code != 200:
            answer.read()
        return answer


@pytest.mark.parametrize("ack", ["auto", "explicit"])
def test_an_existing_subscription_is_read_while_the_file_is_locked(serve: Callable[..., Server], ack: str) -> None:
    server = serve()
    server.publish(*({"channel": "c", "payload": str(number)} for number in range(50)))
    stream = f"{server.pubsub}/-/stream"
    assert subscribe(server, subscription="s", channel="c", ack="explicit").status_code == 200
    with contextlib.closing(sqlite3.connect(server.path, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        # Read now: the end of the stream that made the subscription may have been saved just before.
        (before,) = server.rows("SELECT cursor, last_seen_at FROM pubsub_subscriptions")
        reader = Sse(stream, subscription="s", ack=ack)
        assert [message["payload"] for message in reader.messages(50)][-1] == "49"
        again = Sse(stream, subscription="s", channel="c", ack=ack)
        reader.until("superseded")
        reader.close()
        if ack == "explicit":
            assert len(again.messages(50)) == 50
        new = subscribe(server, subscription="new", channel="c")
        assert (new.status_code, "locked" in new.text) == (503, True), "to make one, or to change what it reads"
        assert subscribe(server, subscription="s", channel="d").status_code == 503
        assert server.rows("SELECT cursor, last_seen_at FROM pubsub_subscriptions") == [before]
        conn.execute("ROLLBACK")
    if ack == "explicit":
        acked = httpx.post(f"{server.pubsub}/-/ack", json={"subscription": "s", "message_id": 50}, timeout=DEADLINE)
        assert acked.status_code == 200
    wait_for(lambda: server.rows("SELECT cursor FROM pubsub_subscriptions") == [(50,)], "its cursor is saved later")
    again.close()


def test_that_a_subscription_is_in_use_is_saved_later(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="c", payload="1")
    subscribe(server, subscription="s", channel="c", ack="explicit")
    sqlite_shell(server.path, "UPDATE pubsub_subscriptions SET last_seen_at = '2020-01-01T00:00:00.000Z'")
    with Sse(f"{server.pubsub}/-/stream", subscription="s", ack="explicit") as reader:
        reader.messages(1)
        wait_for(lambda: server.rows("SELECT last_seen_at > '2021' FROM pubsub_subscriptions") == [(1,)])


def test_subscriptions_are_bounded_in_number(serve: Callable[..., Server]) -> None:
    server = serve(
        config=with_options(max_anonymous_subscriptions=3, max_subscriptions_per_actor=2), options=["--root"]
    )
    server.publish(channel="c", payload="1")
    for number in range(3):
        assert subscribe(server, subscription=f"s{number}", channel="c").status_code == 200
    refused = subscribe(server, subscription="s3", channel="c")
    assert (refused.status_code, refused.json()["error"]) == (
        429,
        "anonymous visitors together have 3 subscriptions; the limit is 3 (max_anonymous_subscriptions)",
    )
    assert subscribe(server, subscription="s0", channel="d").status_code == 200, "an existing one may change"
    with httpx.Client(cookies=server.root_cookie(), timeout=DEADLINE) as root:

        def status(name: str) -> tuple[int, str]:
            with root.stream(
                "GET", f"{server.pubsub}/-/stream", params={"subscription": name, "channel": "c"}
            ) as answer:
                return answer.status_code, answer.read().decode() if answer.status_code != 200 else ""

        assert [status(f"r{number}")[0] for number in range(2)] == [200, 200]
        code, text = status("r2")
        assert (code, "the limit is 2 (max_subscriptions_per_actor)" in text) == (429, True)
        deleted = root.post(f"{server.pubsub}/-/subscriptions/delete", json={"subscription": "r0"})
        assert deleted.status_code == 200, deleted.text
        assert status("r2")[0] == 200
    rpc = httpx.post(
        f"{server.url}/db.v1.DbService/Subscribe",
        content=envelope({"dbName": "data", "subscriptionName": "s4", "channel": "c"}),
        headers={"Content-Type": "application/connect+json"},
        timeout=DEADLINE,
    )
    assert b"resource_exhausted" in rpc.content


def envelope(message: dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return b"\0" + len(data).to_bytes(4, "big") + data


def test_subscriptions_are_bounded_in_bytes(serve: Callable[..., Server]) -> None:
    server = serve(config=with_options(max_subscription_bytes_per_actor=60_000))
    server.publish(channel="c", payload="1")
    big = [f"{number:03d}" + "a" * 250 for number in range(100)]
    assert [subscribe(server, subscription=f"s{n}", channel=big).status_code for n in range(2)] == [200, 200]
    refused = subscribe(server, subscription="s2", channel=big)
    assert (refused.status_code, "the limit is 60000 bytes (max_subscription_bytes_per_actor)" in refused.text) == (
        429,
        True,
    )
    assert subscribe(server, subscription="small", channel="c").status_code == 200
    assert subscribe(server, subscription="small", channel=big).status_code == 429, "nor may one grow beyond it"
    assert subscribe(server, subscription="s1", channel="c").status_code == 200, "one may become smaller"
    assert subscribe(server, subscription="s2", channel=big).status_code == 200
    size = server.rows("SELECT sum(length(reads)) FROM pubsub_subscriptions")[0][0]
    assert size <= 60_000


def test_a_list_of_many_subscriptions_by_pattern(serve: Callable[..., Server]) -> None:
    """100 subscriptions of 5,000 channels: what was 20 seconds of SQL looks at a bounded number of messages."""
    server = serve()
    server.publish(channel="c", payload="1")
    with contextlib.closing(sqlite3.connect(server.path)) as conn:
        conn.executemany(
            "INSERT INTO vpubsub (channel, payload) VALUES (?, 'x')", [(f"user/{n}",) for n in range(5000)]
        )
        for n in range(100):
            conn.execute(
                "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) VALUES ('', ?, ?, ?)",
                [f"s{n:03d}", '{"channels": [], "patterns": ["user/*"]}', 5001 if n else 1],
            )
        conn.commit()
    answer = httpx.get(f"{server.pubsub}/-/subscriptions.json", timeout=DEADLINE)
    lags = [(row["lag"], row["lag_is_more"]) for row in answer.json()["subscriptions"]]
    assert lags == [(5000, False), *[(0, False)] * 99]


def test_a_lag_is_counted_up_to_10000(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "data.db")) as conn:
        install(conn, Settings())
        rows = ((("a", "b/1", "b/2")[n % 3],) for n in range(36_000))
        conn.executemany("INSERT INTO vpubsub (channel, payload) VALUES (?, 'x')", rows)
        everything, channel = Selector.of([], ["*"]), Selector.of(["a"])
        pattern, both = Selector.of([], ["b/*"]), Selector.of(["a", "b/1"])
        wanted = [
            (everything, 0, (10_000, True)),
            (everything, 26_000, (10_000, False)),
            (everything, 25_999, (10_000, True)),
            (channel, 0, (10_000, True)),
            (channel, 18_000, (6_000, False)),
            (both, 18_000, (10_000, True)),
            (both, 30_000, (4_000, False)),
            (pattern, 30_000, (4_000, False)),
            (pattern, 0, (6_667, True)),
            (Selector.of([], ["none*"]), 0, (0, True)),
            (Selector.of([], ["none*"]), 36_000, (0, False)),
        ]
        for selector, after, lag in wanted:
            assert log.LagBudget().lag(conn, selector, after) == lag, (selector, after)
            if not lag[1]:
                assert log.count_after(conn, selector, after) == lag[0]
        spent = log.LagBudget(left=12_000)
        assert [spent.lag(conn, pattern, 0) for _ in range(3)] == [(6_667, True), (1_334, True), (0, True)]


def test_the_page_says_more_than_10000(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="c", payload="1")
    sqlite_shell(
        server.path,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10001)"
        " INSERT INTO vpubsub (channel, payload) SELECT 'c', i FROM n;"
        """ INSERT INTO pubsub_subscriptions (owner, name, reads) VALUES ('', 's', '{"channels": ["c"]}');""",
    )
    page = httpx.get(f"{server.pubsub}/-/subscriptions", timeout=DEADLINE)
    assert "more than 10,000" in page.text
    (row,) = httpx.get(f"{server.pubsub}/-/subscriptions.json", timeout=DEADLINE).json()["subscriptions"]
    assert (row["lag"], row["lag_is_more"]) == (10_000, True)


def test_a_read_that_takes_too_long_ends(serve: Callable[..., Server]) -> None:
    """A million channels, and a limit that is met: a 503 that names it, and everything else goes on."""
    server = serve(config=with_options(read_time_limit_seconds=0.01, max_anonymous_subscriptions=1))
    server.publish(channel="c", payload="1")
    sqlite_shell(
        server.path,
        "PRAGMA synchronous = OFF; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)"
        " INSERT INTO vpubsub (channel, payload) SELECT 'user/' || i, i FROM n;",
    )
    told = "reading database data took too long; the limit is 0.01 seconds (read_time_limit_seconds)"
    answer = httpx.get(f"{server.pubsub}/-/channels.json", timeout=DEADLINE)
    assert (answer.status_code, answer.json()["error"]) == (503, told)
    named = subscribe(server, subscription="s", pattern="user/*")
    assert (named.status_code, named.json()["error"]) == (503, told), "also on the write connection"
    assert server.rows("SELECT count(*) FROM pubsub_subscriptions") == [(0,)]
    assert len(server.publish(channel="c", payload="2")) == 1
    assert httpx.get(f"{server.url}/data/existing.json", timeout=DEADLINE).status_code == 200
