"""Whole schemas, with foreign keys and triggers of their own: all tables broadcast, and changed at random.

Each statement runs in two files, of which one has no broadcast: it must do the
same in both, so that no program's write fails, or counts otherwise, because a
table is broadcast. And the messages rebuild every table.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from datasette_pubsub.broadcast import tables as broadcast_file
from datasette_pubsub.broadcast.definition import Broadcast
from datasette_pubsub.broadcast.shape import shape_of
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.quoting import identifier


@dataclass(frozen=True)
class Of:
    """A schema: its text, for each column what its values may be, and what is made after the broadcast."""

    create: str
    values: dict[str, list[Any]]
    later: str = ""


IDS, NAMES = [1, 2, 3, 4, 5], ["a", "A", "b", "B ", "ü☃", "", "[1]", "a\0b"]
BLOBS = [b"", b"\x00\xff", b"{}", bytes(32), b"\x01" * 32]
NUMBERS = [0, 1, -1, 19.99, 1e300, -0.0, 2**53 + 1, float("inf")]

SCHEMAS = {
    # A shop: foreign keys with every action, also of a table to itself; composite keys; a view that takes inserts.
    "shop": Of(
        """
        CREATE TABLE staff (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
          boss INTEGER REFERENCES staff ON DELETE SET NULL ON UPDATE CASCADE);
        CREATE TABLE orders (id INTEGER PRIMARY KEY, seller INTEGER NOT NULL DEFAULT 1 REFERENCES staff
          ON DELETE CASCADE ON UPDATE CASCADE, price REAL);
        CREATE TABLE "order details" ("order" INTEGER NOT NULL REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE,
          name VARCHAR(9) NOT NULL, price NUMERIC, PRIMARY KEY ("order", name));
        CREATE TABLE territories (name NCHAR(5) NOT NULL, seller INTEGER REFERENCES staff (id) ON DELETE SET DEFAULT
          DEFAULT 1, PRIMARY KEY (name));
        CREATE VIEW sellers AS SELECT id, name FROM staff;
        CREATE TRIGGER sellers_insert INSTEAD OF INSERT ON sellers
          BEGIN INSERT OR REPLACE INTO staff (id, name) VALUES (NEW.id, NEW.name); END;
        """,
        {"id": IDS, "name": NAMES, "boss": [None, *IDS], "seller": IDS, "order": IDS, "price": NUMBERS},
    ),
    # A library: triggers that fill columns in, guard by RAISE, and take away what belongs to a row.
    "library": Of(
        """
        CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT NOT NULL DEFAULT 'Unknown' COLLATE NOCASE, sort TEXT,
          touched INTEGER NOT NULL DEFAULT 0);
        CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE NOCASE, UNIQUE (name));
        CREATE TABLE books_tags (id INTEGER PRIMARY KEY, book INTEGER NOT NULL, tag INTEGER NOT NULL,
          UNIQUE (book, tag));
        CREATE INDEX books_sort ON books (sort COLLATE NOCASE);
        CREATE TRIGGER books_inserted AFTER INSERT ON books
          BEGIN UPDATE books SET sort = upper(NEW.title) WHERE id = NEW.id AND sort IS NOT upper(NEW.title); END;
        CREATE TRIGGER books_updated AFTER UPDATE OF title ON books WHEN OLD.title <> NEW.title COLLATE BINARY
          BEGIN UPDATE books SET sort = upper(NEW.title), touched = touched + 1 WHERE id = NEW.id; END;
        CREATE TRIGGER books_deleted AFTER DELETE ON books
          BEGIN DELETE FROM books_tags WHERE book = OLD.id; END;
        CREATE TRIGGER tags_deleted BEFORE DELETE ON tags
          BEGIN SELECT CASE WHEN EXISTS (SELECT 1 FROM books_tags WHERE tag = OLD.id)
            THEN RAISE(ABORT, 'constraint failed: tag is in use') END; END;
        CREATE TRIGGER link_inserted BEFORE INSERT ON books_tags
          BEGIN SELECT CASE WHEN NOT EXISTS (SELECT 1 FROM books WHERE id = NEW.book)
            THEN RAISE(IGNORE) END; INSERT OR IGNORE INTO tags (id, name) VALUES (NEW.tag, 'tag ' || NEW.tag); END;
        """,
        {"id": IDS, "title": NAMES, "sort": NAMES, "touched": IDS, "name": NAMES, "book": IDS, "tag": IDS},
    ),
    # Triggers that are made after the broadcast, as Firefox has them in its connections: SQLite runs them before ours.
    "later": Of(
        "CREATE TABLE touched (id INTEGER PRIMARY KEY, name TEXT UNIQUE COLLATE NOCASE, number INTEGER DEFAULT 0)",
        {"id": IDS, "name": NAMES, "number": IDS},
        """
        CREATE TEMP TRIGGER inserted AFTER INSERT ON main.touched
          BEGIN UPDATE touched SET number = number + 1 WHERE id = NEW.id; END;
        CREATE TEMP TRIGGER renamed AFTER UPDATE OF name ON main.touched WHEN NEW.name IS NOT OLD.name
          BEGIN UPDATE touched SET number = 5 WHERE id = NEW.id; DELETE FROM touched WHERE id = NEW.id + 1; END;
        CREATE TEMP TRIGGER removed AFTER INSERT ON main.touched WHEN NEW.number > 3
          BEGIN DELETE FROM touched WHERE id = NEW.id; END;
        """,
    ),
    # A store of blobs: STRICT, WITHOUT ROWID, keys of blobs, generated columns, and totals kept by triggers.
    "store": Of(
        """
        CREATE TABLE packs (pack INTEGER PRIMARY KEY, state INTEGER NOT NULL, digest BLOB) STRICT;
        CREATE TABLE segments (pack INTEGER NOT NULL REFERENCES packs ON DELETE CASCADE, number INTEGER NOT NULL,
          bytes BLOB NOT NULL, size INTEGER AS (length(bytes)) STORED, PRIMARY KEY (pack, number))
          STRICT, WITHOUT ROWID;
        CREATE TABLE objects (digest BLOB PRIMARY KEY CHECK (length(digest) = 32), pack INTEGER NOT NULL,
          number INTEGER NOT NULL, label ANY, shown TEXT AS (json_array(typeof(label))) VIRTUAL,
          FOREIGN KEY (pack, number) REFERENCES segments ON DELETE CASCADE ON UPDATE CASCADE)
          STRICT, WITHOUT ROWID;
        CREATE TABLE settings (key TEXT NOT NULL PRIMARY KEY COLLATE NOCASE, bytes BLOB) WITHOUT ROWID;
        CREATE TABLE totals (state INTEGER PRIMARY KEY CHECK (state = 1), number INTEGER NOT NULL) STRICT;
        INSERT INTO totals VALUES (1, 0);
        CREATE TRIGGER segments_inserted AFTER INSERT ON segments
          BEGIN UPDATE totals SET number = number + NEW.size; END;
        CREATE TRIGGER segments_updated AFTER UPDATE ON segments
          BEGIN UPDATE totals SET number = number + NEW.size - OLD.size; END;
        CREATE TRIGGER segments_deleted AFTER DELETE ON segments
          BEGIN UPDATE totals SET number = number - OLD.size; END;
        """,
        {"pack": IDS, "state": IDS, "digest": BLOBS, "number": [1, 2], "bytes": BLOBS, "key": NAMES,
         "label": [None, *NUMBERS, *NAMES, *BLOBS]},
    ),
}  # fmt: skip

#: What a schema refuses by itself.
REFUSED = (sqlite3.IntegrityError,)


def tables_of(create: str) -> list[str]:
    """The tables of a schema."""
    with contextlib.closing(sqlite3.connect(":memory:")) as conn:
        conn.executescript(create)
        rows = conn.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        ).fetchall()
    return [row[0] for row in rows]


def columns_of(conn: sqlite3.Connection, table: str) -> dict[str, bool]:
    """A table's columns, and whether they are generated."""
    return {row[0]: row[1] > 1 for row in conn.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", [table])}


@contextlib.contextmanager
def two_files(create: str) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    """The schema in two files: with broadcasts of all tables, and with triggers that do nothing.

    Any trigger at all has SQLite count a statement's broken foreign keys at its end, and not row by row.
    """
    with contextlib.ExitStack() as stack:
        one, two = (
            stack.enter_context(contextlib.closing(sqlite3.connect(":memory:", isolation_level=None))) for _ in "12"
        )
        one.executescript(create)
        two.executescript(create)
        schema.install(one, Settings())
        for table in tables_of(create):
            broadcast_file.create(one, table, Broadcast(f"changes/{table}"))
            for number, operation in enumerate(("INSERT", "UPDATE", "DELETE")):
                name = identifier(f"idle {table} {number}")
                two.execute(f"CREATE TRIGGER {name} AFTER {operation} ON {identifier(table)} BEGIN SELECT 1; END")
        yield one, two


def change(rng: random.Random, conn: sqlite3.Connection, tables: list[str], of: Of) -> tuple[str, list[Any]]:
    """One statement with its values."""
    table = rng.choice(tables)
    columns = [name for name, generated in columns_of(conn, table).items() if not generated]
    name, picked = identifier(table), rng.sample(columns, rng.randint(1, len(columns)))
    how = rng.choice(["", "", " OR REPLACE", " OR REPLACE", " OR IGNORE", " OR FAIL"])
    at = rng.choice(columns)
    if rng.random() < 0.5:
        if rng.random() < 0.8:
            picked = columns
        rows = rng.choice([1, 1, 2])
        row = f"({', '.join('?' * len(picked))})"
        upsert = f" ON CONFLICT DO UPDATE SET {identifier(at)} = excluded.{identifier(at)}" if not how else ""
        return (
            f"INSERT{how} INTO {name} ({', '.join(map(identifier, picked))}) VALUES {', '.join([row] * rows)}{upsert}",
            [rng.choice(of.values[column]) for _ in range(rows) for column in picked],
        )
    where, value = f"WHERE {identifier(at)} = ?", rng.choice(of.values[at])
    if rng.random() < 0.6:
        sets = ", ".join(f"{identifier(column)} = ?" for column in picked)
        return f"UPDATE{how} {name} SET {sets} {where}", [*(rng.choice(of.values[c]) for c in picked), value]
    return f"DELETE FROM {name} {where}", [value]


def outcome(conn: sqlite3.Connection, sql: str, values: list[Any]) -> Any:
    """What a program is told of its statement: the rows that it changed, the rowid that it got, or the error."""
    try:
        changed = conn.execute(sql, values).rowcount
    except REFUSED as error:
        return str(error)
    got = conn.execute("SELECT last_insert_rowid()").fetchone() if sql.startswith("INSERT") and changed > 0 else None
    return changed, got


def value_of(found: Any) -> tuple[str, str]:
    value = bytes.fromhex(found["hex"]) if isinstance(found, dict) else found
    return type(value).__name__, repr(value)


def rows_of(conn: sqlite3.Connection, table: str) -> dict[Any, dict[str, Any]]:
    """The rows of a table by their keys, with the types of their values."""
    names, key = list(columns_of(conn, table)), shape_of(conn, table).key
    rows = (dict(zip(names, map(value_of, row), strict=True)) for row in conn.execute(
        f"SELECT {', '.join(map(identifier, names))} FROM {identifier(table)}"
    ))  # fmt: skip
    return {tuple(row[name] for name in key): row for row in rows}


#: Tables in which the change of a row may change the same row again before it is told: SQLite runs the action of a
#: foreign key, and a newer trigger, before our trigger, and that change is told first.
CHANGES_ITSELF = ("staff", "touched")


class Follower:
    """Rebuilds all tables from their messages, and checks the old values against what was told before."""

    def __init__(self, conn: sqlite3.Connection, tables: list[str]) -> None:
        self._conn = conn
        self._rows = {table: rows_of(conn, table) for table in tables}
        self._at = 0

    def check(self) -> None:
        for at, payload in self._conn.execute("SELECT id, payload FROM vpubsub WHERE id > ? ORDER BY id", [self._at]):
            self._at, message = at, json.loads(payload)
            rows = self._rows[message["table"]]
            key = tuple(map(value_of, message["key"].values()))
            old, new = (
                {name: value_of(value) for name, value in message.get(which, {}).items()} for which in ("old", "new")
            )
            if message["table"] not in CHANGES_ITSELF and message["op"] != "insert":
                assert rows[key] == old, payload
            if message["op"] == "delete":
                rows.pop(key, None)
            else:
                rows[key] = new
        for table, rows in self._rows.items():
            assert rows == rows_of(self._conn, table), table

    @property
    def messages(self) -> int:
        return self._at


@pytest.mark.parametrize("recursive", [0, 1])
@pytest.mark.parametrize("foreign_keys", [1, 0])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_does_the_same_and_is_rebuilt(name: str, foreign_keys: int, recursive: int) -> None:
    """Inserts, upserts, REPLACE, cascades and triggers of the schema, in transactions that may be rolled back."""
    of, rng = SCHEMAS[name], random.Random(f"{name} {foreign_keys} {recursive}")
    tables = tables_of(of.create)
    with two_files(of.create) as (one, two):
        for conn in (one, two):
            conn.executescript(of.later)
            conn.execute(f"PRAGMA foreign_keys = {foreign_keys}")
            conn.execute(f"PRAGMA recursive_triggers = {recursive}")
        follower = Follower(one, tables)
        done = 0
        for number in range(60):
            script: list[tuple[str, list[Any]]] = [("BEGIN", []), ("SAVEPOINT a", [])]
            script += [change(rng, one, tables, of) for _ in range(rng.randint(1, 12))]
            script += [("ROLLBACK TO a", [])] if rng.random() < 0.15 else []
            if name == "shop":
                script.append(("INSERT INTO sellers VALUES (?, ?)", [rng.choice(IDS), rng.choice(NAMES)]))
            for sql, values in [*script, ("COMMIT" if rng.random() < 0.85 else "ROLLBACK", [])]:
                told = outcome(one, sql, values)
                assert told == outcome(two, sql, values), (sql, values)
                done += isinstance(told, tuple) and told[0] > 0
            if number % 5 == 4:
                follower.check()
        for table in tables:
            assert rows_of(one, table) == rows_of(two, table), table
        # The changes were not all refused.
        assert done > 100
        assert follower.messages > 100
