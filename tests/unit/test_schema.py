"""The log as every program sees it: plain SQL in the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import sqlite_shell

from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.core.values import Item
from datasette_pubsub.storage import log, schema, subscriptions
from datasette_pubsub.storage.catchup import Reader

INSERT = "INSERT INTO vpubsub (channel, payload) VALUES (?, ?)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "log.db"
    conn = sqlite3.connect(file)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings(max_payload_bytes=100))
    conn.close()
    return file


@pytest.fixture
def conn(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def test_wal_and_full(path: Path) -> None:
    assert sqlite_shell(path, "PRAGMA journal_mode") == "wal\n"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = OFF")
    schema.set_durability(connection, Settings())
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.execute("PRAGMA synchronous = EXTRA")
    schema.set_durability(connection, Settings())
    assert connection.execute("PRAGMA synchronous").fetchone() == (3,), "more than asked for stays"
    schema.set_durability(connection, Settings(synchronous="normal"))
    assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE", "REPLACE"])
@pytest.mark.parametrize(
    ("channel", "payload", "reason"),
    [
        (None, "x", "channel is NULL"),
        ("", "x", "channel is empty"),
        (5, "x", None),
        (b"a", "x", "channel must be text"),
        ("c" * 256, "x", "limit of 255 bytes"),
        ("ä" * 128, "x", "limit of 255 bytes"),
        ("a\0b", "x", "must not contain NUL"),
        ("a", None, "payload is NULL"),
        ("a", "x" * 101, "limit of 100 bytes"),
        ("a", "ä" * 51, "limit of 100 bytes"),
        ("a", b"x" * 101, "limit of 100 bytes"),
    ],
)
def test_bad_messages_are_refused_whoever_inserts_them(
    conn: sqlite3.Connection, verb: str, channel: object, payload: object, reason: str | None
) -> None:
    statement = f"{verb} INTO vpubsub (channel, payload) VALUES (?, ?)"
    if reason is None:
        # SQLite's column affinity makes text of a number.
        conn.execute(statement, (channel, payload))
        assert conn.execute("SELECT channel FROM vpubsub").fetchone() == ("5",)
        return
    with pytest.raises(sqlite3.DatabaseError, match=reason):
        conn.execute(statement, (channel, payload))
    assert log.head(conn) == 0


def test_every_type_is_kept(conn: sqlite3.Connection) -> None:
    payloads = ["text", 1, 1.5, b"\x00\x01", "", b"", "ä\0b"]
    conn.executemany(INSERT, [("a", payload) for payload in payloads])
    assert [row[0] for row in conn.execute("SELECT payload FROM vpubsub ORDER BY id")] == payloads


def test_a_file_in_utf_16_publishes_too(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "wide.db", isolation_level=None)
    connection.execute("PRAGMA encoding = 'UTF-16'")
    schema.install(connection, Settings())
    connection.execute(INSERT, ("a", "x"))
    log.insert(connection, [Item("ä", "y"), Item("b", "z")], log.now())
    with pytest.raises(sqlite3.IntegrityError, match="must not contain NUL"):
        connection.execute(INSERT, ("a\0b", "x"))
    assert connection.execute("SELECT channel, payload FROM vpubsub").fetchall() == [("a", "x"), ("ä", "y"), ("b", "z")]
    connection.close()


def test_the_log_is_append_only(conn: sqlite3.Connection) -> None:
    conn.execute(INSERT, ("a", "x"))
    for statement in (
        "UPDATE vpubsub SET payload = 'y'",
        "UPDATE vpubsub SET id = 7",
        "DELETE FROM vpubsub",
        "INSERT INTO vpubsub (id, channel, payload) VALUES (1, 'a', 'y')",
        "INSERT OR REPLACE INTO vpubsub (id, channel, payload) VALUES (1, 'a', 'y')",
        "INSERT INTO vpubsub (id, channel, payload) VALUES (99, 'a', 'y')",
        "INSERT INTO vpubsub (id, channel, payload) VALUES (0, 'a', 'y')",
    ):
        with pytest.raises(sqlite3.DatabaseError):
            conn.execute(statement)
    assert conn.execute("SELECT id, channel, payload FROM vpubsub").fetchall() == [(1, "a", "x")]


@pytest.mark.parametrize("recursive", ["ON", "OFF"])
@pytest.mark.parametrize(
    "verb",
    ["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL", "INSERT OR ABORT", "INSERT OR ROLLBACK"],
)
def test_a_key_is_stored_once_whatever_the_outer_statement_says(
    conn: sqlite3.Connection, recursive: str, verb: str
) -> None:
    conn.execute(f"PRAGMA recursive_triggers = {recursive}")
    conn.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT)")
    conn.execute("""CREATE TRIGGER told AFTER INSERT ON orders BEGIN
        INSERT INTO vpubsub (channel, payload, key) VALUES ('orders', NEW.state, 'order ' || NEW.id); END""")
    conn.execute(f"{verb} INTO orders VALUES (1, 'new')")
    conn.execute("INSERT OR REPLACE INTO orders VALUES (1, 'paid')")
    conn.execute("INSERT INTO vpubsub (channel, payload, key) VALUES ('other', 'x', 'order 1')")
    conn.execute("""CREATE TRIGGER told_again AFTER UPDATE ON orders BEGIN
        INSERT INTO vpubsub (channel, payload, key) VALUES ('orders', NEW.state, 'order ' || NEW.id); END""")
    conn.execute(f"{verb.replace('INSERT', 'UPDATE')} orders SET state = 'sent'")
    assert conn.execute("SELECT state FROM orders").fetchone() == ("sent",), "the statement itself goes on"
    row = "(channel, payload, key) VALUES ('orders', 'direct', 'order 1')"
    for statement in (
        f"{verb} INTO vpubsub {row}",
        f"INSERT INTO vpubsub {row} ON CONFLICT (channel, key) DO NOTHING",
        f"INSERT INTO vpubsub {row} ON CONFLICT DO UPDATE SET payload = excluded.payload",
    ):
        assert conn.execute(statement).rowcount in (0, 1)
    rows = conn.execute("SELECT id, channel, payload, key FROM vpubsub").fetchall()
    assert rows == [(1, "orders", "new", "order 1"), (2, "other", "x", "order 1")]


def test_ids_follow_commits_and_never_come_again(conn: sqlite3.Connection) -> None:
    conn.execute("BEGIN")
    conn.execute(INSERT, ("a", "rolled back"))
    conn.execute("ROLLBACK")
    conn.execute("BEGIN")
    conn.execute(INSERT, ("a", "1"))
    conn.execute("SAVEPOINT s")
    conn.execute(INSERT, ("a", "undone"))
    conn.execute("ROLLBACK TO s")
    conn.execute(INSERT, ("a", "2"))
    conn.execute("COMMIT")
    assert conn.execute("SELECT id, payload FROM vpubsub").fetchall() == [(1, "1"), (2, "2")]
    conn.execute("INSERT INTO _pubsub_released VALUES ('a', 2)")
    conn.execute("DELETE FROM vpubsub")
    conn.execute(INSERT, ("a", "3"))
    assert conn.execute("SELECT id FROM vpubsub").fetchall() == [(3,)]


def test_a_cursor_only_moves_forward(conn: sqlite3.Connection) -> None:
    conn.executemany(INSERT, [("a", str(n)) for n in range(5)])
    found = subscriptions.open_or_create(conn, "me", "s", Selector.of(["a"]), 0)
    conn.execute("UPDATE pubsub_subscriptions SET cursor = 3 WHERE owner = 'me' AND name = 's'")
    for cursor in (2, 6, "x", None, 3.5):
        with pytest.raises(sqlite3.IntegrityError):
            conn.execute("UPDATE pubsub_subscriptions SET cursor = ?", [cursor])
    subscriptions.move(conn, found.id, 1)
    assert subscriptions.find(conn, "me", "s").cursor == 3  # type: ignore[union-attr]
    assert subscriptions.find(conn, "", "s") is None


def test_installing_again_changes_nothing_and_new_limits_replace_the_guard(conn: sqlite3.Connection) -> None:
    version = conn.execute("PRAGMA schema_version").fetchone()
    schema.install(conn, Settings(max_payload_bytes=100))
    assert conn.execute("PRAGMA schema_version").fetchone() == version
    schema.install(conn, Settings(max_payload_bytes=200))
    conn.execute(INSERT, ("a", "x" * 150))


@pytest.mark.parametrize(
    "dropped",
    [
        "TRIGGER vpubsub_guard",
        "TRIGGER vpubsub_update",
        "TRIGGER pubsub_subscriptions_forward",
        "INDEX vpubsub_key",
        "TABLE pubsub_subscriptions",
        "TABLE _pubsub_released",
        "TABLE _pubsub_trims",
        "TABLE _pubsub_file",
        "TABLE _pubsub_probe",
        "TRIGGER vpubsub_delete",
        "INDEX vpubsub_channel",
        "TABLE _sqlite_migrations",
    ],
)
def test_what_was_dropped_is_installed_again(conn: sqlite3.Connection, dropped: str) -> None:
    conn.execute(INSERT, ("a", "kept"))
    before = conn.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    conn.execute(f"DROP {dropped}")
    schema.install(conn, Settings(max_payload_bytes=100))
    assert conn.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall() == before
    conn.execute(INSERT, ("a", "new"))
    assert conn.execute("SELECT id, payload FROM vpubsub").fetchall() == [(1, "kept"), (2, "new")]


def test_a_log_that_was_dropped_gives_no_id_twice(conn: sqlite3.Connection) -> None:
    for n in range(7):
        conn.execute(INSERT, ("a", n))
    conn.execute("INSERT INTO pubsub_subscriptions (name, cursor) VALUES ('reader', 5)")
    conn.execute("DROP TABLE vpubsub")
    schema.install(conn, Settings(max_payload_bytes=100))
    conn.execute(INSERT, ("a", "new"))
    assert conn.execute("SELECT id, payload FROM vpubsub").fetchall() == [(6, "new")]


def test_reading_by_pages_leaves_nothing_out(conn: sqlite3.Connection) -> None:
    conn.executemany(INSERT, [(f"c{n % 70}", f"{n}") for n in range(3000)])
    for selector in (
        Selector.of(["c3"]),
        Selector.of(["c3", "c4"], ["c1?"]),
        Selector.of((), ["*"]),
        Selector.of((), ["c*"]),
        Selector.of([f"c{n}" for n in range(60)]),
        Selector.of(["unknown"]),
    ):
        read: list[Any] = []
        reader, position = Reader(selector), 0
        while True:
            page = reader.page(conn, position, 5000, limit=100)
            read.extend(message.payload for message in page.messages)
            if page.position == position:
                break
            position = page.position
        assert position == 3000
        assert read == [str(n) for n in range(3000) if selector.matches(f"c{n % 70}")], selector
