"""Broadcasts: triggers in a file, and what they publish when other programs write."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from datasette_pubsub.broadcast import definition as text
from datasette_pubsub.broadcast import tables
from datasette_pubsub.broadcast.definition import Broadcast
from datasette_pubsub.broadcast.shape import shape_of
from datasette_pubsub.cli import main
from datasette_pubsub.core.errors import InvalidArgument, NotFound
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema
from datasette_pubsub.storage.quoting import identifier

# -- rebuilding a table from its messages -------------------------------------

#: Tables of every kind, by name: how they are made, their key, and the columns that are compared.
TABLES = {
    "items": ("CREATE TABLE items (id INTEGER PRIMARY KEY, k, v)", ["id"]),
    "no key": ('CREATE TABLE "no key" (k, v)', ["rowid"]),
    'say "it"': (
        'CREATE TABLE "say ""it""" ("a b", k TEXT, v, "c""d" AS (json_array(typeof(v))), PRIMARY KEY ("a b", k)) '
        "WITHOUT ROWID",
        ["a b", "k"],
    ),
    "straße": ("CREATE TABLE straße (k TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, v REAL)", ["k"]),
    "strict": ("CREATE TABLE strict (id INTEGER PRIMARY KEY, k ANY, v BLOB) STRICT", ["id"]),
    # Triggers of its own change, delete and insert its rows while those that broadcast run.
    "busy": (
        """CREATE TABLE busy (id INTEGER PRIMARY KEY, k, v);
        CREATE TRIGGER busy_shout AFTER INSERT ON busy WHEN typeof(NEW.v) = 'text'
          BEGIN UPDATE busy SET v = upper(v) WHERE id = NEW.id; END;
        CREATE TRIGGER busy_leave AFTER INSERT ON busy WHEN NEW.v = 3 BEGIN DELETE FROM busy WHERE id = NEW.id; END;
        CREATE TRIGGER busy_move AFTER UPDATE OF v ON busy WHEN NEW.v = 2
          BEGIN UPDATE OR REPLACE busy SET id = id + 1 WHERE id = NEW.id; END;
        CREATE TRIGGER busy_return AFTER DELETE ON busy WHEN OLD.v IS NULL
          BEGIN INSERT INTO busy VALUES (OLD.id, OLD.k, 0) ON CONFLICT DO NOTHING; END""",
        ["id"],
    ),
}
WIDE = ", ".join(f"c{n}" for n in range(150))

VALUES = [
    "NULL", "0", "1", "2", "3", "-1", "9007199254740993", "-9223372036854775808", "0.1", "1.0", "1e300", "-5e-324",
    "9e999", "-9e999", "2.2250738585072014e-308", "123456.789", "''", "'a'", "'A'", "'it''s \"q\"'", "'{\"x\": 1}'",
    "'ü😀' || char(10, 9, 127)", "x''", "x'00ff'", "x'7b7d'",
]  # fmt: skip


def quoted(name: str) -> str:
    return identifier(name)


def change(rng: random.Random, recursive: bool) -> str:
    """One statement that changes one of the tables, or tries to."""
    table = rng.choice(list(TABLES))
    name, key = quoted(table), TABLES[table][1]
    keys = ["'a'", "'A'", "'b'", "1"] if key[0] in ("k", "a b") else ["1", "2", "3", "4"]
    at, other, value = rng.choice(keys), rng.choice(keys), rng.choice(VALUES)
    how = rng.choice(["", "", " OR REPLACE", " OR IGNORE"])
    if table == "straße" and how == " OR REPLACE" and not recursive:
        # 'A' would replace 'a', and SQLite would tell no trigger: Shape.replaces_silently.
        how = ""
    row = {**dict.fromkeys(key, at), "k": at, "v": value if table != "strict" else "x'0aff'"}
    if len(key) == 2:
        row["k"] = other
    if key == ["rowid"] and rng.random() < 0.5:
        del row["rowid"]
    names, values = ", ".join(map(quoted, row)), ", ".join(row.values())
    first = quoted(key[0])
    kind = rng.choice(
        ["insert", "insert", "insert", "upsert", "update", "update", "same", "key", "shift", "delete", "all"]
    )
    if kind == "insert":
        return f"INSERT{how} INTO {name} ({names}) VALUES ({values})"
    if kind == "upsert":
        conflict = (
            "" if key == ["rowid"] else f" ON CONFLICT ({', '.join(map(quoted, key))}) DO UPDATE SET v = excluded.v"
        )
        return f"INSERT INTO {name} ({names}) VALUES ({values}){conflict}"
    if kind == "update":
        return f"UPDATE{how} {name} SET v = {row['v']} WHERE {first} >= {at}"
    if kind == "same":
        return f"UPDATE {name} SET v = v, {first} = {first}"
    if kind == "key":
        return f"UPDATE{how} {name} SET {first} = {at} WHERE {first} = {other}"
    if kind == "shift":
        return f"UPDATE{how} {name} SET {first} = {first} + 1"
    if kind == "delete":
        return f"DELETE FROM {name} WHERE {first} = {at}"
    return f"DELETE FROM {name} WHERE v IS NULL OR typeof(v) = 'real'"


