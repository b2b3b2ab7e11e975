"""Files of the first version, of a newer one, and logs that somebody has altered."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlite_utils
from commands import python_module, start_module
from places import SUPPORT
from servers import Server, Sse, sqlite_shell, wait_for

from datasette_pubsub.broadcast import tables
from datasette_pubsub.core.errors import SchemaConflict
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import log, schema, subscriptions

VERSION_1 = (SUPPORT / "version_1.sql").read_text()

#: What users had made of the log of the first version.
OF_USERS = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT);
CREATE TRIGGER by_view AFTER INSERT ON orders
BEGIN INSERT INTO vpubsub (channel, payload) VALUES ('orders', NEW.state); END;
CREATE TRIGGER by_table AFTER UPDATE ON orders
BEGIN INSERT INTO "pubsub_messages" (channel, payload, key) VALUES ('orders', NEW.state, 'k' || NEW.id); END;
CREATE TABLE audit (id INTEGER, channel TEXT);
CREATE TRIGGER audited AFTER INSERT ON pubsub_messages BEGIN INSERT INTO audit VALUES (NEW.id, NEW.channel); END;
CREATE INDEX by_time ON pubsub_messages (created_at); -- not pubsub_messages
CREATE VIEW newest AS SELECT max(pubsub_messages.id) AS id, 'of pubsub_messages' AS said FROM [pubsub_messages];
CREATE VIEW head AS SELECT seq FROM sqlite_sequence WHERE name = 'pubsub_messages';
CREATE VIEW of_a_view AS SELECT channel, id FROM vpubsub;
CREATE VIEW written AS SELECT id, payload FROM pubsub_messages;
CREATE TRIGGER writes INSTEAD OF INSERT ON written
BEGIN INSERT INTO vpubsub (channel, payload) VALUES ('written', NEW.payload); END;
CREATE INDEX by_cursor ON pubsub_subscriptions (cursor);
CREATE TABLE moves (name TEXT, cursor INTEGER);
CREATE TRIGGER moved AFTER UPDATE OF cursor ON pubsub_subscriptions
BEGIN INSERT INTO moves VALUES (NEW.name, NEW.cursor); END;
CREATE TRIGGER greeted AFTER INSERT ON pubsub_subscriptions WHEN NEW.name = 'new one'
BEGIN INSERT INTO pubsub_messages (channel, payload) VALUES ('greetings', NEW.name); END;
CREATE VIEW behind AS SELECT name FROM pubsub_subscriptions WHERE cursor = 0;
CREATE VIEW lost AS SELECT removed.id FROM pubsub_released AS removed JOIN pubsub_trims USING (channel);
"""


