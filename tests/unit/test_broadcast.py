"""Broadcasts: triggers in a file, and what they publish when other programs write."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from broadcasts import opened, value_of
from click.testing import CliRunner

from datasette_pubsub.broadcast import definition as text
from datasette_pubsub.broadcast import tables
from datasette_pubsub.broadcast.definition import Broadcast
from datasette_pubsub.broadcast.shape import shape_of
from datasette_pubsub.cli import main
from datasette_pubsub.core.errors import InvalidArgument, NotFound

WIDE = ", ".join(f"c{n}" for n in range(150))


# -- what is published --------------------------------------------------------


def published(conn: sqlite3.Connection) -> list[tuple[str, Any]]:
    """Channels and messages of the log, which is read up to its end."""
    rows = conn.execute("SELECT channel, payload FROM vpubsub ORDER BY id").fetchall()
    conn.execute("INSERT INTO _pubsub_released SELECT DISTINCT channel, 1 << 60 FROM vpubsub")
    conn.execute("DELETE FROM vpubsub")
    conn.execute("DELETE FROM _pubsub_released")
    return [(channel, json.loads(payload)) for channel, payload in rows]


def test_reals_are_short_where_that_is_exact() -> None:
    texts = ["19.99", "0.1", "-1234567.89", "2.0", "1e-09", "0.30000000000000004", "1e+300", "0.0"]
    with opened() as conn:
        conn.execute("CREATE TABLE prices (id INTEGER PRIMARY KEY, price REAL)")
        tables.create(conn, "prices", Broadcast("prices"))
        conn.executemany("INSERT INTO prices (price) VALUES (?)", [(float(number),) for number in texts])
        found = [row[0] for row in conn.execute("SELECT payload FROM vpubsub ORDER BY id")]
    assert [json.loads(payload)["new"]["price"] for payload in found] == [float(number) for number in texts]
    for number, payload in zip(texts[:4], found, strict=False):
        assert f'"price":{number}}}' in payload


def test_chosen_columns_operations_and_conditions() -> None:
    with opened() as conn:
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name, price, secret)")
        conditions = {"insert": "NEW.price > 1", "update": "NEW.price IS NOT OLD.price AND NEW.name <> ')'"}
        wanted = Broadcast("prices", columns=("price",), old=False, conditions=conditions)
        tables.create(conn, "items", wanted)
        conn.execute("INSERT INTO items VALUES (1, 'a', 1, 'x'), (2, 'b', 2, 'x')")
        conn.execute("UPDATE items SET secret = 'y', name = 'c'")
        conn.execute("UPDATE items SET price = price + 1")
        conn.execute("DELETE FROM items")
        update = {"op": "update", "table": "items"}
        assert published(conn) == [
            ("prices", {"op": "insert", "table": "items", "key": {"id": 2}, "new": {"price": 2}}),
            ("prices", {**update, "key": {"id": 1}, "new": {"price": 2}}),
            ("prices", {**update, "key": {"id": 2}, "new": {"price": 3}}),
        ]
        tables.create(conn, "items", Broadcast("keys", new=False, old=False))
        conn.execute("INSERT INTO items (id) VALUES (1)")
        conn.execute("UPDATE items SET id = id")
        conn.execute("UPDATE items SET name = 'a'")
        conn.execute("DELETE FROM items")
        assert published(conn) == [
            ("keys", {"op": operation, "table": "items", "key": {"id": 1}}) for operation in text.OPERATIONS
        ]


def test_a_channel_for_each_row() -> None:
    """A row that moves is gone from where it was; values that no channel has go to the beginning alone."""
    with opened() as conn:
        conn.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, channel, value)")
        tables.create(conn, "items", Broadcast("of/", per_row="channel || ')'", old=False))
        for value in ("'ada'", "NULL", "7", "x'00'", "char(97, 0)", "printf('%300d', 1)"):
            conn.execute(f"INSERT INTO items (channel) VALUES ({value})")
        assert [channel for channel, _ in published(conn)] == ["of/ada)", "of/", "of/7)", "of/", "of/", "of/"]
        conn.execute("UPDATE items SET channel = 'bob' WHERE id = 1")
        conn.execute("UPDATE items SET value = 1 WHERE id = 1")
        conn.execute("DELETE FROM items WHERE id = 1")
        assert [(channel, message["op"]) for channel, message in published(conn)] == [
            ("of/ada)", "delete"), ("of/bob)", "insert"), ("of/bob)", "update"), ("of/bob)", "delete"),
        ]  # fmt: skip
        tables.create(conn, "items", Broadcast("of*[?", per_row="value"))
        found = tables.find(conn, "items")
        assert found
        assert found.broadcast
        assert found.broadcast.follows() == ([], ["of[*][[][?]*"])


def test_wide_tables_and_large_rows() -> None:
    """More columns than a function takes; a row that fits into no message does not make the write fail."""
    with opened() as conn:
        conn.execute(f"CREATE TABLE wide ({', '.join(f'c{n}' for n in range(500))}, PRIMARY KEY (c0, c1))")
        tables.create(conn, "wide", Broadcast("a", old=False))
        row = [n / 7 if n % 3 else b"\x00" if n % 2 else str(n) for n in range(500)]
        conn.execute(f"INSERT INTO wide VALUES ({', '.join('?' * 500)})", row)
        ((_, message),) = published(conn)
        assert [value_of(value)[1] for value in message["new"].values()] == row
        conn.execute("UPDATE wide SET c7 = zeroblob(1000000)")
        ((_, message),) = published(conn)
        assert message == {"op": "update", "table": "wide", "key": {"c0": "0", "c1": 1 / 7}, "too_large": True}
        conn.execute("UPDATE wide SET c0 = zeroblob(1000000)")
        assert [message for _, message in published(conn)] == [
            {"op": "delete", "table": "wide", "key": {"c0": "0", "c1": 1 / 7}},
            {"op": "insert", "table": "wide", "too_large": True},
        ]


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        ("no such column: NEW.nix", {"conditions": {"update": "NEW.nix"}}),
        ("no such column: OLD.id", {"conditions": {"insert": "OLD.id > 1"}}),
        ("the condition for delete: no such column", {"conditions": {"insert": "", "delete": "id > 1"}}),
        ("no such column: nix", {"per_row": "nix"}),
        ("mine() is not among SQLite's own functions", {"per_row": "mine(id)"}),
        ("without a query", {"per_row": "(SELECT secret FROM other)"}),
        ("without a query", {"conditions": {"insert": "EXISTS (VALUES (1))"}}),
        ("not about other", {"conditions": {"insert": "NEW.id IN other"}}),
        ("without RAISE", {"conditions": {"insert": "raise(IGNORE)"}}),
        ("without ;", {"conditions": {"insert": "1; DROP TABLE items"}}),
        ("without ?", {"per_row": "?1"}),
        ("comments", {"per_row": "id -- it"}),
        ("brackets do not match", {"conditions": {"insert": "1) BEGIN DELETE FROM other; END"}}),
        ("brackets do not match", {"per_row": "(id"}),
        ("a ' is not closed", {"per_row": "id || 'x"}),
        ("is empty", {"channel": ""}),
        ("too long to be continued", {"channel": "*" * 100, "per_row": "id"}),
        ("no column 'nix'", {"columns": ("nix",)}),
        ("at least one column", {"columns": ()}),
        ("at least one of insert", {"conditions": {}}),
        ("the limit is 2000", {"per_row": "id" + " " * 2000 + "+ 1"}),
    ],
)
def test_what_does_not_work_is_refused_and_changes_nothing(fault: str, wanted: dict[str, Any]) -> None:
    with opened() as conn:
        conn.executescript("CREATE TABLE items (id INTEGER PRIMARY KEY); CREATE TABLE other (secret)")
        tables.create(conn, "items", Broadcast("before"))
        before = conn.execute("SELECT * FROM sqlite_master").fetchall()
        conn.create_function("mine", 1, str)
        conn.execute("BEGIN")
        with pytest.raises(InvalidArgument) as refused:
            tables.preview(conn, "items", Broadcast(**{"channel": "a", **wanted}))
        conn.execute("COMMIT")
        assert fault in refused.value.message
        assert conn.execute("SELECT * FROM sqlite_master").fetchall() == before


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ("a_view", "a view"),
        ("search", "a virtual table"),
        ("search_data", "part of a virtual table"),
        ("vpubsub", "belongs to the log"),
        ("_pubsub_released", "belongs to the log"),
        ("sqlite_master", "not found"),
        ("nix", "not found"),
        ("hidden", "cannot be named"),
    ],
)
def test_what_cannot_be_broadcast(table: str, fault: str) -> None:
    with opened() as conn:
        conn.executescript(
            "CREATE TABLE items (id); CREATE VIEW a_view AS SELECT * FROM items;"
            "CREATE VIRTUAL TABLE search USING fts5 (body); CREATE TABLE hidden (rowid, _rowid_, oid)"
        )
        with pytest.raises((InvalidArgument, NotFound), match=fault):
            tables.create(conn, table, Broadcast("a"))


def test_our_triggers_are_known_again_and_others_left_alone() -> None:
    with opened() as conn:
        conn.executescript(
            "CREATE TABLE items (id INTEGER PRIMARY KEY, name, price);"
            "CREATE TRIGGER pubsub_broadcast_insert_mine AFTER INSERT ON items BEGIN SELECT 1; END"
        )
        tables.create(conn, "items", Broadcast("a", columns=("name",)))
        assert tables.find(conn, "items").problems == ()
        conn.execute("ALTER TABLE items ADD COLUMN more")
        assert tables.find(conn, "items").problems == ()
        with pytest.raises(sqlite3.OperationalError, match="error in trigger"):
            conn.execute("ALTER TABLE items DROP COLUMN name")
        conn.execute("ALTER TABLE items RENAME COLUMN name TO title")
        assert tables.find(conn, "items").problems == ("the table has no column 'name' any more",)
        conn.execute("INSERT INTO items (id, title) VALUES (1, 'still told')")
        assert published(conn)[0][1]["new"] == {"name": "still told"}

        tables.create(conn, "items", Broadcast("a"))
        conn.execute("ALTER TABLE items ADD COLUMN later")
        assert "column 'later' was added" in tables.find(conn, "items").problems[0]
        conn.execute("ALTER TABLE items RENAME TO things")
        assert tables.find(conn, "items") is None
        renamed = tables.find(conn, "things")
        assert (renamed.told_as, len(renamed.problems)) == ("items", 1)
        assert "was renamed" in renamed.problems[0]
        # Another table takes the name, while the triggers keep theirs.
        conn.execute("CREATE TABLE items (id)")
        names = [trigger.name for trigger in tables.create(conn, "items", Broadcast("b"))]
        assert names[0] == "pubsub_broadcast_insert_items_2"
        assert tables.find(conn, "items").problems == ()
        conn.execute("DROP TRIGGER pubsub_broadcast_delete_items_2")
        assert tables.find(conn, "items").problems == ("the trigger for delete is missing",)
        assert (tables.remove(conn, "items"), tables.remove(conn, "things")) == (2, 3)
        left = conn.execute("SELECT name FROM sqlite_master WHERE name GLOB 'pubsub_broadcast_*'").fetchall()
        assert left == [("pubsub_broadcast_insert_mine",)]


def test_where_replace_tells_nothing_is_known() -> None:
    with opened() as conn:
        shapes = {
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a)": False,
            "CREATE TABLE t (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID": False,
            "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE)": True,
            "CREATE TABLE t (a TEXT COLLATE NOCASE PRIMARY KEY)": True,
            "CREATE TABLE t (a UNIQUE)": True,
        }
        for create, silent in shapes.items():
            conn.execute(create)
            assert shape_of(conn, "t").replaces_silently == silent, create
            conn.execute("DROP TABLE t")


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with opened(path) as conn:
        conn.execute('CREATE TABLE "it\'s" (id INTEGER PRIMARY KEY, a, b UNIQUE)')

    def pubsub(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(main.pubsub, ["broadcast", str(path), "it's", *arguments])
        return done.exit_code, done.stdout, done.stderr

    assert pubsub("--show") == (1, "", "Error: it's is not broadcast\n")
    code, printed, _ = pubsub("--column", "a", "--no-old", "--when-update", "NEW.a > 1", "--dry-run")
    assert (code, printed.count("CREATE TRIGGER"), printed.count("WHEN (NEW.a > 1)")) == (0, 7, 1)
    assert pubsub("--remove")[1] == "Removed 0 triggers; it's is not broadcast\n"
    with opened(path) as conn:
        conn.executescript(printed)
        assert tables.find(conn, "it's").problems == ()
    shown = pubsub("--show")
    assert (shown[0], printed.endswith(shown[1]), shown[2]) == (0, True, "")
    code, said, noted = pubsub("--on", "insert", "--channel", "new", "--channel-suffix", "a")
    assert (code, said, noted) == (0, "Created 1 trigger: it's is broadcast to new…\n", "")
    with opened(path) as conn:
        conn.execute('CREATE UNIQUE INDEX by_expression ON "it\'s" (a || b)')
    assert "recursive_triggers" in pubsub("--on", "insert", "--channel", "new", "--channel-suffix", "a")[2]
    assert pubsub("--on", "insert", "--when-delete", "1")[0] == 2
    assert pubsub("--show", "--channel", "a")[0] == 2
    code, _, refused = pubsub("--when-insert", "nix(")
    assert (code, refused) == (1, "Error: the condition for insert: the brackets do not match\n")
    assert pubsub("--remove")[1] == "Removed 1 trigger; it's is not broadcast\n"
