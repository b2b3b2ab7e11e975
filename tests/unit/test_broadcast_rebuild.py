"""A table is rebuilt from the messages of its broadcast, whatever another program has changed."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from broadcasts import opened, quoted, value_of
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from datasette_pubsub.broadcast import tables
from datasette_pubsub.broadcast.definition import Broadcast

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

VALUES = [
    "NULL", "0", "1", "2", "3", "-1", "9007199254740993", "-9223372036854775808", "0.1", "1.0", "1e300", "-5e-324",
    "9e999", "-9e999", "2.2250738585072014e-308", "123456.789", "''", "'a'", "'A'", "'it''s \"q\"'", "'{\"x\": 1}'",
    "'ü😀' || char(10, 9, 127)", "x''", "x'00ff'", "x'7b7d'",
]  # fmt: skip


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


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("program", RUNNERS)
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(seed=st.integers(0, 2**32))
def test_the_messages_rebuild_every_table_exactly(program: str, recursive: bool, seed: int) -> None:
    """After any changes by another program: inserts, upserts, REPLACE, changed keys, rollbacks."""
    rng = random.Random(seed)
    statements = ["PRAGMA synchronous = OFF", f"PRAGMA recursive_triggers = {recursive}"]
    # A row that stays, or by chance everything in a table would be taken back, and nothing be compared.
    for table, (_, key) in TABLES.items():
        names = ", ".join(map(quoted, key))
        statements.append(f"INSERT INTO {quoted(table)} ({names}) VALUES ({', '.join('1' for _ in key)})")
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