def make_version_1(path: Path, messages: int) -> None:
    """A file of the first version: messages of every type, keys, a hole, subscriptions."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.executescript(VERSION_1 + OF_USERS)
        conn.execute(
            """INSERT INTO pubsub_messages (channel, payload, key)
               WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
               SELECT 'c/' || (i % 20),
               CASE i % 4 WHEN 0 THEN i WHEN 1 THEN i + 0.5 WHEN 2 THEN x'00ff' ELSE 'text ' || i END,
               CASE i % 10 WHEN 7 THEN 'key ' || i END FROM n""",
            [messages],
        )
        conn.execute("INSERT INTO pubsub_released VALUES ('c/3', 23)")
        conn.execute("INSERT INTO pubsub_trims VALUES ('c/3', 23, 3, 2, x'00')")
        conn.execute("DELETE FROM pubsub_messages WHERE channel = 'c/3' AND id <= 23")
        for n in range(20):
            conn.execute(
                "INSERT INTO pubsub_subscriptions (owner, name, reads, cursor) VALUES (?, ?, ?, ?)",
                ["ada" if n % 2 else "", f"s{n}", '{"channels": ["c/1"], "patterns": ["c/2*"]}', messages // 20 * n],
            )
        conn.execute("DELETE FROM audit")


def contents(conn: sqlite3.Connection, log_table: str, hidden: str) -> list[list[Any]]:
    """All that a migration must keep."""
    return [
        conn.execute(sql).fetchall()
        for sql in (
            f"SELECT id, channel, payload, typeof(payload), created_at, key FROM {log_table} ORDER BY id",
            "SELECT id, owner, name, reads, cursor, created_at, last_seen_at FROM pubsub_subscriptions ORDER BY id",
            f"SELECT * FROM {hidden}pubsub_released",
            f"SELECT * FROM {hidden}pubsub_trims",
            f"SELECT seq FROM sqlite_sequence WHERE name = '{log_table}'",
            "SELECT seq FROM sqlite_sequence WHERE name = 'pubsub_subscriptions'",
        )
    ]


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


def install(path: Path) -> subprocess.CompletedProcess[str]:
    return python_module("datasette", "pubsub", "install", path)


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


def killed_while_installing(path: Path, rounds: int) -> None:
    """Kill `install` at moments all over its work; each time the file is old or new, never half, and whole."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        before = contents(conn, "pubsub_messages", "")
    copy = path.with_name("whole.db")
    copied = path.with_name("timed.db")
    sqlite_shell(path, f"VACUUM INTO '{copy}'")
    copied.write_bytes(copy.read_bytes())
    began = time.monotonic()
    assert install(copied).returncode == 0
    takes = time.monotonic() - began
    seen = set()
    for n in range(rounds):
        for part in ("", "-wal", "-shm"):
            path.with_name(path.name + part).unlink(missing_ok=True)
        path.write_bytes(copy.read_bytes())
        process = start_module("datasette", "pubsub", "install", path)
        time.sleep(takes * (n + random.random()) / rounds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            new = conn.execute("SELECT type FROM sqlite_master WHERE name = 'vpubsub'").fetchone() == ("table",)
            seen.add(new)
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert contents(conn, *(("vpubsub", "_") if new else ("pubsub_messages", ""))) == before
            schema.install(conn, Settings())
            assert contents(conn, "vpubsub", "_") == before
            for reader in subscriptions.everyone(conn):
                lag = [row for row in before[0] if row[0] > reader.cursor and reader.selector.matches(row[1])]
                assert log.count_after(conn, reader.selector, reader.cursor) == len(lag)
    assert False in seen, "some of the kills came in time"


def test_a_killed_migration_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make_version_1(path, 20_000)
    killed_while_installing(path, 6)


@pytest.mark.slow
def test_a_killed_migration_of_a_million_messages(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    make_version_1(path, 1_000_000)
    killed_while_installing(path, 10)


def test_a_file_of_a_newer_version_is_read_and_not_touched(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        schema.install(conn, Settings())
        conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 'x')")
        conn.execute("UPDATE _pubsub_file SET schema_version = 99")
        conn.execute("DROP TRIGGER vpubsub_delete")
        before = list(conn.iterdump())
    server = serve(options=["--root"])
    for _ in range(3):
        answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "y"})
        assert answer.status_code == 409
        assert "made by a newer version of datasette-pubsub (schema 99" in answer.json()["error"]
    with Sse(f"{server.pubsub}/-/stream", channel="a", start="earliest") as reader:
        assert reader.messages(1)[0]["payload"] == "x"
    answer = httpx.get(f"{server.pubsub}/-/stream", params={"channel": "a", "subscription": "s"})
    assert answer.status_code == 409
    refused = install(path)
    assert refused.returncode == 1
    assert "upgrade datasette-pubsub" in refused.stderr
    with contextlib.closing(sqlite3.connect(path)) as conn:
        assert list(conn.iterdump()) == before
    server.stop()
    assert server.log.count("newer version") == 1


ALTERED = [
    (
        "vpubsub_guard",
        "DROP TRIGGER vpubsub_guard; CREATE TRIGGER vpubsub_guard BEFORE INSERT ON vpubsub BEGIN SELECT 1; END",
    ),
    (
        "vpubsub_delete",
        "DROP TRIGGER vpubsub_delete;CREATE TRIGGER vpubsub_delete BEFORE DELETE ON vpubsub WHEN 0 BEGIN SELECT 1; END",
    ),
    ("vpubsub_key", "DROP INDEX vpubsub_key; CREATE INDEX vpubsub_key ON vpubsub (key)"),
    (
        "pubsub_subscriptions_forward",
        "DROP TRIGGER pubsub_subscriptions_forward;"
        "CREATE TRIGGER pubsub_subscriptions_forward AFTER UPDATE ON pubsub_subscriptions BEGIN SELECT 1; END",
    ),
    ("_pubsub_probe", "DROP TABLE _pubsub_probe; CREATE TABLE _pubsub_probe (x)"),
]


@pytest.mark.parametrize(("name", "sql"), ALTERED)
def test_what_was_altered_is_named_and_repaired(
    serve: Callable[..., Server], tmp_path: Path, name: str, sql: str
) -> None:
    path = tmp_path / "data.db"
    assert install(path.touch() or path).returncode == 0
    sqlite_shell(path, "INSERT INTO vpubsub (channel, payload, key) VALUES ('a', 'x', 'k');" + sql)
    server = serve()
    wait_for(lambda: name in server.log, "the server's log names it at the start")
    answer = httpx.post(f"{server.pubsub}/-/publish", json={"channel": "a", "payload": "y"})
    assert answer.status_code == 409
    assert f"{name}: not as datasette-pubsub makes it" in answer.json()["error"]
    repaired = install(path)
    assert repaired.returncode == 0, repaired.stderr
    assert f"Repaired {name}" in repaired.stdout
    assert server.publish(channel="a", payload="y") == [2], "without a restart"


