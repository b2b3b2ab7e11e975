"""A follower's file stays one: through install, repair, and every start of a server, whatever is configured."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from commands import call, failure
from connect_streams import options
from followers import INSTANCE, PUBLISH_AT, REFUSAL, STREAM, copy, follow, promote
from servers import Server, wait_for

from datasette_pubsub.core.errors import SchemaConflict
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.objects import GUARD, follower_guard_sql, guard_sql

ALTERED = {
    # Somebody has given it the guard of an ordinary log, or a weaker one, or another address.
    "an ordinary guard": guard_sql(Settings().max_payload_bytes),
    "no condition": follower_guard_sql(REFUSAL).replace("NEW.id <> coalesce", "NEW.id < coalesce"),
    "another text": follower_guard_sql("publish elsewhere"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "data.db"
    follow(found)
    copy(found, [1, 2, 3])
    return found


def guard(path: Path) -> str:
    with closing(sqlite3.connect(path)) as conn:
        return str(conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", [GUARD]).fetchone()[0])


def row(path: Path) -> tuple[str, str, str]:
    with closing(sqlite3.connect(path)) as conn:
        found = conn.execute("SELECT stream, instance_id, publish_at FROM _pubsub_sources").fetchall()
    (only,) = found
    return tuple(only)  # type: ignore[return-value]


def alter(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"DROP TRIGGER {GUARD}")
        conn.execute(sql)


def is_a_followers(path: Path) -> bool:
    return guard(path) == follower_guard_sql(REFUSAL) and row(path) == (STREAM, INSTANCE, PUBLISH_AT)


def test_install_keeps_it(path: Path) -> None:
    assert call("install", path).stdout == f"{path} is ready: programs can publish to it and subscribe to it\n"
    assert is_a_followers(path)


@pytest.mark.parametrize("size", [None, 2000])
def test_a_server_keeps_it(serve: Callable[..., Server], path: Path, size: int | None) -> None:
    """The limit of this server is none for messages that the origin has accepted."""
    server = serve(config=options() if size is None else options(max_payload_bytes=size))
    for _ in range(2):
        # The first write opens the write connection, which brings the file up to date.
        answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x"})
        assert (answer.status_code, answer.json()["error"]) == (409, REFUSAL)
        assert is_a_followers(path)
        server.restart()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("INSERT INTO vpubsub (id, channel, payload) VALUES (4, 'a', ?)", ["x" * 3000])
        conn.commit()
    messages = httpx.get(f"{server.pubsub}/-/messages.json").json()["messages"]
    assert (messages[0]["messageId"], len(messages[0]["payload"])) == ("4", 3000)


def test_a_promoted_file_gets_the_servers_guard(serve: Callable[..., Server], path: Path) -> None:
    promote(path)
    server = serve(config=options(max_payload_bytes=2000))
    assert server.publish(channel="a", payload="x") == [4]
    assert guard(path) == guard_sql(2000)
    assert httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x" * 2001}).status_code == 413


@pytest.mark.parametrize("sql", ALTERED.values(), ids=list(ALTERED))
def test_an_altered_guard_is_named_and_repaired(path: Path, sql: str) -> None:
    alter(path, sql)
    assert GUARD in failure("channels", path)
    assert call("install", path).stdout.startswith(f"Repaired {GUARD}, which was not as datasette-pubsub makes it\n")
    assert is_a_followers(path)
    copy(path, [4])


def test_a_server_names_an_altered_guard(serve: Callable[..., Server], path: Path) -> None:
    alter(path, ALTERED["an ordinary guard"])
    server = serve()
    wait_for(lambda: f"{GUARD}: not as datasette-pubsub makes it" in server.log, "the warning")
    answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x"})
    assert answer.status_code == 409
    assert GUARD in answer.json()["error"]
    assert server.rows("SELECT max(id) FROM vpubsub") == [(3,)]
    call("install", path)
    answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "x"})
    assert (answer.status_code, answer.json()["error"]) == (409, REFUSAL)


def test_a_guard_that_is_missing_is_made_again(serve: Callable[..., Server], path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"DROP TRIGGER {GUARD}")
    answer = httpx.post(f"{serve().pubsub}/-/publish", json={"channel": "a", "payload": "x"})
    assert (answer.status_code, answer.json()["error"]) == (409, REFUSAL)
    assert is_a_followers(path)


def test_a_row_that_is_removed_by_hand_is_no_way_to_publish(path: Path) -> None:
    """The command ``promote`` is: the file takes the origin's place then, with its instance id."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("DELETE FROM _pubsub_sources")
        conn.commit()
        with pytest.raises(sqlite3.IntegrityError):
            conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 'x')")
        with pytest.raises(SchemaConflict, match=GUARD):
            schema.check(conn)
