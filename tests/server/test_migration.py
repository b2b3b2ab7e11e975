"""Files of the first version, of a newer one, and logs that somebody has altered."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from old_logs import contents, install, make_version_1
from servers import Server, Sse

from datasette_pubsub.broadcast import tables
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "data.db"
    make_version_1(path, 200)
    return path


@pytest.fixture
def conn(old: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(old, isolation_level=None)
    yield connection
    connection.close()


def test_all_is_kept_and_what_users_made_works_on(conn: sqlite3.Connection) -> None:
    before = contents(conn, "pubsub_messages", "")
    schema.install(conn, Settings())
    assert contents(conn, "vpubsub", "_") == before
    assert schema.check(conn), "a second look finds nothing to do"
    names = "SELECT group_concat(name) FROM sqlite_master"
    assert "pubsub_messages" not in conn.execute(names).fetchone()[0]

    conn.execute("INSERT INTO orders (state) VALUES ('new')")
    conn.execute("UPDATE orders SET state = 'paid'")
    conn.execute("UPDATE orders SET state = 'paid twice'")
    conn.execute("INSERT INTO written (payload) VALUES ('through a view')")
    conn.execute("INSERT INTO people (email, status) VALUES ('a@b.c', 'new')")
    rows = conn.execute("SELECT id, channel, payload, key FROM vpubsub WHERE id > 200").fetchall()
    assert rows[:3] == [
        (201, "orders", "new", None),
        (202, "orders", "paid", "k1"),
        (203, "written", "through a view", None),
    ]
    assert conn.execute("SELECT id, channel FROM audit WHERE id = 202").fetchone() == (202, "orders")
    newest = conn.execute("SELECT max(id) FROM vpubsub").fetchone()[0]
    assert conn.execute("SELECT id, said FROM newest").fetchone() == (newest, "of pubsub_messages")
    assert conn.execute("SELECT seq FROM head").fetchone() == (newest,)
    assert conn.execute("SELECT count(*) FROM of_a_view").fetchone()[0] > 190
    assert conn.execute("SELECT id FROM lost").fetchall() == [(23,)]
    plan = " ".join(row[3] for row in conn.execute("EXPLAIN QUERY PLAN SELECT id FROM vpubsub ORDER BY created_at"))
    assert "by_time" in plan
    assert conn.execute("SELECT count(*) FROM moves").fetchone() == (0,), "the migration moves no cursor"
    conn.execute("INSERT INTO pubsub_subscriptions (name, reads) VALUES ('new one', '{}')")
    assert conn.execute("SELECT payload FROM vpubsub WHERE channel = 'greetings'").fetchall() == [("new one",)]
    conn.execute("UPDATE pubsub_subscriptions SET cursor = 7 WHERE name = 'new one'")
    assert conn.execute("SELECT * FROM moves").fetchall() == [("new one", 7)]
    assert conn.execute("SELECT name FROM behind").fetchall() == [("s0",)]
    plan = " ".join(row[3] for row in conn.execute("EXPLAIN QUERY PLAN SELECT cursor FROM pubsub_subscriptions"))
    assert "by_cursor" in plan


def test_broadcasts_are_made_again_as_this_version_makes_them(conn: sqlite3.Connection) -> None:
    schema.install(conn, Settings(), migrated=tables.renew)
    for table in ("items", "people", "stock", "notes", "tags"):
        found = tables.find(conn, table)
        assert found is not None
        assert found.problems == ()
    assert tables.lost(conn) == {}
    conn.execute("INSERT INTO items (name, price) VALUES ('tea', 2.5)")
    conn.execute("INSERT INTO people (email, status) VALUES ('a@b.c', 'new')")
    conn.execute("UPDATE people SET status = 'banned'")
    rows = conn.execute("SELECT channel, payload ->> '$.new.name' FROM vpubsub WHERE id > 200").fetchall()
    assert rows == [("changes/items", "tea"), ("people/new", None), ("people/banned", None)]


def test_the_objects_are_those_of_a_new_file(conn: sqlite3.Connection, tmp_path: Path) -> None:
    schema.install(conn, Settings())
    with contextlib.closing(sqlite3.connect(tmp_path / "new.db", isolation_level=None)) as new:
        schema.install(new, Settings())
        ours = "SELECT name, tbl_name, sql FROM sqlite_master WHERE name GLOB '*pubsub*' ORDER BY name"
        wanted = new.execute(ours).fetchall()
    names = {row[0] for row in wanted}
    assert [row for row in conn.execute(ours).fetchall() if row[0] in names] == wanted


@pytest.mark.parametrize(
    ("made", "named", "advice"),
    [
        (
            "ALTER TABLE pubsub_subscriptions ADD COLUMN note TEXT",
            "table pubsub_subscriptions has further columns, which this version has no place for: note",
            "drop them, and install again",
        ),
        (
            "CREATE VIRTUAL TABLE found USING fts5(payload, content='pubsub_messages', content_rowid='id')",
            "table found refers to pubsub_messages",
            "make it again with the new name",
        ),
        (
            "CREATE TABLE remarks (message INTEGER REFERENCES pubsub_messages (id))",
            "table remarks refers to pubsub_messages",
            "make it again with the new name",
        ),
        (
            "CREATE TRIGGER also INSTEAD OF DELETE ON vpubsub BEGIN SELECT 1; END",
            "trigger also belongs to the view vpubsub",
            "make it again for the table vpubsub",
        ),
    ],
)
def test_what_cannot_be_rewritten_is_named_and_nothing_is_changed(
    old: Path, conn: sqlite3.Connection, made: str, named: str, advice: str
) -> None:
    conn.execute(made)
    before = list(conn.iterdump())
    answer = install(old)
    assert answer.returncode == 1
    assert named in answer.stderr
    assert advice in answer.stderr
    assert list(conn.iterdump()) == before


def test_a_server_migrates_what_it_opens(serve: Callable[..., Server], old: Path) -> None:
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as conn:
        before = contents(conn, "pubsub_messages", "")
    server = serve()
    assert server.publish(channel="c/1", payload="after") == [201]
    listed = httpx.get(f"{server.pubsub}/-/subscriptions.json").json()["subscriptions"]
    (cursor,) = [row["cursor"] for row in listed if row["subscription"] == "s10"]
    assert cursor == 100
    with Sse(f"{server.pubsub}/-/stream", channel="c/1", subscription="s10") as reader:
        ids = [int(message["messageId"]) for message in reader.messages(6)]
    assert ids == [101, 121, 141, 161, 181, 201]
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as conn:
        kept = contents(conn, "vpubsub", "_")
        assert kept[0][:-1] == before[0]
        assert kept[2:4] == before[2:4]