@pytest.mark.parametrize("tool", ["transform", "by hand"])
def test_a_rebuilt_log_is_named_and_repaired(tmp_path: Path, tool: str) -> None:
    """sqlite-utils transform loses AUTOINCREMENT and triggers; a hand-made copy has no constraints either."""
    path = tmp_path / "data.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.install(conn, Settings())
        conn.execute("CREATE TABLE audit (id)")
        conn.execute(
            "INSERT INTO vpubsub (channel, payload) VALUES ('a', 1), ('a', x'ff'), ('b', 'x'), ('b', 'newest')"
        )
        conn.execute("INSERT INTO _pubsub_released VALUES ('b', 4)")
        conn.execute("DELETE FROM vpubsub WHERE id = 4")
        if tool == "transform":
            sqlite_utils.Database(conn)["vpubsub"].transform(column_order=["id", "channel"])
        else:
            conn.executescript("""
                CREATE TABLE copy (id INTEGER PRIMARY KEY, channel TEXT, payload TEXT, created_at TEXT, key TEXT);
                INSERT INTO copy SELECT * FROM vpubsub; DROP TABLE vpubsub; ALTER TABLE copy RENAME TO vpubsub;""")
        kept = conn.execute("SELECT * FROM vpubsub").fetchall()
        conn.execute("CREATE INDEX mine ON vpubsub (created_at)")
        conn.execute("CREATE TRIGGER audited AFTER INSERT ON vpubsub BEGIN INSERT INTO audit VALUES (NEW.id); END")
        conn.execute("CREATE VIEW shown AS SELECT payload FROM vpubsub")
        with pytest.raises(SchemaConflict, match="vpubsub: not as datasette-pubsub makes it"):
            schema.install(conn, Settings())
    answer = install(path)
    assert answer.returncode == 0, answer.stderr
    assert "Repaired vpubsub" in answer.stdout
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert conn.execute("SELECT * FROM vpubsub").fetchall() == kept
        conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('a', 5)")
        assert conn.execute("SELECT id, typeof(payload) FROM vpubsub WHERE id > 3").fetchall() == [(5, "integer")]
        assert conn.execute("SELECT id FROM audit").fetchall() == [(5,)]
        assert conn.execute("SELECT count(*) FROM shown").fetchone() == (4,)
        assert conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'mine'").fetchone() == (1,)
        assert schema.check(conn)


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        (
            "CREATE TABLE copy (id INTEGER PRIMARY KEY, channel, payload, created_at, key, more)",
            "further columns: more",
        ),
        ("CREATE TABLE copy (id INTEGER PRIMARY KEY, channel, payload, key)", "lost columns: created_at"),
        (
            "CREATE TABLE copy (id INTEGER PRIMARY KEY, channel, payload, created_at, key)",
            "holds what a log cannot hold",
        ),
    ],
)
def test_a_repair_that_would_lose_something_is_refused(tmp_path: Path, sql: str, why: str) -> None:
    path = tmp_path / "data.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.install(conn, Settings())
        conn.executescript(f"DROP TABLE vpubsub; {sql}; INSERT INTO copy (id) VALUES (1);")
        conn.execute("ALTER TABLE copy RENAME TO vpubsub")
        before = list(conn.iterdump())
        answer = install(path)
        assert answer.returncode == 1
        assert why in answer.stderr
        assert list(conn.iterdump()) == before


def test_further_columns_of_the_users_are_no_alteration(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "data.db", isolation_level=None)) as conn:
        schema.install(conn, Settings())
        conn.execute("ALTER TABLE vpubsub ADD COLUMN origin TEXT")
        assert schema.check(conn)
        conn.execute("INSERT INTO vpubsub (channel, payload, origin) VALUES ('a', 'x', 'here')")
        assert conn.execute("SELECT id, origin FROM vpubsub").fetchall() == [(1, "here")]


def test_every_file_has_an_id_of_its_own(tmp_path: Path) -> None:
    found = set()
    for name in ("a.db", "b.db"):
        with contextlib.closing(sqlite3.connect(tmp_path / name, isolation_level=None)) as conn:
            assert schema.instance_id(conn) is None
            schema.install(conn, Settings())
            first = schema.instance_id(conn)
            schema.install(conn, Settings(max_payload_bytes=2000))
            assert schema.instance_id(conn) == first
            found.add(first)
    assert len(found) == 2