#: What a table refuses; anything else that goes wrong is the triggers' fault.
REFUSALS = ("constraint failed", "datatype mismatch", "cannot store")

_LOOP = f"""
for line in sys.stdin.read().split(';\\n'):
    try: list(conn.execute(line))
    except Exception as error:
        if not any(text in str(error) for text in {REFUSALS!r}): raise
"""

#: Programs that run SQL from their input, statement by statement, whatever a table refuses.
RUNNERS = {
    "shell": ["sqlite3"],
    "python": [
        sys.executable, "-c", f"import sqlite3, sys\nconn = sqlite3.connect(sys.argv[1], isolation_level=None){_LOOP}"
    ],
    "apsw": [sys.executable, "-c", f"import apsw, sys\nconn = apsw.Connection(sys.argv[1]){_LOOP}"],
}  # fmt: skip


def run(program: str, path: Path, statements: list[str]) -> None:
    command = [*RUNNERS[program], str(path)]
    script = ";\n".join(statements) + ";\n"
    done = subprocess.run(command, input=script, text=True, capture_output=True, timeout=60, check=False)
    faults = [line for line in done.stderr.splitlines() if not any(text in line for text in REFUSALS)]
    # The shell shows a part of the statement under what it says of it.
    faults = [line for line in faults if "rror" in line]
    assert faults == [], done.stderr
    assert program == "shell" or done.returncode == 0, done.stderr


def value_of(found: Any) -> Any:
    """A value of a payload as SQLite has it, with its type."""
    value = bytes.fromhex(found["hex"]) if isinstance(found, dict) else found
    return type(value).__name__, value


def rebuilt(messages: list[str]) -> dict[Any, Any]:
    """The rows that the messages of a table leave, by their keys."""
    rows: dict[Any, Any] = {}
    for message in map(json.loads, messages):
        key = tuple((name, value_of(value)) for name, value in message["key"].items())
        if message["op"] == "delete":
            rows.pop(key, None)
        else:
            rows[key] = {name: value_of(value) for name, value in message["new"].items()}
    return rows


def standing(conn: sqlite3.Connection, table: str, key: list[str]) -> dict[Any, Any]:
    """The rows that stand in a table, in the same form."""
    cursor = conn.execute(f"SELECT *, {', '.join(map(quoted, key))} FROM {quoted(table)}")
    names = [column[0] for column in cursor.description][: -len(key)]
    return {
        tuple((name, (type(value).__name__, value)) for name, value in zip(key, row[-len(key) :], strict=True)): {
            name: (type(value).__name__, value) for name, value in zip(names, row, strict=False)
        }
        for row in cursor
    }


@contextlib.contextmanager
def opened(path: Path | str = ":memory:") -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        schema.install(conn, Settings())
        yield conn


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("program", RUNNERS)
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_the_messages_rebuild_every_table_exactly(program: str, recursive: bool, seed: int) -> None:
    """After any changes by another program: inserts, upserts, REPLACE, changed keys, rollbacks."""
    rng = random.Random(seed)
    statements = ["PRAGMA synchronous = OFF", f"PRAGMA recursive_triggers = {recursive}"]
    for _ in range(20):
        statements += ["BEGIN", "SAVEPOINT inner", *(change(rng, recursive) for _ in range(rng.randint(1, 20)))]
        statements += [*(["ROLLBACK TO inner"] if rng.random() < 0.2 else []), "COMMIT"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.db"
        with opened(path) as conn:
            for table, (create, _) in TABLES.items():
                conn.executescript(create)
                tables.create(conn, table, Broadcast(f"changes/{table}"))
        run(program, path, statements)
        with opened(path) as conn:
            for table, (_, key) in TABLES.items():
                found = conn.execute("SELECT payload FROM vpubsub WHERE channel = ?", [f"changes/{table}"])
                messages = [row[0] for row in found]
                assert messages, table
                assert rebuilt(messages) == standing(conn, table, key), table


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
