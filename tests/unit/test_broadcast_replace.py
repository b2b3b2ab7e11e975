"""REPLACE that removes a row by another unique column is published as the deletion that it is."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from datasette_pubsub.broadcast import tables
from datasette_pubsub.broadcast.definition import Broadcast
from datasette_pubsub.broadcast.shape import shape_of
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.objects import REPLACED

KW = "CREATE TABLE kw (id INTEGER PRIMARY KEY, keyword TEXT UNIQUE, place INTEGER)"


@contextlib.contextmanager
def installed(path: Path | str = ":memory:") -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        schema.install(conn, Settings())
        yield conn


def told(conn: sqlite3.Connection, after: int = 0) -> list[Any]:
    """What was published: operation and the row's values, or its key."""
    rows = conn.execute("SELECT channel, payload FROM vpubsub WHERE id > ? ORDER BY id", [after]).fetchall()
    found = []
    for channel, payload in rows:
        message = json.loads(payload)
        row = message.get("new") or message.get("old") or message["key"]
        found.append((channel, message["op"], *row.values()))
    return found


def head(conn: sqlite3.Connection) -> int:
    return int(conn.execute("SELECT coalesce(max(id), 0) FROM vpubsub").fetchone()[0])


@pytest.mark.parametrize("recursive", [0, 1])
def test_what_replace_removes_is_told(recursive: int) -> None:
    """INSERT OR REPLACE, OR IGNORE and an upsert, as programs write them."""
    with installed() as conn:
        conn.execute(f"PRAGMA recursive_triggers = {recursive}")
        conn.execute(KW)
        tables.create(conn, "kw", Broadcast("kw"))
        conn.execute("INSERT INTO kw (keyword, place) VALUES ('k', 1), ('l', 2)")
        conn.execute("INSERT OR REPLACE INTO kw (keyword, place) VALUES ('k', 3)")
        conn.execute("INSERT OR IGNORE INTO kw (keyword, place) VALUES ('l', 9)")
        conn.execute(
            "INSERT INTO kw (keyword, place) VALUES ('l', 8) ON CONFLICT (keyword) DO UPDATE SET place = excluded.place"
        )
        conn.execute("INSERT INTO kw (keyword, place) VALUES ('l', 7) ON CONFLICT DO NOTHING")
        assert told(conn) == [
            ("kw", "insert", 1, "k", 1),
            ("kw", "insert", 2, "l", 2),
            ("kw", "delete", 1, "k", 1),
            ("kw", "insert", 3, "k", 3),
            ("kw", "update", 2, "l", 8),
        ]
        at = head(conn)
        conn.execute("UPDATE OR REPLACE kw SET keyword = 'k' WHERE id = 2")
        conn.execute("INSERT OR REPLACE INTO kw VALUES (4, 'm', 1), (5, 'm', 2), (4, 'k', 3)")
        conn.execute("REPLACE INTO kw SELECT id + 10, keyword, place FROM kw ORDER BY id")
        assert told(conn, at) == [
            ("kw", "delete", 3, "k", 3),
            ("kw", "update", 2, "k", 8),
            ("kw", "insert", 4, "m", 1),
            ("kw", "delete", 4, "m", 1),
            ("kw", "insert", 5, "m", 2),
            ("kw", "delete", 2, "k", 8),
            ("kw", "insert", 4, "k", 3),
            ("kw", "delete", 4, "k", 3),
            ("kw", "insert", 14, "k", 3),
            ("kw", "delete", 5, "m", 2),
            ("kw", "insert", 15, "m", 2),
        ]


