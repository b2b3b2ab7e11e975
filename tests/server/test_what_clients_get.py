"""What a client gets back from ``vpubsub``: what it gets from any table of SQLite.

A key that is there already adds nothing and returns no row, however it is inserted.
The clients are sqlite3, the sqlite3 shell, sqlite-utils and Datasette's write API.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import itsdangerous
import pytest
import sqlite_utils
from click.testing import CliRunner
from servers import OPEN, Server, sqlite_shell
from sqlite_utils.cli import cli

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
GIVEN = "2026-01-31T12:00:00.000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the log in it, and one message: id 1, channel c, key first."""
    path = tmp_path / "data.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.set_durability(conn, Settings())
        schema.install(conn, Settings())
        conn.execute("CREATE TABLE existing (id INTEGER PRIMARY KEY, text)")
        conn.execute("INSERT INTO vpubsub (channel, payload, key) VALUES ('c', 'stored', 'first')")
    return path


@pytest.fixture
def conn(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        yield conn


def log(path: Path) -> list[Any]:
    """What was published after the first message, which must be as it was: (id, channel, payload, key)."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        first, *others = conn.execute("SELECT id, channel, payload, key FROM vpubsub ORDER BY id").fetchall()
        times = [time for (time,) in conn.execute("SELECT created_at FROM vpubsub")]
        (probes,) = conn.execute("SELECT count(*) FROM _pubsub_probe").fetchone()
    assert first == (1, "c", "stored", "first")
    assert all(TIME.fullmatch(time) for time in times), times
    assert probes == 0, "the guard leaves nothing behind"
    return others


# -- SQL --------------------------------------------------------------------------


def changed(conn: sqlite3.Connection) -> tuple[int, int]:
    return tuple(conn.execute("SELECT changes(), last_insert_rowid()").fetchone())


def test_an_insert_gives_its_row(conn: sqlite3.Connection, path: Path) -> None:
    (row,) = conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('c', 'x') RETURNING *").fetchall()
    assert (row[:3], row[4]) == ((2, "c", "x"), None)
    assert TIME.fullmatch(row[3])
    assert changed(conn) == (1, 2)
    cursor = conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('c', 'y')")
    assert (cursor.rowcount, cursor.lastrowid) == (1, 3)
    assert log(path) == [(2, "c", "x", None), (3, "c", "y", None)]


def test_many_rows(conn: sqlite3.Connection, path: Path) -> None:
    sql = "INSERT INTO vpubsub (channel, payload, key) VALUES (?, ?, ?)"
    rows = [("c", "x", "a"), ("c", "not stored", "first"), ("c", "y", None), ("c", "not stored", "a")]
    assert conn.executemany(sql, rows).rowcount == 2, "those that were stored"
    found = conn.execute(
        "INSERT INTO vpubsub (channel, payload, key) SELECT 'd', value, 'k' || value FROM json_each('[5,6,5]') "
        "RETURNING id, payload"
    ).fetchall()
    assert found == [(4, 5), (5, 6)]
    assert changed(conn) == (2, 5)
    several = "INSERT INTO vpubsub (channel, payload) VALUES ('d', 'x'), ('d', 'y') RETURNING id"
    assert conn.execute(several).fetchall() == [(6,), (7,)]
    stored = [(2, "c", "x", "a"), (3, "c", "y", None), (4, "d", 5, "k5"), (5, "d", 6, "k6")]
    assert log(path) == [*stored, (6, "d", "x", None), (7, "d", "y", None)]


#: Every way to insert a message with a key, by what stands before and after the values.
WITH_A_KEY = {
    "plain": ("INSERT", ""),
    "or ignore": ("INSERT OR IGNORE", ""),
    "or replace": ("INSERT OR REPLACE", ""),
    "replace": ("REPLACE", ""),
    "or abort": ("INSERT OR ABORT", ""),
    "or fail": ("INSERT OR FAIL", ""),
    "or rollback": ("INSERT OR ROLLBACK", ""),
    "do nothing": ("INSERT", "ON CONFLICT DO NOTHING"),
    "do nothing, named": ("INSERT", "ON CONFLICT (channel, key) DO NOTHING"),
    "upsert": ("INSERT", "ON CONFLICT (channel, key) DO UPDATE SET payload = excluded.payload"),
    "upsert where": ("INSERT", "ON CONFLICT (channel, key) DO UPDATE SET payload = 'x' WHERE true"),
}


@pytest.mark.parametrize("way", WITH_A_KEY)
def test_a_key_that_is_there_adds_nothing_and_changes_nothing(conn: sqlite3.Connection, path: Path, way: str) -> None:
    insert, conflict = WITH_A_KEY[way]
    sql = f"{insert} INTO vpubsub (channel, payload, key) VALUES (?, ?, ?) {conflict} RETURNING id"
    assert conn.execute(sql, ("c", "new", "second")).fetchall() == [(2,)]
    assert changed(conn) == (1, 2)
    conn.execute("INSERT INTO existing (id) VALUES (77)")
    for key in ("first", "second"):
        assert conn.execute(sql, ("c", "again", key)).fetchall() == []
    assert changed(conn) == (0, 77), "the id of the insert before"
    assert conn.execute(sql, ("another", "new", "first")).fetchall() == [(3,)], "a key belongs to its channel"
    assert log(path) == [(2, "c", "new", "second"), (3, "another", "new", "first")]


@pytest.mark.parametrize(
    ("insert", "conflict"),
    [
        ("INSERT", ""),
        ("INSERT", "ON CONFLICT DO NOTHING"),
        ("INSERT", "ON CONFLICT (channel, key) DO NOTHING"),
        ("INSERT OR REPLACE", ""),
    ],
)
def test_null_means_the_default(conn: sqlite3.Connection, path: Path, insert: str, conflict: str) -> None:
    """As ORMs send it for columns that are not set."""
    sql = f"{insert} INTO vpubsub (id, channel, payload, created_at, key) VALUES (?, ?, ?, ?, ?) {conflict}"
    found = conn.execute(f"{sql} RETURNING id, created_at, key", (None, "c", "x", None, None)).fetchall()
    assert len(found) == 1
    assert TIME.fullmatch(found[0][1])
    assert (found[0][0], found[0][2]) == (2, None)
    assert conn.execute(f"{sql} RETURNING created_at", (None, "c", "y", GIVEN, "k")).fetchall() == [(GIVEN,)]
    assert conn.execute(f"{sql} RETURNING id", (None, "c", "again", None, "k")).fetchall() == []
    assert log(path) == [(2, "c", "x", None), (3, "c", "y", "k")]


def test_null_under_or_ignore_is_stored(conn: sqlite3.Connection, path: Path) -> None:
    """A message without a key is never lost under OR IGNORE; NULL for ``created_at`` alone costs the returned row."""
    sql = "INSERT OR IGNORE INTO vpubsub (id, channel, payload, key) VALUES (NULL, 'c', 'x', ?) RETURNING id"
    assert conn.execute(sql, (None,)).fetchall() == [(2,)]
    assert conn.execute(sql, ("k",)).fetchall() == [(3,)]
    with_time = "INSERT OR IGNORE INTO vpubsub (channel, payload, created_at, key) VALUES ('c', 'y', NULL, ?)"
    for key in (None, "k2", "k2", "first", "k"):
        conn.execute(with_time, (key,))
    assert log(path) == [(2, "c", "x", None), (3, "c", "x", "k"), (4, "c", "y", None), (5, "c", "y", "k2")]


@pytest.mark.parametrize("insert", ["INSERT", "INSERT OR IGNORE", "INSERT OR REPLACE", "INSERT OR FAIL"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 7}, "message ids are given by the log"),
        ({"id": 1}, "message ids are given by the log"),
        ({"channel": None}, "channel is NULL"),
        ({"channel": ""}, "channel is empty"),
        ({"payload": None}, "payload is NULL"),
        ({"key": ""}, "key must be text"),
        ({"key": 5.5, "channel": b"c"}, "channel must be text"),
        ({"created_at": "2026-01-31 12:00:00.000000"}, "created_at must be UTC like 2026-01-31T12:00:00.000Z"),
        ({"created_at": ""}, "created_at must be UTC like 2026-01-31T12:00:00.000Z"),
    ],
)
def test_a_bad_message_is_never_dropped_in_silence(
    conn: sqlite3.Connection, path: Path, insert: str, row: dict[str, Any], said: str
) -> None:
    values = {"channel": "c", "payload": "x", **row}
    sql = f"{insert} INTO vpubsub ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
    with pytest.raises(sqlite3.IntegrityError, match=said):
        conn.execute(sql, list(values.values()))
    assert log(path) == []


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE vpubsub SET payload = 'x'",
        "UPDATE OR IGNORE vpubsub SET key = NULL",
        "UPDATE OR REPLACE vpubsub SET id = 9",
        "DELETE FROM vpubsub",
    ],
)
def test_messages_are_not_changed(conn: sqlite3.Connection, path: Path, sql: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="vpubsub is append-only"):
        conn.execute(sql)
    assert log(path) == []


# -- the sqlite3 shell ----------------------------------------------------------------


def test_the_shell_gives_back_what_was_published(path: Path) -> None:
    """The statements of somebody who asked where the id of their message is."""
    said = sqlite_shell(
        path,
        """
        INSERT INTO vpubsub (channel, payload) VALUES ('c', 'x') RETURNING id, channel, created_at;
        SELECT changes(), last_insert_rowid();
        INSERT INTO vpubsub (channel, payload, key) VALUES ('c', 'x', 'k') ON CONFLICT DO NOTHING;
        SELECT changes(), last_insert_rowid();
        INSERT INTO vpubsub (channel, payload, key) VALUES ('c', 'x', 'k') ON CONFLICT DO NOTHING;
        SELECT changes(), last_insert_rowid();
        """,
    ).splitlines()
    assert re.fullmatch(rf"2\|c\|{TIME.pattern}", said[0])
    assert said[1:] == ["1|2", "1|3", "0|3"]


def test_a_csv_is_imported_through_a_table_of_its_own(path: Path, tmp_path: Path) -> None:
    """``.import`` fills the columns from the left, and ``id`` takes no text: as with any table that has one."""
    (tmp_path / "with.csv").write_text("channel,payload,key\nc,one,\nc,two,k\nc,again,first\n")
    (tmp_path / "without.csv").write_text('c,"three, ""3"""\nd,four\n')
    sqlite_shell(
        path,
        "CREATE TEMP TABLE wide (channel, payload, key);\n"
        "CREATE TEMP TABLE narrow (channel, payload);\n"
        f".import --csv --skip 1 --schema temp {tmp_path / 'with.csv'} wide\n"
        f".import --csv --schema temp {tmp_path / 'without.csv'} narrow\n"
        "INSERT INTO vpubsub (channel, payload, key) SELECT channel, payload, nullif(key, '') FROM wide;\n"
        "INSERT INTO vpubsub (channel, payload) SELECT channel, payload FROM narrow;\n",
    )
    narrow = [(4, "c", 'three, "3"', None), (5, "d", "four", None)]
    assert log(path) == [(2, "c", "one", None), (3, "c", "two", "k"), *narrow]


def test_a_csv_that_does_not_fit_is_refused_row_by_row(path: Path, tmp_path: Path) -> None:
    """Nothing of it gets into the log, and the shell says which lines."""
    (tmp_path / "c.csv").write_text("c,one,k\n,c,two,,\n7,c,three,,\n")
    done = subprocess.run(
        ["sqlite3", str(path), f".import --csv {tmp_path / 'c.csv'} vpubsub"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert re.findall(r"c\.csv:(\d): INSERT failed: (.*)", done.stderr) == [
        ("1", "datatype mismatch"),
        ("2", "datatype mismatch"),
        ("3", "message ids are given by the log, not by the publisher"),
    ]
    assert log(path) == []


def test_mode_insert_and_dump_go_round(path: Path, tmp_path: Path) -> None:
    sqlite_shell(path, "INSERT INTO vpubsub (channel, payload) VALUES ('c', 'it''s'), ('d', x'00ff'), ('d', 5)")
    statements = sqlite_shell(
        path, ".headers on\n.mode insert vpubsub\nSELECT channel, payload, created_at, key FROM vpubsub"
    )
    rows = "SELECT channel, payload, created_at, key FROM vpubsub ORDER BY id"
    before = sqlite_shell(path, rows)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other, isolation_level=None)) as conn:
        schema.install(conn, Settings())
    sqlite_shell(other, statements)
    assert sqlite_shell(other, rows) == before
    sqlite_shell(path, statements + "DELETE FROM vpubsub WHERE false")
    assert [row[0] for row in log(path)] == [2, 3, 4, 5, 6, 7], "what has no key is published again"

    restored = tmp_path / "restored.db"
    sqlite_shell(restored, sqlite_shell(path, ".dump"))
    everything = "SELECT * FROM vpubsub ORDER BY id"
    assert sqlite_shell(restored, everything) == sqlite_shell(path, everything)
    more = "INSERT INTO vpubsub (channel, payload) VALUES ('c', 'more') RETURNING id"
    assert sqlite_shell(restored, more) == "8\n"


# -- sqlite-utils -------------------------------------------------------------------


def utils(path: Path, command: str, rows: list[dict[str, Any]] | str, *options: str, fails: bool = False) -> str:
    """Run sqlite-utils with these rows; what it said."""
    form = ["--csv"] if isinstance(rows, str) else []
    command_line = [command, str(path), "vpubsub", "-", *form, *options]
    done = CliRunner().invoke(cli, command_line, input=rows if isinstance(rows, str) else json.dumps(rows))
    assert bool(done.exit_code) == fails, done.output
    return done.output


def test_sqlite_utils_from_the_command_line(path: Path) -> None:
    utils(path, "insert", [{"channel": "c", "payload": "x"}, {"channel": "c", "payload": {"a": 1}, "key": "k"}])
    known = [{"channel": "c", "payload": "again", "key": "k"}, {"channel": "c", "payload": "again", "key": "first"}]
    utils(path, "insert", known)
    utils(path, "insert", known, "--ignore")
    utils(path, "insert", known, "--replace")
    utils(path, "upsert", known, "--pk", "channel", "--pk", "key")
    utils(path, "upsert", [{"channel": "c", "payload": "z", "key": "u"}], "--pk", "channel", "--pk", "key")
    utils(path, "insert", "channel,payload,key\ncsv,one,\ncsv,two,k\n", "--empty-null")
    utils(path, "insert", "channel,payload\ncsv,three\n")
    assert log(path) == [
        (2, "c", "x", None),
        (3, "c", '{"a": 1}', "k"),
        (4, "c", "z", "u"),
        (5, "csv", "one", None),
        (6, "csv", "two", "k"),
        (7, "csv", "three", None),
    ]
    assert "key must be text" in utils(path, "insert", "channel,payload,key\nc,empty,\n", fails=True)
    assert "given by the log" in utils(path, "upsert", [{"id": 1, "channel": "c"}], "--pk", "id", fails=True)
    assert len(log(path)) == 6


def test_the_library_sqlite_utils(conn: sqlite3.Connection, path: Path) -> None:
    table = sqlite_utils.Database(conn)["vpubsub"]
    message = {"channel": "c", "payload": "x"}
    assert table.insert(message).last_pk == 2
    assert table.insert({**message, "key": "k"}).last_pk == 3
    assert table.insert({**message, "key": "k"}, ignore=True).last_pk is None
    assert table.insert({**message, "key": "k2"}, ignore=True).last_pk == 4
    assert table.insert({"id": None, **message, "created_at": None, "key": None}).last_pk == 5
    table.insert_all([message, {**message, "key": "first"}, {**message, "key": "k3"}])
    for _ in range(2):
        assert table.upsert({**message, "key": "k4"}, pk=("channel", "key")).last_pk == ("c", "k4")
    keys = [None, "k", "k2", None, None, "k3", "k4"]
    assert log(path) == [(number, "c", "x", key) for number, key in enumerate(keys, 2)]


# -- Datasette's write API -----------------------------------------------------------


def test_the_write_api(path: Path, serve: Callable[..., Server]) -> None:
    config = {"permissions": {**OPEN["permissions"], "insert-row": True, "update-row": True}}
    server = serve(config=config)
    token = itsdangerous.URLSafeSerializer("tests", "actor").dumps({"a": {"id": "root"}})
    client = httpx.Client(base_url=f"{server.url}/data/vpubsub/-/", cookies={"ds_actor": token}, timeout=30)

    def insert(rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        answer = client.post("insert", json={"rows": rows, "return": True, **options})
        assert answer.status_code == 201, answer.text
        return list(answer.json()["rows"])

    message = {"channel": "c", "payload": "x"}
    with client:
        (one,) = insert([message])
        assert TIME.fullmatch(one.pop("created_at"))
        assert one == {"id": 2, **message, "key": None}
        assert [row["id"] for row in insert([message, {**message, "key": "k"}])] == [3, 4]
        assert [row["id"] for row in insert([{**message, "key": "k2", "created_at": None}])] == [5]
        assert insert([{**message, "key": "first"}, {**message, "key": "k2"}], ignore=True) == []
        assert [row["id"] for row in insert([{**message, "key": "k3"}, {**message, "key": "k"}], ignore=True)] == [6]
        for answer, said in [
            (client.post("insert", json={"row": {"channel": "", "payload": "x"}}), "channel is empty"),
            (client.post("insert", json={"row": {"id": 9, **message}}), "given by the log"),
            (client.post("upsert", json={"rows": [{"id": 1, "payload": "y"}]}), "given by the log"),
        ]:
            assert answer.status_code in (400, 403), answer.text
            assert said in answer.text
    keys = [None, None, "k", "k2", "k3"]
    assert log(path) == [(number, "c", "x", key) for number, key in enumerate(keys, 2)]
