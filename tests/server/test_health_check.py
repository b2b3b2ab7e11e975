"""`GET …/-/health`: what a monitor learns of a server, by a message that is published and delivered."""

from __future__ import annotations

import concurrent.futures
import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import followers
import httpx
import pytest
from auth import headers
from servers import DEADLINE, Server, Sse

CHANNEL = "datasette-pubsub/health"


def check(server: Server, actor: str | None = None) -> httpx.Response:
    return httpx.get(f"{server.pubsub}/-/health", headers=headers(actor), timeout=DEADLINE)


def test_a_message_takes_the_path_of_all_messages(serve: Callable[..., Server]) -> None:
    server = serve()
    with Sse(f"{server.pubsub}/-/stream", channel=CHANNEL) as subscriber:
        subscriber.until("ready")
        answer = check(server)
        (message,) = subscriber.messages(1)
    found = answer.json()
    assert (answer.status_code, found["ok"], found["database"]) == (200, True, "data")
    assert str(found["message_id"]) == message["messageId"]
    assert 0 < found["publish_seconds"] < DEADLINE
    assert 0 <= found["deliver_seconds"] < DEADLINE
    assert answer.headers["cache-control"] == "no-store"
    assert "error" not in found


def test_many_monitors_cause_one_message(serve: Callable[..., Server]) -> None:
    server = serve()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: check(server), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    (number,) = server.rows("SELECT count(*) FROM vpubsub")[0]
    # Five seconds may pass on a slow machine.
    assert number == len({answer.json()["message_id"] for answer in answers}) < 8


def test_who_may_publish_to_its_channel_may_ask(serve: Callable[..., Server]) -> None:
    rules = {CHANNEL: {"publish": {"id": "monitor"}}}
    server = serve(config={"plugins": {"datasette-pubsub": {"channel_permissions": rules}}})
    refused = check(server)
    assert refused.status_code == 403
    assert refused.json()["error"] == f"permission denied: publish-message on channel '{CHANNEL}' of database data"
    assert server.rows("SELECT count(*) FROM sqlite_master WHERE name = 'vpubsub'") in ([(0,)], [(1,)])
    assert check(server, "monitor").status_code == 200
    assert check(server, "somebody").status_code == 403
    assert server.rows("SELECT count(*) FROM vpubsub") == [(1,)]


def test_only_get(serve: Callable[..., Server]) -> None:
    server = serve()
    answer = httpx.post(f"{server.pubsub}/-/health")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert httpx.head(f"{server.pubsub}/-/health").status_code == 200
    assert httpx.get(f"{server.url}/nowhere/-/pubsub/-/health").status_code == 404


def test_a_locked_file_is_told_within_its_second(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="c", payload="1")
    with contextlib.closing(sqlite3.connect(server.path, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        answer = check(server)
        conn.execute("ROLLBACK")
    assert (answer.status_code, answer.json()["ok"]) == (503, False)
    assert answer.json()["error"] == "a publish was not answered within 1 s"


def test_a_file_that_is_gone_is_told(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    server.publish(channel="c", payload="1")
    server.path.rename(tmp_path / "elsewhere")
    answer = check(server)
    assert (answer.status_code, answer.json()["ok"]) == (503, False)
    assert "message_id" not in answer.json()
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize(("ago", "status"), [("-5 seconds", 200), ("-2 minutes", 503)])
def test_a_follower_says_when_it_has_heard_from_its_stream(
    serve: Callable[..., Server], tmp_path: Path, ago: str, status: int
) -> None:
    path = tmp_path / "data.db"
    followers.follow(path)
    followers.copy(path, [1, 2], newest=5)
    with contextlib.closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE _pubsub_sources SET heard_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?)", [ago])
    answer = check(serve())
    found: dict[str, Any] = answer.json()
    assert (answer.status_code, found["ok"], found["follows"]["behind"]) == (status, status == 200, 3)
    if status == 503:
        assert found["error"] == f"nothing was heard from the stream {followers.STREAM} for more than 60 s"