def test_nothing_is_told_of_what_was_not_removed() -> None:
    """Failed statements, rollbacks, ignored rows, deletions after them; and notes do not pile up."""
    with installed() as conn:
        conn.execute(KW)
        tables.create(conn, "kw", Broadcast("kw"))
        conn.execute("INSERT INTO kw (keyword, place) VALUES ('k', 1), ('l', 2)")
        at = head(conn)
        for statement in (
            "INSERT INTO kw (keyword) VALUES ('new'), ('k')",
            "INSERT OR FAIL INTO kw (keyword) VALUES ('k')",
            "INSERT OR ROLLBACK INTO kw (keyword) VALUES ('k')",
            "UPDATE kw SET keyword = 'k' WHERE keyword = 'l'",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                conn.execute(statement)
        conn.execute("INSERT OR IGNORE INTO kw (keyword) VALUES ('k'), ('l')")
        conn.execute("BEGIN")
        conn.execute("INSERT OR REPLACE INTO kw (keyword) VALUES ('k')")
        conn.execute("ROLLBACK")
        assert told(conn, at) == []
        conn.execute("DELETE FROM kw WHERE keyword = 'l'")
        conn.execute("UPDATE kw SET id = 7, keyword = 'o' WHERE keyword = 'k'")
        conn.execute("INSERT INTO kw (keyword) VALUES ('k'), ('l')")
        assert [each[1:4] for each in told(conn, at)] == [
            ("delete", 2, "l"), ("delete", 1, "k"), ("insert", 7, "o"), ("insert", 8, "k"), ("insert", 9, "l")
        ]  # fmt: skip
        conn.execute("BEGIN")
        conn.executemany("INSERT INTO kw (keyword) VALUES (?)", [(f"{n}",) for n in range(500)])
        for n in range(500):
            conn.execute(f"INSERT INTO kw (keyword) VALUES ('{n}') ON CONFLICT DO UPDATE SET place = 1")
        conn.execute("COMMIT")
        assert conn.execute(f"SELECT count(*) FROM {REPLACED}").fetchone()[0] < 50


def test_tables_do_not_disturb_each_other_nor_their_own_triggers() -> None:
    """Triggers of the table before and after ours, which change it and other broadcast tables."""
    with installed() as conn:
        conn.executescript(
            f"""{KW};
            CREATE TABLE others (id INTEGER PRIMARY KEY, name UNIQUE);
            CREATE TABLE places (pos INTEGER UNIQUE, what TEXT PRIMARY KEY) WITHOUT ROWID;
            CREATE TRIGGER moves BEFORE INSERT ON kw WHEN NEW.place > 0
            BEGIN
              UPDATE kw SET keyword = keyword || '.', place = -place WHERE place > 0 AND keyword <> NEW.keyword;
              INSERT OR REPLACE INTO others (name) VALUES (NEW.keyword);
            END;
            CREATE TRIGGER counts AFTER INSERT ON kw
            BEGIN
              INSERT OR REPLACE INTO places VALUES (1, NEW.keyword);
              INSERT OR IGNORE INTO kw (keyword) VALUES (NEW.keyword || '-child');
            END;
            """
        )
        for table in ("kw", "others", "places"):
            tables.create(conn, table, Broadcast(table))
        # Newer than ours, and so before them.
        conn.executescript(
            "CREATE TRIGGER later BEFORE INSERT ON kw WHEN NEW.place > 0 "
            "BEGIN INSERT OR REPLACE INTO kw (keyword) VALUES ('inner'); END"
        )
        conn.execute("INSERT INTO kw (keyword, place) VALUES ('a', 1)")
        conn.execute("INSERT INTO kw (keyword, place) VALUES ('b', 2)")
        conn.execute("INSERT OR REPLACE INTO kw (keyword, place) VALUES ('b', 3)")
        conn.execute("INSERT OR REPLACE INTO kw (keyword, place) VALUES ('a', 3)")
        for table in ("kw", "others", "places"):
            check(conn, table)


def rows_of(conn: sqlite3.Connection, table: str) -> dict[str, dict[str, Any]]:
    shape = shape_of(conn, table)
    key = shape.key or ("rowid",)
    names = [column.name for column in shape.columns]
    cursor = conn.execute(f"SELECT {', '.join(key)}, {', '.join(names)} FROM {table}")
    return {
        json.dumps(dict(zip(key, row, strict=False))): dict(zip(names, row[len(key) :], strict=True)) for row in cursor
    }


def check(conn: sqlite3.Connection, table: str) -> None:
    """The messages rebuild the table, and no deletion is told of a row that was not there."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for channel, payload in conn.execute("SELECT channel, payload FROM vpubsub ORDER BY id"):
        message = json.loads(payload)
        if message["table"] != table:
            continue
        rows = found.setdefault(channel, {})
        key = json.dumps(message["key"])
        if message["op"] == "delete":
            assert key in rows, payload
            assert rows.pop(key) == message["old"]
        else:
            rows[key] = message["new"]
    assert {key: row for rows in found.values() for key, row in rows.items()} == rows_of(conn, table), table
    # With a channel for each row, a row is in one of them.
    assert sum(map(len, found.values())) == len(rows_of(conn, table))


#: Tables by name, whose rows hold u, v and n.
TABLES = {
    "plain": "CREATE TABLE plain (id INTEGER PRIMARY KEY, u TEXT UNIQUE, v, n)",
    "two": "CREATE TABLE two (id INTEGER PRIMARY KEY, u TEXT UNIQUE, v UNIQUE, n)",
    "both": "CREATE TABLE both (u TEXT, v, n, UNIQUE (u, v))",
    "loose": "CREATE TABLE loose (u TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, v, n)",
    "bare": "CREATE TABLE bare (u TEXT COLLATE NOCASE, v UNIQUE, n, PRIMARY KEY (u, v)) WITHOUT ROWID",
    "texts": "CREATE TABLE texts (u TEXT PRIMARY KEY NOT NULL, v TEXT COLLATE NOCASE UNIQUE, n)",
    "part": "CREATE TABLE part (id INTEGER PRIMARY KEY, u TEXT, v, n)",
    "keyed": "CREATE TABLE keyed (id INTEGER PRIMARY KEY, u, v, n)",
}
#: Indexes that some of them have, and which of them have channels for their rows.
INDEXES = "CREATE UNIQUE INDEX part_u ON part (u COLLATE NOCASE) WHERE (v IS NOT NULL AND n IN (1, 2))"
PER_ROW = {"keyed": "v", "bare": "n", "two": "n % 2", "loose": "v"}


def change(rng: random.Random) -> str:
    table = rng.choice(list(TABLES))
    how = rng.choice(["", " OR REPLACE", " OR REPLACE", " OR IGNORE", " OR FAIL"])
    u, v, n = (rng.choice(["'a'", "'A'", "'b'", "'c'"]), rng.choice(["'x'", "'X'", "'y'", "1"]), rng.randint(1, 3))
    kind = rng.choice(["insert", "insert", "insert", "many", "upsert", "update", "update", "all", "delete", "key"])
    if kind == "insert":
        if "id INTEGER" in TABLES[table] and rng.random() < 0.5:
            return f"INSERT{how} INTO {table} (id, u, v, n) VALUES ({rng.randint(-1, 5)}, {u}, {v}, {n})"
        return f"INSERT{how} INTO {table} (u, v, n) VALUES ({u}, {v}, {n})"
    if kind == "many":
        return f"INSERT{how} INTO {table} (u, v, n) VALUES ({u}, {v}, 1), ('b', 'x', 2), ('A', {v}, 3), ({u}, 'Y', 1)"
    if kind == "upsert":
        return f"INSERT INTO {table} (u, v, n) VALUES ({u}, {v}, {n}) ON CONFLICT DO UPDATE SET n = n + 1, v = 'y'"
    if kind == "update":
        return f"UPDATE{how} {table} SET u = {u}, n = {n} WHERE v = {v}"
    if kind == "all":
        return f"UPDATE{how} {table} SET v = {v}, n = n + 1"
    if kind == "key":
        key = "id" if "id INTEGER" in TABLES[table] else "u"
        return f"UPDATE{how} {table} SET {key} = {key} || 1, n = {n} WHERE u = {u}"
    return f"DELETE FROM {table} WHERE u = {u}"


@pytest.mark.parametrize("recursive", [0, 1])
@pytest.mark.parametrize("program", ["sqlite3", "apsw"])
@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_the_messages_rebuild_tables_after_any_replace(
    tmp_path_factory: pytest.TempPathFactory, program: str, recursive: int, seed: int
) -> None:
    """After each statement: tables with keys and unique columns of every kind, on two versions of SQLite."""
    rng = random.Random(seed)
    path = tmp_path_factory.mktemp("replace") / "data.db"
    with installed(path) as conn:
        conn.executescript(";".join([*TABLES.values(), INDEXES]))
        for table in TABLES:
            tables.create(conn, table, Broadcast("of/", per_row=PER_ROW.get(table, "")))
        if program == "apsw":
            other: Any = apsw.Connection(str(path))
            other.execute("PRAGMA synchronous = OFF")
        else:
            other = conn
        other.execute(f"PRAGMA recursive_triggers = {recursive}")
        statements = []
        for number in range(60):
            statements.append(change(rng))
            # What REPLACE cannot put right fails, as it would without a broadcast.
            with contextlib.suppress(sqlite3.IntegrityError, apsw.ConstraintError, apsw.MismatchError):
                list(other.execute(statements[-1]))
            if number % 10 == 9:
                for table in TABLES:
                    check(conn, table)
        if program == "apsw":
            other.close()


def test_a_deletion_by_replace_follows_the_conditions_and_the_choices() -> None:
    with installed() as conn:
        conn.execute(KW)
        conditions = {"delete": "OLD.place > 1 AND json_extract(OLD.keyword, '$.a') IS NULL"}
        tables.create(conn, "kw", Broadcast("kw", columns=("place",), conditions=conditions))
        conn.execute("INSERT INTO kw VALUES (1, 'k', 1), (2, 'l', 2), (3, 'm', 3)")
        conn.execute("REPLACE INTO kw VALUES (4, 'k', 4), (5, 'l', 5), (6, 'm', 6)")
        assert told(conn) == [("kw", "delete", 2), ("kw", "delete", 3)]
        tables.create(conn, "kw", Broadcast("kw", conditions={"insert": ""}))
        at = head(conn)
        conn.execute("REPLACE INTO kw VALUES (7, 'k', 4)")
        assert told(conn, at) == [("kw", "insert", 7, "k", 4)]


def test_rows_in_the_way_are_found_by_indexes() -> None:
    """A write looks up what stands in its way, and never reads the table through."""
    with installed() as conn:
        conn.executescript(";".join([*TABLES.values(), INDEXES]))
        for table in TABLES:
            tables.create(conn, table, Broadcast("of/", per_row=PER_ROW.get(table, "")))
            for statement in (
                f"INSERT OR REPLACE INTO {table} (u, v, n) VALUES (1, 2, 3)",
                f"UPDATE OR REPLACE {table} SET u = 1, v = 2 WHERE u = 1 AND v = 2",
                f"DELETE FROM {table} WHERE u = 1 AND v = 2",
            ):
                program = conn.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                # The statement itself is the first; an index that is there for nothing but the condition serves it.
                scans = [row[3] for row in program if row[3].startswith(("SCAN pubsub_now", "SCAN note"))]
                assert scans == [], (statement, scans)


def test_a_unique_expression_or_generated_column_is_named() -> None:
    """The kinds of unique index whose rows are not noted."""
    with installed() as conn:
        conn.execute(KW)
        assert not shape_of(conn, "kw").replaces_untold
        conn.execute("CREATE UNIQUE INDEX by_lower ON kw (lower(keyword))")
        shape = shape_of(conn, "kw")
        assert (shape.replaces_silently, shape.replaces_untold) == (True, True)
        tables.create(conn, "kw", Broadcast("kw"))
        conn.execute("REPLACE INTO kw (keyword) VALUES ('a')")
        conn.execute("REPLACE INTO kw (keyword) VALUES ('a')")
        conn.execute("CREATE UNIQUE INDEX by_part ON kw (place) WHERE lower(keyword) = 'a'")
        assert shape_of(conn, "kw").replaces_untold
        conn.execute("CREATE TABLE made (id INTEGER PRIMARY KEY, u TEXT, v, w AS (u || v) UNIQUE)")
        assert shape_of(conn, "made").replaces_untold
