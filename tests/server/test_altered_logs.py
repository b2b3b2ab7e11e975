"""A log that somebody has altered, rebuilt or made newer: it is named and repaired, or left as it is."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import sqlite_utils
from old_logs import install, make_version_1
from servers import Server, Sse, sqlite_shell, wait_for

from datasette_pubsub.core.errors import SchemaConflict
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
