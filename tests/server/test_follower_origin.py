"""The origin of followers: how far its relays are, and what retention does to what they lack."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from auth import cookie, headers
from commands import call
from connect_streams import options
from every_page import CONFIG
from servers import Server, wait_for

from datasette_pubsub.core.settings import RELAY_OWNER


def relayed(path: Path, position: int, stream: str = "orders", seen: str | None = None) -> None:
    """What a relay writes."""
    with closing(sqlite3.connect(path, timeout=30)) as conn:
        conn.execute(
            "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (owner, name) DO UPDATE SET cursor = excluded.cursor",
            [RELAY_OWNER, stream, '{"channels": [], "patterns": ["*"]}', position],
        )
        if seen is not None:
            conn.execute("UPDATE pubsub_subscriptions SET last_seen_at = ?", [seen])
        conn.commit()


def publish(server: Server, count: int, payload: str = "x") -> None:
    server.publish(*({"channel": "a", "payload": payload} for _ in range(count)))


def ids(server: Server) -> list[int]:
    return [row[0] for row in server.rows("SELECT id FROM vpubsub ORDER BY id")]


def test_a_relay_is_a_row_of_its_own_kind(serve: Callable[..., Server], file: Path) -> None:
    server = serve(config=CONFIG)
    publish(server, 5)
    relayed(file, 3)
    (row,) = httpx.get(f"{server.pubsub}/-/subscriptions.json?owner=*", headers=cookie("ada")).json()["subscriptions"]
    assert (row["owner"], row["subscription"], row["relay_to"]) == (RELAY_OWNER, "orders", "orders")
    assert (row["cursor"], row["lag"], row["connected"]) == (3, 2, False)
    page = httpx.get(f"{server.pubsub}/-/subscriptions", headers=cookie("ada")).text
    assert "relay to the stream <bdi>orders</bdi>" in page
    assert '<td class="col-connected">own process</td>' in page
    asked = httpx.get(
        f"{server.pubsub}/-/subscriptions", params={"delete": "orders", "owner": RELAY_OWNER}, headers=cookie("ada")
    ).text
    assert "Retention holds nothing back for it then." in asked
    # Visitors have their own.
    assert httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"] == []


def test_the_command_shows_it(file: Path) -> None:
    call("publish", file, "a", "x")
    relayed(file, 0)
    assert "(relay)  relay to the stream orders  *" in call("subscriptions", file).stdout
    (row,) = json.loads(call("subscriptions", file, "--json").stdout)
    assert (row["owner"], row["relay_to"], row["lag"]) == (RELAY_OWNER, "orders", 1)


def test_no_actor_is_a_relay(serve: Callable[..., Server], file: Path) -> None:
    server = serve(config=options())
    publish(server, 3)
    relayed(file, 1)
    actor = headers(RELAY_OWNER)
    refused = f"the actor id {RELAY_OWNER!r} is reserved for relays, and may have no subscriptions"

    def answers(response: httpx.Response) -> tuple[int, str]:
        return response.status_code, response.json()["error"]

    stream = httpx.get(f"{server.pubsub}/-/stream", params={"channel": "a", "subscription": "orders"}, headers=actor)
    assert answers(stream) == (403, refused)
    body: dict[str, Any] = {"subscription": "orders", "message_id": 3}
    bearer = {**actor, "Origin": server.url}
    assert answers(httpx.post(f"{server.pubsub}/-/ack", json=body, headers=bearer)) == (403, refused)
    gone = httpx.post(f"{server.pubsub}/-/subscriptions/delete", json={"subscription": "orders"}, headers=bearer)
    assert answers(gone) == (403, refused)
    over_connect = httpx.post(
        f"{server.url}/db.v1.DbService/Ack",
        json={"dbName": "data", "subscriptionName": "orders", "messageId": "3"},
        headers=bearer,
    ).json()
    assert (over_connect["code"], over_connect["message"]) == ("permission_denied", refused)
    assert httpx.get(f"{server.pubsub}/-/subscriptions.json", headers=actor).json()["subscriptions"] == []
    assert server.rows("SELECT cursor FROM pubsub_subscriptions") == [(1,)]


def test_retention_waits_for_it(serve: Callable[..., Server], file: Path) -> None:
    relayed(file, 0)
    server = serve(config=options(retention_messages=2, retention_unread_bytes=1000, trim_interval_seconds=0.05))
    publish(server, 5)
    relayed(file, 1)
    wait_for(lambda: ids(server) == [2, 3, 4, 5], "what was relayed is trimmed")
    relayed(file, 5)
    wait_for(lambda: ids(server) == [4, 5], "the rest")
    assert "has not relayed" not in server.log


def test_what_it_lacks_is_logged_once_for_each_time(serve: Callable[..., Server], file: Path) -> None:
    relayed(file, 0)
    relayed(file, 3, stream="complete")
    server = serve(config=options(retention_messages=2, trim_interval_seconds=0.05))

    def trimmed(count: int, left: list[int]) -> int:
        """How many warnings the log has when so many more are published."""
        publish(server, count)
        wait_for(lambda: ids(server) == left, "the trim")
        # The next trim comes after the warning of the last one.
        publish(server, 1)
        wait_for(lambda: ids(server) == [each + 1 for each in left], "the next trim")
        return server.log.count("has not relayed")

    publish(server, 5)
    wait_for(lambda: "has not relayed" in server.log, "the warning")
    assert (
        "database data: retention has removed 3 messages that the relay to the stream orders has not relayed; with a "
        "greater retention_unread_bytes (now 0) the log keeps them for it"
    ) in server.log
    assert "stream complete" not in server.log
    with closing(sqlite3.connect(file, timeout=30)) as conn:
        conn.execute("DELETE FROM pubsub_subscriptions WHERE name = 'complete'")
        conn.commit()
    # It is still down, and goes on losing: nothing new.
    assert trimmed(2, [6, 7]) == 1
    # It is back, and loses nothing. Then it is down again.
    relayed(file, 8)
    assert trimmed(1, [8, 9]) == 1
    relayed(file, 10)
    publish(server, 1)
    wait_for(lambda: ids(server) == [10, 11], "nothing that it lacks")
    publish(server, 3)
    wait_for(lambda: server.log.count("has not relayed") == 2, "a second warning")


@pytest.mark.parametrize("name", ["relay", "mine"])
def test_one_that_relays_nothing_for_long_expires_and_that_is_said(
    serve: Callable[..., Server], file: Path, name: str
) -> None:
    relayed(file, 0, seen="2020-01-01T00:00:00.000Z")
    if name == "mine":
        with closing(sqlite3.connect(file)) as conn:
            conn.execute("UPDATE pubsub_subscriptions SET owner = ''")
            conn.commit()
    server = serve(config=options(subscription_expiry_days=7, trim_interval_seconds=0.05))
    publish(server, 1)
    wait_for(lambda: server.rows("SELECT count(*) FROM pubsub_subscriptions") == [(0,)], "it is gone")
    said = "the relay to the stream orders has relayed nothing for subscription_expiry_days (7 days)"
    if name == "relay":
        wait_for(lambda: said in server.log, "the warning")
    else:
        assert said not in server.log
